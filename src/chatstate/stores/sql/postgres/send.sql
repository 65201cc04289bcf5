-- Put messages into the outbox, but for those that are there. Their numbers are in the order of the arrays.
INSERT INTO chatstate.outbox (
    table_schema, key, conversation, user_session_id, document, status, rank, created_at, due_at
)
SELECT {name}, key, conversation, user_session_id, document, 'queued', 0, now::timestamptz, now::timestamptz
FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[])
    WITH ORDINALITY AS w (key, conversation, user_session_id, document, now, place)
ORDER BY place
ON CONFLICT (table_schema, key) DO NOTHING
