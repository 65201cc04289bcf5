-- Forget what has left long ago, or could not.
DELETE FROM chatstate.outbox
WHERE table_schema = {name} AND key = ANY (ARRAY(
    SELECT key FROM chatstate.outbox
    WHERE table_schema = {name} AND created_at <= $1::text::timestamptz
        AND (status <> 'queued' OR created_at <= $2::text::timestamptz)
    LIMIT $3
    FOR UPDATE SKIP LOCKED
))
RETURNING 1
