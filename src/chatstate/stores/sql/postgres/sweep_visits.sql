-- Remove visits that have been kept for long enough.
DELETE FROM chatstate.visits
WHERE table_schema = {name} AND session_id = ANY (ARRAY(
    SELECT session_id FROM chatstate.visits
    WHERE table_schema = {name} AND created_at <= $1::text::timestamptz
    LIMIT $2
    FOR UPDATE SKIP LOCKED
))
RETURNING 1
