-- Remove the sessions that are present in a version that their write expects, and those that have expired; tags and
-- locks as in update.sql.
WITH w AS (
    SELECT * FROM unnest($3::text[], $4::text[], $5::text[]) AS w (user_session_id, only_tags, unless_tags)
), locked AS (
    SELECT user_session_id
    FROM {table}
    WHERE user_session_id = ANY ($3::text[])
    ORDER BY user_session_id COLLATE "C"
    FOR UPDATE
)
DELETE FROM {table} AS s
USING w
JOIN locked USING (user_session_id)
WHERE s.user_session_id = w.user_session_id
    AND ({gone} OR (
        (w.only_tags IS NULL OR s.session_id::text || '-' || s.version = ANY (string_to_array(w.only_tags, E'\n')))
        AND s.session_id::text || '-' || s.version <> ALL (string_to_array(w.unless_tags, E'\n'))
    ))
RETURNING s.session_id::text, s.user_session_id, s.version, {gone}
