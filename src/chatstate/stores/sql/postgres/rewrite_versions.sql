-- The same of a version.
UPDATE chatstate.versions SET chat_state = $5
WHERE table_schema = {name} AND session_id = (SELECT session_id::text FROM {table} WHERE user_session_id = $1)
    AND version = $2::text::bigint AND $3::text IS NOT NULL AND chat_state = $4
RETURNING 1
