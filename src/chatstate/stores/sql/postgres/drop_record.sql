-- Remove the record if it is there, in the version ($4) that the write expects if it expects one.
DELETE FROM chatstate.records
WHERE table_schema = {name} AND collection = $1 AND key = $2 AND coalesce(expires_at > $3::text::timestamptz, true)
    AND ($4::bigint IS NULL OR version = $4)
RETURNING version
