-- Change one visit: {assignments} are the members that the change gives.
UPDATE chat_sessions
SET {assignments}
WHERE session_id = :session_id AND {within}
RETURNING {columns};
