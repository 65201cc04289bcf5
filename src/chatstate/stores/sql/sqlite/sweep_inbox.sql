-- Forget what has arrived long ago; what is not done yet only when nothing is kept for so long.
DELETE FROM inbox
WHERE key IN (
    SELECT key FROM inbox
    WHERE received_at <= :forget_since AND (status NOT IN ('pending', 'aside') OR received_at <= :kept_since)
    LIMIT :limit
)
RETURNING 1;
