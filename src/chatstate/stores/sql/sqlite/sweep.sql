-- Remove sessions whose own time has come.
DELETE FROM chat_state_sessions
WHERE rowid IN (SELECT rowid FROM chat_state_sessions WHERE expires_at <= :now ORDER BY expires_at LIMIT :limit)
RETURNING 1;
