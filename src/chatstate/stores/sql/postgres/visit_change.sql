-- Change visits by their ids. A change is a JSON object of columns; those that it does not name stay as they are, also
-- when another program has written them while the lock was waited for. The locks are taken in one order.
WITH w AS (
    SELECT * FROM unnest($1::uuid[], $2::jsonb[], $3::text[], $4::text[]) AS w (session_id, changes, prefix, only_session)
), locked AS (
    SELECT session_id
    FROM chatstate.visits
    WHERE table_schema = {name} AND session_id = ANY ($1::uuid[])
    ORDER BY session_id
    FOR UPDATE
)
UPDATE chatstate.visits AS v
SET {assignments}
FROM w
JOIN locked USING (session_id)
WHERE v.table_schema = {name} AND v.session_id = w.session_id
    AND starts_with(v.user_session_id, w.prefix) AND coalesce(v.user_session_id = w.only_session, true)
RETURNING {columns}
