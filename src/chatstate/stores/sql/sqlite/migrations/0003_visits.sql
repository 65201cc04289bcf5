-- Visits, one row for each chat session, for analytics. Times are microseconds since 1970-01-01T00:00:00Z, in the years
-- 1 to 9999. The duration is what the client gave, else it follows from the times, whoever writes them: whole minutes,
-- half a minute counting as one.
CREATE TABLE IF NOT EXISTS chat_sessions (
    session_id TEXT PRIMARY KEY NOT NULL CHECK (instr(session_id, char(0)) = 0),
    user_session_id TEXT NOT NULL CHECK (instr(user_session_id, char(0)) = 0),
    user_id TEXT CHECK (instr(user_id, char(0)) = 0),
    session_start_time INTEGER NOT NULL CHECK (session_start_time BETWEEN -62135596800000000 AND 253402300799999999),
    session_end_time INTEGER CHECK (session_end_time BETWEEN -62135596800000000 AND 253402300799999999),
    total_messages_count INTEGER NOT NULL DEFAULT 0 CHECK (total_messages_count BETWEEN 0 AND 2147483647),
    given_duration_minutes INTEGER CHECK (given_duration_minutes BETWEEN 0 AND 2147483647),
    session_duration_minutes INTEGER GENERATED ALWAYS AS (
        coalesce(
            given_duration_minutes,
            CASE WHEN session_end_time >= session_start_time
                THEN (session_end_time - session_start_time + 30000000) / 60000000 END
        )
    ) STORED,
    session_completed INTEGER NOT NULL DEFAULT 0 CHECK (session_completed IN (0, 1)),
    session_outcome TEXT CHECK (instr(session_outcome, char(0)) = 0),
    final_step_reached TEXT CHECK (instr(final_step_reached, char(0)) = 0),
    user_agent TEXT CHECK (instr(user_agent, char(0)) = 0),
    ip_address TEXT CHECK (instr(ip_address, char(0)) = 0),
    device_type TEXT CHECK (instr(device_type, char(0)) = 0),
    created_at INTEGER NOT NULL CHECK (created_at BETWEEN -62135596800000000 AND 253402300799999999)
) STRICT;
CREATE INDEX IF NOT EXISTS chat_sessions_start ON chat_sessions (session_start_time, session_id);
CREATE INDEX IF NOT EXISTS chat_sessions_user ON chat_sessions (user_session_id, session_start_time, session_id);
