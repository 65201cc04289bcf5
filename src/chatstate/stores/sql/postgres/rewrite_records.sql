-- The same of a record.
UPDATE chatstate.records SET document = $5
WHERE table_schema = {name} AND collection = $1 AND key = $2 AND $3::text IS NOT NULL AND document = $4
RETURNING 1
