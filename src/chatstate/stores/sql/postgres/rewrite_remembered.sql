-- The same of a remembered request.
UPDATE chatstate.idempotency_keys SET chat_state = $5
WHERE table_schema = {name} AND user_session_id = $1 AND caller = $2 AND key = $3 AND chat_state = $4
RETURNING 1
