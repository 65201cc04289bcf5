-- What is remembered of writes with these idempotency keys. LATERAL with LIMIT looks each up by the primary key, also if
-- the plan was made while the table was empty; a join, or one condition more inside, may then read all that comes later.
-- Whoever is told of the first write again shall not be told before the standbys have it: a lock is written to the log, so
-- the end of this waits for them; by reading alone it would not.
SELECT k.user_session_id, k.digest, k.deleted, k.session_id, k.last_activity, k.created_at, k.updated_at, k.version,
    k.expires_at, k.chat_state
FROM unnest($2::text[], $3::text[], $4::text[]) AS w (user_session_id, caller, key)
CROSS JOIN LATERAL (
    SELECT *
    FROM chatstate.idempotency_keys AS k
    WHERE k.table_schema = {name} AND k.user_session_id = w.user_session_id AND k.caller = w.caller AND k.key = w.key
    LIMIT 1
    FOR KEY SHARE
) AS k
WHERE k.forget_at > $1::text::timestamptz
