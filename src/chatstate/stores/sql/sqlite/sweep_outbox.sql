-- Forget what has left long ago, or could not.
DELETE FROM outbox
WHERE number IN (
    SELECT number FROM outbox
    WHERE created_at <= :forget_since AND (status <> 'queued' OR created_at <= :kept_since)
    LIMIT :limit
)
RETURNING 1;
