-- Create the session if it is absent.
INSERT INTO chat_state_sessions (
    user_session_id, session_id, chat_state, last_activity, created_at, updated_at, version, expires_in, expires_at
)
VALUES (
    :user_session_id, :session_id, :chat_state, :last_activity, :now, :now, 1,
    nullif(:expires_in, 0), :now + nullif(:expires_in, 0)
)
ON CONFLICT (user_session_id) DO NOTHING
RETURNING session_id, created_at, version, expires_at;
