-- What was to leave for this session.
DELETE FROM outbox WHERE user_session_id = :user_session_id
RETURNING 1;
