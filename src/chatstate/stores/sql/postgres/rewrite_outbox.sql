-- The same of a message that is to leave.
UPDATE chatstate.outbox SET document = $5
WHERE table_schema = {name} AND key = $1 AND $2::text IS NOT NULL AND $3::text IS NOT NULL AND document = $4
RETURNING 1
