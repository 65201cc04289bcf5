-- Remove the visits of user sessions, but for those that name another person than the one that is given, if one is.
WITH w AS (
    SELECT * FROM unnest($1::text[], $2::text[]) AS w (user_session_id, user_id)
), locked AS (
    SELECT session_id
    FROM chatstate.visits
    WHERE table_schema = {name} AND user_session_id = ANY ($1::text[])
    ORDER BY session_id
    FOR UPDATE
), erased AS (
    DELETE FROM chatstate.visits AS v
    USING w, locked
    WHERE v.table_schema = {name} AND v.session_id = locked.session_id AND v.user_session_id = w.user_session_id
        AND (w.user_id IS NULL OR coalesce(v.user_id, w.user_id) = w.user_id)
    RETURNING v.user_session_id
)
SELECT user_session_id, count(*) FROM erased GROUP BY user_session_id
