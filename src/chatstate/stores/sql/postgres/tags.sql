-- What the writes that changed nothing have run into.
SELECT user_session_id, session_id::text, version
FROM {table}
WHERE user_session_id = ANY ($1::text[])
