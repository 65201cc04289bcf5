-- Remove the sessions of a page of ids that have been idle for too long.
DELETE FROM chat_state_sessions
WHERE user_session_id > :after AND user_session_id <= :last AND expires_at IS NULL AND updated_at <= :idle_since
RETURNING 1;
