-- Create the sessions that are absent, or have expired; these give their rows to the new ones.
INSERT INTO {table} AS s (
    user_session_id, session_id, chat_state, last_activity, created_at, updated_at, version,
    expires_in_seconds, expires_at
)
SELECT w.user_session_id, w.session_id::{session_id_type}, w.chat_state,
    w.last_activity::timestamptz, w.now::timestamptz, w.now::timestamptz, 1,
    nullif(w.expires_in, 0), w.now::timestamptz + nullif(w.expires_in, 0) * interval '1 second'
FROM unnest($3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::bigint[])
    AS w (user_session_id, session_id, chat_state, last_activity, now, expires_in)
ON CONFLICT (user_session_id) DO UPDATE
SET session_id = excluded.session_id,
    chat_state = excluded.chat_state,
    last_activity = excluded.last_activity,
    created_at = excluded.created_at,
    updated_at = excluded.updated_at,
    version = 1,
    expires_in_seconds = excluded.expires_in_seconds,
    expires_at = excluded.expires_at
WHERE {gone}
RETURNING {saved}
