-- Create the session if it is absent.
INSERT INTO chat_state_sessions (user_session_id, session_id, chat_state, last_activity, created_at, updated_at, version)
VALUES (:user_session_id, :session_id, :chat_state, :last_activity, :now, :now, 1)
ON CONFLICT (user_session_id) DO NOTHING
RETURNING session_id, created_at, version;
