-- What the writes that changed nothing have run into.
SELECT s.user_session_id, s.session_id::text, s.version
FROM {table} AS s
WHERE s.user_session_id = ANY ($3::text[]) AND NOT {gone}
