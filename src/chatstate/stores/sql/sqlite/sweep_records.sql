-- Remove records that have expired.
DELETE FROM records
WHERE (collection, key) IN (SELECT collection, key FROM records WHERE expires_at <= :now LIMIT :limit)
RETURNING 1;
