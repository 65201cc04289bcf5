-- The same of one user.
SELECT {columns}
FROM chat_sessions
WHERE user_session_id = :user_session_id AND (session_start_time, session_id) < (:start, :id) AND {within}
ORDER BY session_start_time DESC, session_id DESC
LIMIT :limit;
