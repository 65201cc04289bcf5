-- The sessions with these ids. Other programs may store infinity, or years that no client can read: times end where the
-- calendar does, at {first} and {last}.
SELECT
    session_id::text, user_session_id, chat_state,
    least(greatest(last_activity::timestamptz, {first}), {last}),
    least(greatest(created_at::timestamptz, {first}), {last}),
    least(greatest(updated_at::timestamptz, {first}), {last}),
    version
FROM {table}
WHERE user_session_id = ANY ($1::text[])
