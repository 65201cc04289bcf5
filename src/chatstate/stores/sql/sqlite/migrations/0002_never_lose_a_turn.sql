-- Expiry: how many microseconds after its last write a session expires, and when that is.
ALTER TABLE chat_state_sessions ADD COLUMN expires_in INTEGER;
ALTER TABLE chat_state_sessions ADD COLUMN expires_at INTEGER;
CREATE INDEX IF NOT EXISTS chat_state_sessions_expires_at ON chat_state_sessions (expires_at) WHERE expires_at IS NOT NULL;

-- Lists, newest activity first.
CREATE INDEX IF NOT EXISTS chat_state_sessions_last_activity ON chat_state_sessions (last_activity, user_session_id);

-- History: the versions that are kept, the current one among them.
CREATE TABLE IF NOT EXISTS versions (
    session_id TEXT NOT NULL,
    version INTEGER NOT NULL,
    last_activity INTEGER NOT NULL,
    saved_at INTEGER NOT NULL,
    chat_state TEXT NOT NULL,
    PRIMARY KEY (session_id, version)
) STRICT;

-- What is remembered of writes with an idempotency key. A state is there only where a write kept the one it found.
CREATE TABLE IF NOT EXISTS idempotency_keys (
    user_session_id TEXT NOT NULL,
    caller TEXT NOT NULL,
    key TEXT NOT NULL,
    digest BLOB NOT NULL,
    forget_at INTEGER NOT NULL,
    deleted INTEGER NOT NULL,
    session_id TEXT NOT NULL,
    version INTEGER NOT NULL,
    last_activity INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    expires_at INTEGER,
    chat_state TEXT,
    PRIMARY KEY (user_session_id, caller, key)
) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS idempotency_keys_forget_at ON idempotency_keys (forget_at);

-- Whoever removes a session removes all that it has said, also with a tool of SQLite's.
CREATE TRIGGER IF NOT EXISTS chat_state_sessions_forget AFTER DELETE ON chat_state_sessions
BEGIN
    DELETE FROM versions WHERE session_id = OLD.session_id;
    UPDATE idempotency_keys SET chat_state = NULL
    WHERE user_session_id = OLD.user_session_id AND chat_state IS NOT NULL;
END;
