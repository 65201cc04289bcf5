-- What a write that changed nothing has run into.
SELECT version
FROM chatstate.records
WHERE table_schema = {name} AND collection = $1 AND key = $2 AND coalesce(expires_at > $3::text::timestamptz, true)
