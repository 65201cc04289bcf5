-- Forget idempotency keys.
WITH old AS MATERIALIZED (
    SELECT user_session_id, caller, key FROM chatstate.idempotency_keys
    WHERE table_schema = {name} AND forget_at <= $1::text::timestamptz
    LIMIT $2
    FOR UPDATE SKIP LOCKED
)
DELETE FROM chatstate.idempotency_keys AS k
USING old
WHERE k.table_schema = {name} AND k.user_session_id = old.user_session_id AND k.caller = old.caller AND k.key = old.key
RETURNING 1
