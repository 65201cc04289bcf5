-- Remove visits that have been kept for long enough.
DELETE FROM chat_sessions
WHERE rowid IN (SELECT rowid FROM chat_sessions WHERE created_at <= :kept_since LIMIT :limit)
RETURNING 1;
