-- Forget idempotency keys.
DELETE FROM idempotency_keys
WHERE (user_session_id, caller, key) IN (
    SELECT user_session_id, caller, key FROM idempotency_keys WHERE forget_at <= :now LIMIT :limit
)
RETURNING 1;
