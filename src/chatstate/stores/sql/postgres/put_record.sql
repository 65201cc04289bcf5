-- Create the record, or replace it whatever it is; with expect ($6) 0 only if it is absent, or has expired.
INSERT INTO chatstate.records AS r (table_schema, collection, key, document, version, changed_at, expires_at)
VALUES ({name}, $1, $2, $3, 1, $4::text::timestamptz, $5::text::timestamptz)
ON CONFLICT (table_schema, collection, key) DO UPDATE
SET document = excluded.document,
    version = CASE WHEN r.expires_at <= excluded.changed_at THEN 1 ELSE r.version + 1 END,
    changed_at = excluded.changed_at,
    expires_at = excluded.expires_at
WHERE $6::bigint IS NULL OR r.expires_at <= excluded.changed_at
RETURNING r.version
