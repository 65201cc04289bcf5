-- Remove the record if it is there, in the version that the write expects if it expects one.
DELETE FROM records
WHERE collection = :collection AND key = :key AND (:expect IS NULL OR version = :expect)
    AND coalesce(expires_at > :now, 1)
RETURNING version;
