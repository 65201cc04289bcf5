-- Replace the record if it is in the version that the write expects.
UPDATE records
SET document = :document, version = version + 1, changed_at = :now, expires_at = :expires_at
WHERE collection = :collection AND key = :key AND version = :expect AND coalesce(expires_at > :now, 1)
RETURNING version;
