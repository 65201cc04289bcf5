-- Times are microseconds since 1970-01-01T00:00:00Z.
CREATE TABLE IF NOT EXISTS chat_state_sessions (
    user_session_id TEXT PRIMARY KEY NOT NULL,
    session_id TEXT NOT NULL,
    chat_state TEXT NOT NULL CHECK (instr(chat_state, char(0)) = 0),
    last_activity INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    version INTEGER NOT NULL
) STRICT;
