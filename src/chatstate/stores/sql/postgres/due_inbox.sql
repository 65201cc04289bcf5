-- Conversations whose next message is due, the oldest first. Each is found by a skip to the next one in the index, and no
-- document is read: there may be many messages in one of them, and large ones.
WITH RECURSIVE conversations (name) AS (
    (
        SELECT conversation FROM chatstate.inbox
        WHERE table_schema = {name} AND status = 'pending'
        ORDER BY conversation LIMIT 1
    )
    UNION ALL
    SELECT following.conversation
    FROM conversations
    CROSS JOIN LATERAL (
        SELECT conversation FROM chatstate.inbox
        WHERE table_schema = {name} AND status = 'pending' AND conversation > conversations.name
        ORDER BY conversation LIMIT 1
    ) AS following
)
SELECT conversations.name
FROM conversations
CROSS JOIN LATERAL (
    SELECT sent_at, number, due_at FROM chatstate.inbox
    WHERE table_schema = {name} AND status = 'pending' AND conversation = conversations.name
    ORDER BY sent_at, number LIMIT 1
) AS head
WHERE head.due_at <= $1::text::timestamptz
ORDER BY head.sent_at, head.number
LIMIT $2
