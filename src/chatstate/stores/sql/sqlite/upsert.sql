-- Create the session or replace its state, whatever is there.
INSERT INTO chat_state_sessions (user_session_id, session_id, chat_state, last_activity, created_at, updated_at, version)
VALUES (:user_session_id, :session_id, :chat_state, :last_activity, :now, :now, 1)
ON CONFLICT (user_session_id) DO UPDATE
SET chat_state = excluded.chat_state,
    last_activity = excluded.last_activity,
    updated_at = excluded.updated_at,
    version = chat_state_sessions.version + 1
RETURNING session_id, created_at, version;
