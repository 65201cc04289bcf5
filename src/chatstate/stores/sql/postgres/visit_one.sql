-- One visit.
SELECT {columns}
FROM chatstate.visits AS v
WHERE v.table_schema = {name} AND v.session_id = $1::uuid
