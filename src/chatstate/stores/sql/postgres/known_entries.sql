-- Lock messages that have arrived before, so that whoever is told so waits for what the standbys have (see recall.sql).
SELECT key
FROM chatstate.inbox
WHERE table_schema = {name} AND key = ANY ($1::text[])
ORDER BY key
FOR KEY SHARE
