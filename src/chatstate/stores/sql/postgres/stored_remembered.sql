-- The same of remembered requests.
SELECT s.user_session_id, s.caller, s.key, CASE WHEN {wanting} THEN s.chat_state END
FROM chatstate.idempotency_keys AS s
WHERE s.table_schema = {name} AND (s.user_session_id, s.caller, s.key) > ($1::text, $2::text, $3::text)
ORDER BY s.user_session_id, s.caller, s.key
LIMIT $5
