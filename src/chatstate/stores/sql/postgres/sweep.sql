-- Remove sessions whose own time has come, but for those that somebody is writing to.
DELETE FROM {table} AS s
WHERE s.user_session_id = ANY (ARRAY(
    SELECT user_session_id FROM {table}
    WHERE expires_at <= $1::text::timestamptz
    ORDER BY expires_at LIMIT $2
    FOR UPDATE SKIP LOCKED
))
RETURNING 1
