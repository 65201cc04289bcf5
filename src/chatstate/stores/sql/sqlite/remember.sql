-- Remember what a write with an idempotency key came to.
INSERT OR REPLACE INTO idempotency_keys (
    user_session_id, caller, key, digest, forget_at, deleted,
    session_id, version, last_activity, created_at, updated_at, expires_at, chat_state
)
VALUES (
    :user_session_id, :caller, :key, :digest, :forget_at, :deleted,
    :session_id, :version, :last_activity, :created_at, :updated_at, :expires_at, :chat_state
);
