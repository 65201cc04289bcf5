-- Change the sessions that are present in a version that their write expects. A null state stays as it is, and so does a
-- null expires_in; 0 takes the expiry away.
-- only_tags and unless_tags are lines of tags (session_id-version); null only_tags mean every version.
-- The new states ($4) are taken from their array at the end: a join would copy each of them several times.
-- The locks are taken in one order; PostgreSQL checks the tags again on whatever version the lock waited for.
WITH w AS (
    SELECT *
    FROM unnest($3::text[], $5::text[], $6::text[], $7::bigint[], $8::text[], $9::text[]) WITH ORDINALITY
        AS w (user_session_id, last_activity, now, expires_in, only_tags, unless_tags, number)
), locked AS (
    SELECT user_session_id
    FROM {table}
    WHERE user_session_id = ANY ($3::text[])
    ORDER BY user_session_id COLLATE "C"
    FOR UPDATE
)
UPDATE {table} AS s
SET chat_state = coalesce(($4::text[])[w.number], s.chat_state),
    last_activity = w.last_activity::timestamptz,
    updated_at = w.now::timestamptz,
    version = s.version + 1,
    expires_in_seconds = nullif(coalesce(w.expires_in, s.expires_in_seconds), 0),
    expires_at = w.now::timestamptz
        + nullif(coalesce(w.expires_in, s.expires_in_seconds), 0) * interval '1 second'
FROM w
JOIN locked USING (user_session_id)
WHERE s.user_session_id = w.user_session_id AND NOT {gone}
    AND (w.only_tags IS NULL OR s.session_id::text || '-' || s.version = ANY (string_to_array(w.only_tags, E'\n')))
    AND s.session_id::text || '-' || s.version <> ALL (string_to_array(w.unless_tags, E'\n'))
RETURNING {updated}
