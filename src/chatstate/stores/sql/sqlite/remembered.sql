-- All that is remembered of requests with idempotency keys to this session.
SELECT key, updated_at, chat_state
FROM idempotency_keys
WHERE user_session_id = :user_session_id AND forget_at > :now
ORDER BY key, caller;
