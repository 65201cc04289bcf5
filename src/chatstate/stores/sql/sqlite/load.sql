-- One session that has not expired.
SELECT session_id, user_session_id, chat_state, last_activity, created_at, updated_at, version, expires_at
FROM chat_state_sessions
WHERE user_session_id = :user_session_id AND NOT {gone};
