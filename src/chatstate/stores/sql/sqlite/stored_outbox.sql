-- The same of messages that are to leave.
SELECT key, CASE WHEN {wanting} THEN document END
FROM outbox
WHERE key > :first AND document <> ''
ORDER BY key
LIMIT :limit;
