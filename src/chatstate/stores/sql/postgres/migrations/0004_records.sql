-- What the server itself remembers: API keys, keys that sign tokens, revocations; see chatstate.record.
CREATE TABLE IF NOT EXISTS chatstate.records (
    table_schema TEXT COLLATE "C" NOT NULL,
    collection TEXT COLLATE "C" NOT NULL,
    key TEXT COLLATE "C" NOT NULL,
    document TEXT NOT NULL,
    version BIGINT NOT NULL,
    changed_at TIMESTAMPTZ NOT NULL,
    expires_at TIMESTAMPTZ,
    PRIMARY KEY (table_schema, collection, key)
);
CREATE INDEX IF NOT EXISTS records_changed_at ON chatstate.records (table_schema, collection, changed_at);
CREATE INDEX IF NOT EXISTS records_expires_at ON chatstate.records (table_schema, expires_at)
    WHERE expires_at IS NOT NULL;

-- Erasing everything of a person, who stands in visits only; and visits that have been kept for long enough. Where there
-- are visits, building the indexes would hold up writers, so there it waits for `chatstate migrate --tune`.
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM chatstate.visits) THEN
        CREATE INDEX IF NOT EXISTS visits_person ON chatstate.visits (table_schema, user_id, user_session_id)
            WHERE user_id IS NOT NULL;
        CREATE INDEX IF NOT EXISTS visits_created_at ON chatstate.visits (table_schema, created_at);
    END IF;
END
$$;
