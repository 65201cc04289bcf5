-- Forget idempotency keys.
DELETE FROM chatstate.idempotency_keys
WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM chatstate.idempotency_keys
    WHERE table_schema = {name} AND forget_at <= $1::text::timestamptz
    LIMIT $2
    FOR UPDATE SKIP LOCKED
))
RETURNING 1
