-- Remove what has expired from a page of ids, but for what somebody is writing to.
WITH page AS (
    SELECT user_session_id FROM {table}
    WHERE user_session_id > $3 ORDER BY user_session_id LIMIT $4
), expired AS (
    SELECT s.user_session_id FROM {table} AS s
    WHERE s.user_session_id = ANY (ARRAY(SELECT user_session_id FROM page)) AND {gone}
    FOR UPDATE SKIP LOCKED
), removed AS (
    DELETE FROM {table} AS s
    WHERE s.user_session_id = ANY (ARRAY(SELECT user_session_id FROM expired))
    RETURNING 1
)
SELECT (SELECT count(*) FROM removed), (SELECT max(user_session_id) FROM page), (SELECT count(*) FROM page)
