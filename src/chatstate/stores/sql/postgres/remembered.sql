-- All that is remembered of requests with idempotency keys to this session.
SELECT key, updated_at, chat_state
FROM chatstate.idempotency_keys
WHERE table_schema = {name} AND user_session_id = $1 AND forget_at > $2::text::timestamptz
ORDER BY key, caller
