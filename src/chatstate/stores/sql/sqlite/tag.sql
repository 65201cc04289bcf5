-- What a write that changed nothing has run into.
SELECT session_id, version
FROM chat_state_sessions
WHERE user_session_id = :user_session_id AND NOT {gone};
