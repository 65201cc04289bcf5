-- Create the session or replace its state, unless an expired one is in the way. A null :expires_in stays as it is.
INSERT INTO chat_state_sessions (
    user_session_id, session_id, chat_state, last_activity, created_at, updated_at, version, expires_in, expires_at
)
VALUES (
    :user_session_id, :session_id, :chat_state, :last_activity, :now, :now, 1, :expires_in, :now + :expires_in
)
ON CONFLICT (user_session_id) DO UPDATE
SET chat_state = excluded.chat_state,
    last_activity = excluded.last_activity,
    updated_at = excluded.updated_at,
    version = chat_state_sessions.version + 1,
    expires_in = coalesce(excluded.expires_in, expires_in),
    expires_at = excluded.updated_at + coalesce(excluded.expires_in, expires_in)
WHERE NOT {gone}
RETURNING session_id, created_at, version, expires_at;
