-- What a write that changed nothing has run into.
SELECT version
FROM records
WHERE collection = :collection AND key = :key AND coalesce(expires_at > :now, 1);
