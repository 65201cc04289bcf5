-- Remove records that have expired.
WITH old AS MATERIALIZED (
    SELECT collection, key FROM chatstate.records
    WHERE table_schema = {name} AND expires_at <= $1::text::timestamptz
    LIMIT $2
    FOR UPDATE SKIP LOCKED
)
DELETE FROM chatstate.records AS r
USING old
WHERE r.table_schema = {name} AND r.collection = old.collection AND r.key = old.key
RETURNING 1
