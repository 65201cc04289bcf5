-- One session.
SELECT session_id, user_session_id, chat_state, last_activity, created_at, updated_at, version
FROM chat_state_sessions
WHERE user_session_id = :user_session_id;
