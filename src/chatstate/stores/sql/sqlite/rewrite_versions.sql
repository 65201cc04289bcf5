-- The same of a version.
UPDATE versions SET chat_state = :replaced_by
WHERE session_id = (SELECT session_id FROM chat_state_sessions WHERE user_session_id = :first)
    AND version = CAST(:second AS INTEGER) AND chat_state = :text
RETURNING 1;
