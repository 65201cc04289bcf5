-- The user sessions that visits of a person name, in the order of their ids.
SELECT DISTINCT user_session_id
FROM chat_sessions
WHERE user_id = :user_id AND user_session_id > :after AND {within}
ORDER BY user_session_id
LIMIT :limit;
