-- Where a page of ids ends; null behind the last one.
SELECT max(user_session_id), count(*)
FROM (SELECT user_session_id FROM chat_state_sessions WHERE user_session_id > :after ORDER BY user_session_id LIMIT :limit);
