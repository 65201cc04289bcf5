-- One visit.
SELECT {columns}
FROM chat_sessions
WHERE session_id = :session_id AND {within};
