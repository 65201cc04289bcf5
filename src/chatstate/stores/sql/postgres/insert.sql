-- Create the sessions that are absent.
INSERT INTO {table} AS s (
    user_session_id, session_id, chat_state, last_activity, created_at, updated_at, version
)
SELECT w.user_session_id, w.session_id::{session_id_type}, w.chat_state,
    w.last_activity::timestamptz, w.now::timestamptz, w.now::timestamptz, 1
FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[])
    AS w (user_session_id, session_id, chat_state, last_activity, now)
ON CONFLICT (user_session_id) DO NOTHING
RETURNING
    session_id::text, user_session_id, NULL AS kept_state,
    least(greatest(last_activity::timestamptz, {first}), {last}),
    least(greatest(created_at::timestamptz, {first}), {last}),
    least(greatest(updated_at::timestamptz, {first}), {last}),
    version
