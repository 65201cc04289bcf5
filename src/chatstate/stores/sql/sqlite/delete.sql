-- Remove the session if it is present in a version that the write expects; :only and :unless as in update.sql.
DELETE FROM chat_state_sessions
WHERE user_session_id = :user_session_id AND NOT {gone}
    AND (:only IS NULL OR session_id || '-' || version IN (SELECT value FROM json_each(:only)))
    AND session_id || '-' || version NOT IN (SELECT value FROM json_each(:unless))
RETURNING session_id, version;
