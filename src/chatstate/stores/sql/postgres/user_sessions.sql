-- The user sessions that visits of a person name, in the order of their ids.
SELECT DISTINCT user_session_id
FROM chatstate.visits
WHERE table_schema = {name} AND user_id = $1 AND user_session_id > $2 AND starts_with(user_session_id, $3)
    AND coalesce(user_session_id = $5::text, true)
ORDER BY user_session_id
LIMIT $4
