-- Replace the record if it is in the version ($6) that the write expects.
UPDATE chatstate.records
SET document = $3, version = version + 1, changed_at = $4::text::timestamptz, expires_at = $5::text::timestamptz
WHERE table_schema = {name} AND collection = $1 AND key = $2 AND version = $6::bigint
    AND coalesce(expires_at > $4::text::timestamptz, true)
RETURNING version
