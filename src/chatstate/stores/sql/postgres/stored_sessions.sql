-- States as they lie there, a page in the order of their ids; null for those that are all right.
SELECT s.user_session_id, CASE WHEN {wanting} THEN s.chat_state END
FROM {table} AS s
WHERE s.user_session_id > $1::text AND $2::text IS NOT NULL AND $3::text IS NOT NULL
ORDER BY s.user_session_id
LIMIT $5
