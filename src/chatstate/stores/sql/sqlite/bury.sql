-- Remove what has expired under this id.
DELETE FROM chat_state_sessions
WHERE user_session_id = :user_session_id AND {gone};
