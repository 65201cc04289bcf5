-- The same of messages that have arrived.
SELECT s.key, CASE WHEN {wanting} THEN s.chat_state END
FROM (
    SELECT key, document AS chat_state
    FROM chatstate.inbox
    WHERE table_schema = {name} AND key > $1::text AND document <> '' AND $2::text IS NOT NULL AND $3::text IS NOT NULL
    ORDER BY key
    LIMIT $5
) AS s
ORDER BY s.key
