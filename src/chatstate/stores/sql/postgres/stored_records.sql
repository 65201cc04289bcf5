-- The same of records.
SELECT s.collection, s.key, CASE WHEN {wanting} THEN s.chat_state END
FROM (
    SELECT collection, key, document AS chat_state
    FROM chatstate.records
    WHERE table_schema = {name} AND (collection, key) > ($1::text, $2::text) AND $3::text IS NOT NULL
    ORDER BY collection, key
    LIMIT $5
) AS s
ORDER BY s.collection, s.key
