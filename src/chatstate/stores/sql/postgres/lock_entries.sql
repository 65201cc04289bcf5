-- What has arrived in these conversations and is kept, locked in one order.
SELECT key
FROM chatstate.inbox
WHERE table_schema = {name} AND conversation = ANY ($1::text[]) AND document <> ''
ORDER BY key
FOR UPDATE
