-- The versions from which a page of rows takes: those of the next sessions that have any. So each look-up is by an index,
-- also under a plan that was made while the tables were empty. LATERAL with LIMIT or OFFSET: see recall.sql.
(
    SELECT c.user_session_id COLLATE "C" AS user_session_id, c.session_id::text AS session_id
    FROM {table} AS c
    CROSS JOIN LATERAL (
        SELECT FROM chatstate.versions AS v
        WHERE v.table_schema = {name} AND v.session_id = c.session_id::text
        LIMIT 1
    ) AS has_one
    WHERE {from}
    ORDER BY c.user_session_id COLLATE "C"
    LIMIT $1 + 1
) AS s
CROSS JOIN LATERAL (
    SELECT * FROM chatstate.versions AS v
    WHERE v.table_schema = {name} AND v.session_id = s.session_id
    OFFSET 0
) AS v
