-- Records of a collection in the order of their keys.
SELECT collection, key, document, version, changed_at, expires_at
FROM records
WHERE collection = :collection AND (:key IS NULL OR key = :key) AND key > :after
    AND (:changed_since IS NULL OR changed_at >= :changed_since) AND coalesce(expires_at > :now, 1)
ORDER BY key
LIMIT :limit;
