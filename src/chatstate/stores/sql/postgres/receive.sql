-- Keep messages that have arrived, but for those that are known. They are inserted in one order, so that two servers which
-- get the same ones cannot deadlock.
INSERT INTO chatstate.inbox (table_schema, key, number, conversation, document, status, sent_at, received_at, due_at)
SELECT {name}, key, number, conversation, document, status, sent_at::timestamptz, now::timestamptz, now::timestamptz
FROM unnest($1::text[], $2::bigint[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[])
    AS w (key, number, conversation, document, status, sent_at, now)
ORDER BY key COLLATE "C"
ON CONFLICT (table_schema, key) DO NOTHING
RETURNING key
