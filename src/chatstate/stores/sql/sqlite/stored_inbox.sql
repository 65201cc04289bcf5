-- The same of messages that have arrived.
SELECT key, CASE WHEN {wanting} THEN document END
FROM inbox
WHERE key > :first AND document <> ''
ORDER BY key
LIMIT :limit;
