-- Records of a collection in the order of their keys.
SELECT collection, key, document, version, changed_at, expires_at
FROM chatstate.records
WHERE table_schema = {name} AND collection = $1 AND coalesce(expires_at > $2::text::timestamptz, true)
    AND ($3::text IS NULL OR key = $3) AND key > $4
    AND ($5::text IS NULL OR changed_at >= $5::text::timestamptz)
ORDER BY key
LIMIT $6
