-- Conversations whose next message is due, the oldest first. Each is found by a skip to the next one in the index, and no
-- document is read: there may be many messages in one of them, and large ones.
WITH RECURSIVE conversations (name) AS (
    SELECT min(conversation) FROM inbox WHERE status = 'pending'
    UNION ALL
    SELECT (SELECT min(conversation) FROM inbox WHERE status = 'pending' AND conversation > name)
    FROM conversations WHERE name IS NOT NULL
)
SELECT name
FROM conversations
JOIN inbox AS head ON head.key = (
    SELECT key FROM inbox WHERE status = 'pending' AND conversation = name ORDER BY sent_at, number LIMIT 1
)
WHERE head.due_at <= :now
ORDER BY head.sent_at, head.number
LIMIT :limit;
