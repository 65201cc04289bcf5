-- Forget idempotency keys.
DELETE FROM chatstate.idempotency_keys
WHERE table_schema = {name} AND (user_session_id, caller, key) IN (
    SELECT user_session_id, caller, key FROM chatstate.idempotency_keys
    WHERE table_schema = {name} AND forget_at <= $1::text::timestamptz
    LIMIT $2
    FOR UPDATE SKIP LOCKED
)
RETURNING 1
