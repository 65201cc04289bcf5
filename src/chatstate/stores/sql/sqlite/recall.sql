-- What is remembered of a write with this idempotency key.
SELECT digest, deleted, session_id, user_session_id, last_activity, created_at, updated_at, version, expires_at, chat_state
FROM idempotency_keys
WHERE user_session_id = :user_session_id AND caller = :caller AND key = :key AND forget_at > :now;
