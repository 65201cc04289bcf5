-- Change the session if it is present in a version that the write expects. A null state stays as it is, and so does a
-- null :expires_in; 0 takes the expiry away.
-- :only and :unless are JSON arrays of tags (session_id-version); a null :only means every version.
UPDATE chat_state_sessions
SET chat_state = coalesce(:chat_state, chat_state),
    last_activity = :last_activity,
    updated_at = :now,
    version = version + 1,
    expires_in = nullif(coalesce(:expires_in, expires_in), 0),
    expires_at = :now + nullif(coalesce(:expires_in, expires_in), 0)
WHERE user_session_id = :user_session_id AND NOT {gone}
    AND (:only IS NULL OR session_id || '-' || version IN (SELECT value FROM json_each(:only)))
    AND session_id || '-' || version NOT IN (SELECT value FROM json_each(:unless))
RETURNING session_id, created_at, version, expires_at, CASE WHEN :chat_state IS NULL THEN chat_state END;
