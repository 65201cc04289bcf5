-- A page of visits, newest first, behind the position (:start, :id).
SELECT {columns}
FROM chat_sessions
WHERE (session_start_time, session_id) < (:start, :id) AND {within}
ORDER BY session_start_time DESC, session_id DESC
LIMIT :limit;
