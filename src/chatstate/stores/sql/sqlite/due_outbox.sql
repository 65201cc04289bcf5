-- Conversations whose next message is due, the oldest first. Each is found by a skip to the next one in the index, and no
-- document is read: there may be many messages in one of them, and large ones.
WITH RECURSIVE conversations (name) AS (
    SELECT min(conversation) FROM outbox WHERE status = 'queued'
    UNION ALL
    SELECT (SELECT min(conversation) FROM outbox WHERE status = 'queued' AND conversation > name)
    FROM conversations WHERE name IS NOT NULL
)
SELECT name
FROM conversations
JOIN outbox AS head ON head.key = (
    SELECT key FROM outbox WHERE status = 'queued' AND conversation = name ORDER BY number LIMIT 1
)
WHERE head.due_at <= :now
ORDER BY head.number
LIMIT :limit;
