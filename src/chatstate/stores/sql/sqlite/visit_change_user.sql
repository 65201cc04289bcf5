-- Change all visits of one user; {assignments} as in visit_change.sql.
UPDATE chat_sessions
SET {assignments}
WHERE user_session_id = :user_session_id;
