-- The same of versions.
SELECT s.user_session_id, s.version::text, CASE WHEN {wanting} THEN s.chat_state END
FROM (
    SELECT c.user_session_id, v.version, v.chat_state
    FROM {table} AS c
    JOIN chatstate.versions AS v ON v.table_schema = {name} AND v.session_id = c.session_id::text
    WHERE c.user_session_id >= $1::text AND $3::text IS NOT NULL
        AND (c.user_session_id > $1::text OR v.version > ('0' || $2::text)::bigint)
    ORDER BY c.user_session_id, v.version
    LIMIT $5
) AS s
ORDER BY s.user_session_id, s.version
