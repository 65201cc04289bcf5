-- Which of these messages are not done yet. They are locked, in one order, so that nobody else settles them meanwhile.
SELECT key
FROM chatstate.inbox
WHERE table_schema = {name} AND key = ANY ($1::text[]) AND status IN ('pending', 'aside')
ORDER BY key
FOR UPDATE
