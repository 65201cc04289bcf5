-- Change all visits of users, and count them; otherwise as visit_change.sql.
WITH w AS (
    SELECT * FROM unnest($1::text[], $2::jsonb[]) AS w (user_session_id, changes)
), locked AS (
    SELECT session_id
    FROM chatstate.visits
    WHERE table_schema = {name} AND user_session_id = ANY ($1::text[])
    ORDER BY session_id
    FOR UPDATE
), changed AS (
    UPDATE chatstate.visits AS v
    SET {assignments}
    FROM w, locked
    WHERE v.table_schema = {name} AND v.session_id = locked.session_id AND v.user_session_id = w.user_session_id
    RETURNING v.user_session_id
)
SELECT user_session_id, count(*) FROM changed GROUP BY user_session_id
