-- A page of visits, newest first, behind the position ($1, $2).
SELECT {columns}
FROM chatstate.visits AS v
WHERE v.table_schema = {name} AND (v.session_start_time, v.session_id) < ($1::text::timestamptz, $2::uuid)
ORDER BY v.session_start_time DESC, v.session_id DESC
LIMIT $3
