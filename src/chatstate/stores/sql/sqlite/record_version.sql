-- History: the version that a write has made.
INSERT OR REPLACE INTO versions (session_id, version, last_activity, saved_at, chat_state)
VALUES (:session_id, :version, :last_activity, :now, :chat_state);
