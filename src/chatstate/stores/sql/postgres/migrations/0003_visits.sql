-- Visits, one row for each chat session, for analytics, of all schemas that this database serves. Times are in the years
-- 1 to 9999. The duration is what the client gave, else it follows from the times, whoever writes them: whole minutes,
-- half a minute counting as one.
CREATE TABLE IF NOT EXISTS chatstate.visits (
    table_schema TEXT COLLATE "C" NOT NULL,
    session_id UUID NOT NULL DEFAULT gen_random_uuid(),
    user_session_id TEXT COLLATE "C" NOT NULL,
    user_id TEXT,
    session_start_time TIMESTAMPTZ NOT NULL DEFAULT now()
        CHECK (session_start_time BETWEEN '0001-01-01Z' AND '9999-12-31 23:59:59.999999Z'),
    session_end_time TIMESTAMPTZ CHECK (session_end_time BETWEEN '0001-01-01Z' AND '9999-12-31 23:59:59.999999Z'),
    total_messages_count INTEGER NOT NULL DEFAULT 0 CHECK (total_messages_count >= 0),
    given_duration_minutes INTEGER CHECK (given_duration_minutes >= 0),
    session_duration_minutes BIGINT GENERATED ALWAYS AS (
        coalesce(
            given_duration_minutes,
            CASE WHEN session_end_time >= session_start_time
                THEN round(extract(epoch FROM session_end_time - session_start_time)::numeric / 60)::bigint END
        )
    ) STORED,
    session_completed BOOLEAN NOT NULL DEFAULT FALSE,
    session_outcome TEXT,
    final_step_reached TEXT,
    user_agent TEXT,
    ip_address INET,
    device_type TEXT,
    created_at TIMESTAMPTZ NOT NULL DEFAULT now()
        CHECK (created_at BETWEEN '0001-01-01Z' AND '9999-12-31 23:59:59.999999Z'),
    PRIMARY KEY (table_schema, session_id)
);
CREATE INDEX IF NOT EXISTS visits_start ON chatstate.visits (table_schema, session_start_time, session_id);
CREATE INDEX IF NOT EXISTS visits_user
    ON chatstate.visits (table_schema, user_session_id, session_start_time, session_id);
