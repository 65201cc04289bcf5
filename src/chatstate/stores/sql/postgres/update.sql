-- Change the sessions that are present in a version that their write expects. A null state stays as it is.
-- only_tags and unless_tags are lines of tags (session_id-version); null only_tags mean every version.
-- The locks are taken in one order; PostgreSQL checks the tags again on whatever version the lock waited for.
WITH w AS (
    SELECT *
    FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[])
        AS w (user_session_id, chat_state, last_activity, now, only_tags, unless_tags)
), locked AS (
    SELECT user_session_id
    FROM {table}
    WHERE user_session_id = ANY ($1::text[])
    ORDER BY user_session_id COLLATE "C"
    FOR UPDATE
)
UPDATE {table} AS s
SET chat_state = coalesce(w.chat_state, s.chat_state),
    last_activity = w.last_activity::timestamptz,
    updated_at = w.now::timestamptz,
    version = s.version + 1
FROM w
JOIN locked USING (user_session_id)
WHERE s.user_session_id = w.user_session_id
    AND (w.only_tags IS NULL OR s.session_id::text || '-' || s.version = ANY (string_to_array(w.only_tags, E'\n')))
    AND s.session_id::text || '-' || s.version <> ALL (string_to_array(w.unless_tags, E'\n'))
RETURNING
    s.session_id::text, s.user_session_id, CASE WHEN w.chat_state IS NULL THEN s.chat_state END AS kept_state,
    least(greatest(s.last_activity::timestamptz, {first}), {last}),
    least(greatest(s.created_at::timestamptz, {first}), {last}),
    least(greatest(s.updated_at::timestamptz, {first}), {last}),
    s.version
