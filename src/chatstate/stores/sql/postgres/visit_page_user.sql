-- The same of one user.
SELECT {columns}
FROM chatstate.visits AS v
WHERE v.table_schema = {name} AND v.user_session_id = $6
    AND starts_with(v.user_session_id, $4::text) AND coalesce(v.user_session_id = $5::text, true)
    AND (v.session_start_time, v.session_id) < ($1::text::timestamptz, $2::uuid)
ORDER BY v.session_start_time DESC, v.session_id DESC
LIMIT $3
