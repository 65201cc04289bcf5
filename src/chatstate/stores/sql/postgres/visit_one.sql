-- One visit.
SELECT {columns}
FROM chatstate.visits AS v
WHERE v.table_schema = {name} AND v.session_id = $1::uuid
    AND starts_with(v.user_session_id, $2::text) AND coalesce(v.user_session_id = $3::text, true)
