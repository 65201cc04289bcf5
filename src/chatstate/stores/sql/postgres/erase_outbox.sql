-- What was to leave for this session.
DELETE FROM chatstate.outbox
WHERE table_schema = {name} AND user_session_id = $1
RETURNING 1
