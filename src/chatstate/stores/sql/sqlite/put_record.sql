-- Create the record, or replace it whatever it is; with :expect 0 only if it is absent, or has expired.
INSERT INTO records AS r (collection, key, document, version, changed_at, expires_at)
VALUES (:collection, :key, :document, 1, :now, :expires_at)
ON CONFLICT (collection, key) DO UPDATE
SET document = excluded.document,
    version = CASE WHEN r.expires_at <= :now THEN 1 ELSE r.version + 1 END,
    changed_at = excluded.changed_at,
    expires_at = excluded.expires_at
WHERE :expect IS NULL OR r.expires_at <= :now
RETURNING version;
