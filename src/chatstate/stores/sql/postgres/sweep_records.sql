-- Remove records that have expired.
DELETE FROM chatstate.records
WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM chatstate.records
    WHERE table_schema = {name} AND expires_at <= $1::text::timestamptz
    LIMIT $2
    FOR UPDATE SKIP LOCKED
))
RETURNING 1
