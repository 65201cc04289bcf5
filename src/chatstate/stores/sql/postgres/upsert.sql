-- Create the sessions or replace their states, whatever is there. The ids arrive sorted, so rows are locked in order.
-- A session that has expired gives its row to the new one. A null expires_in stays as it is.
INSERT INTO {table} AS s (
    user_session_id, session_id, chat_state, last_activity, created_at, updated_at, version,
    expires_in_seconds, expires_at
)
SELECT w.user_session_id, w.session_id::{session_id_type}, w.chat_state,
    w.last_activity::timestamptz, w.now::timestamptz, w.now::timestamptz, 1,
    w.expires_in, w.now::timestamptz + w.expires_in * interval '1 second'
FROM unnest($3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::bigint[])
    AS w (user_session_id, session_id, chat_state, last_activity, now, expires_in)
ON CONFLICT (user_session_id) DO UPDATE
SET chat_state = excluded.chat_state,
    last_activity = excluded.last_activity,
    updated_at = excluded.updated_at,
    session_id = CASE WHEN {gone} THEN excluded.session_id ELSE s.session_id END,
    created_at = CASE WHEN {gone} THEN excluded.created_at ELSE s.created_at END,
    version = CASE WHEN {gone} THEN 1 ELSE s.version + 1 END,
    expires_in_seconds = CASE WHEN {gone} THEN excluded.expires_in_seconds
        ELSE coalesce(excluded.expires_in_seconds, s.expires_in_seconds) END,
    expires_at = CASE WHEN {gone} OR excluded.expires_at IS NOT NULL THEN excluded.expires_at
        ELSE excluded.updated_at::timestamptz + s.expires_in_seconds * interval '1 second' END
RETURNING {saved}
