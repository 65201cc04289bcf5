-- What the server itself remembers: API keys, keys that sign tokens, revocations; see chatstate.record. Times are
-- microseconds since 1970-01-01T00:00:00Z.
CREATE TABLE IF NOT EXISTS records (
    collection TEXT NOT NULL,
    key TEXT NOT NULL CHECK (instr(key, char(0)) = 0),
    document TEXT NOT NULL CHECK (instr(document, char(0)) = 0),
    version INTEGER NOT NULL,
    changed_at INTEGER NOT NULL,
    expires_at INTEGER,
    PRIMARY KEY (collection, key)
) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS records_changed_at ON records (collection, changed_at);
CREATE INDEX IF NOT EXISTS records_expires_at ON records (expires_at) WHERE expires_at IS NOT NULL;

-- Erasing everything of a person, who stands in visits only; and visits that have been kept for long enough.
CREATE INDEX IF NOT EXISTS chat_sessions_person ON chat_sessions (user_id) WHERE user_id IS NOT NULL;
CREATE INDEX IF NOT EXISTS chat_sessions_created_at ON chat_sessions (created_at);
