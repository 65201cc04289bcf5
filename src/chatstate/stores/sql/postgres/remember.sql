-- Remember what writes with idempotency keys came to. A key that is remembered already gives no row.
INSERT INTO chatstate.idempotency_keys AS k (
    table_schema, user_session_id, caller, key, digest, forget_at, deleted,
    session_id, version, last_activity, created_at, updated_at, expires_at, chat_state
)
SELECT {name}, user_session_id, caller, key, digest, forget_at::timestamptz, deleted, session_id, version,
    last_activity::timestamptz, created_at::timestamptz, updated_at::timestamptz, expires_at::timestamptz, chat_state
FROM unnest(
    $2::text[], $3::text[], $4::text[], $5::bytea[], $6::text[], $7::boolean[],
    $8::text[], $9::bigint[], $10::text[], $11::text[], $12::text[], $13::text[], $14::text[]
) AS w (
    user_session_id, caller, key, digest, forget_at, deleted,
    session_id, version, last_activity, created_at, updated_at, expires_at, chat_state
)
ON CONFLICT (table_schema, user_session_id, caller, key) DO UPDATE
SET digest = excluded.digest, forget_at = excluded.forget_at, deleted = excluded.deleted,
    session_id = excluded.session_id, version = excluded.version, last_activity = excluded.last_activity,
    created_at = excluded.created_at, updated_at = excluded.updated_at, expires_at = excluded.expires_at,
    chat_state = excluded.chat_state
WHERE k.forget_at <= $1::text::timestamptz
RETURNING user_session_id
