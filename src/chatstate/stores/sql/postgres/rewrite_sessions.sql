-- Put another text in the place of one, if it still lies there.
UPDATE {table} SET chat_state = $5
WHERE user_session_id = $1 AND $2::text IS NOT NULL AND $3::text IS NOT NULL AND chat_state = $4
RETURNING 1
