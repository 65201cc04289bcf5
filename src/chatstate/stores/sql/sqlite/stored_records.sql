-- The same of records.
SELECT collection, key, CASE WHEN {wanting} THEN document END
FROM records
WHERE (collection, key) > (:first, :second)
ORDER BY collection, key
LIMIT :limit;
