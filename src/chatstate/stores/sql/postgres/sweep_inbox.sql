-- Forget what has arrived long ago; what is not done yet only when nothing is kept for so long.
DELETE FROM chatstate.inbox
WHERE table_schema = {name} AND key = ANY (ARRAY(
    SELECT key FROM chatstate.inbox
    WHERE table_schema = {name} AND received_at <= $1::text::timestamptz
        AND (status NOT IN ('pending', 'aside') OR received_at <= $2::text::timestamptz)
    LIMIT $3
    FOR UPDATE SKIP LOCKED
))
RETURNING 1
