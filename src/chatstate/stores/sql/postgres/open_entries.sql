-- Which of these messages are not done yet. They are locked, in one order, so that nobody else settles them meanwhile;
-- whoever sees them arrive again does not wait for that.
SELECT key
FROM chatstate.inbox
WHERE table_schema = {name} AND key = ANY ($1::text[]) AND status IN ('pending', 'aside')
ORDER BY key
FOR NO KEY UPDATE
