-- An empty database gets the table of the service that chatstate replaces, to the letter of its names and types. A table
-- that is there already keeps its rows, columns and indexes; every step is additive and instant. All of it may run twice.
DO $$
BEGIN
    IF to_regclass('{table}') IS NULL THEN
        CREATE TABLE {table} (
            session_id UUID PRIMARY KEY DEFAULT gen_random_uuid(),
            user_session_id VARCHAR(255) COLLATE "C" UNIQUE NOT NULL,
            chat_state TEXT NOT NULL,
            last_activity TIMESTAMPTZ NOT NULL DEFAULT NOW(),
            created_at TIMESTAMPTZ NOT NULL DEFAULT NOW(),
            updated_at TIMESTAMPTZ NOT NULL DEFAULT NOW()
        );
        CREATE INDEX idx_chat_state_sessions_last_activity ON {table} (last_activity, user_session_id);
        -- To the database lz4 costs a fraction of its default, pglz, but it makes states less small: with the default
        -- target, those of 4 KB and more would be kept apart from their rows. Not every server has lz4; adopted tables
        -- get both by `chatstate migrate --tune`.
        IF EXISTS (SELECT FROM pg_settings WHERE name = 'default_toast_compression' AND 'lz4' = ANY (enumvals)) THEN
            EXECUTE 'ALTER TABLE {table} ALTER COLUMN chat_state SET COMPRESSION lz4';
            ALTER TABLE {table} SET (toast_tuple_target = 2900);
        END IF;
    END IF;
END
$$;

ALTER TABLE {table} ADD COLUMN IF NOT EXISTS version BIGINT NOT NULL DEFAULT 1;

-- Other programs write to this table too. Where an UPDATE does not know the version, the trigger raises it; our own
-- statements raise it themselves, and for them the trigger's condition is false.
CREATE OR REPLACE FUNCTION chatstate.raise_version() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.version := OLD.version + 1;
    RETURN NEW;
END
$$;

DO $$
BEGIN
    IF NOT EXISTS (
        SELECT FROM pg_trigger WHERE tgrelid = '{table}'::regclass AND tgname = 'chatstate_raise_version'
    ) THEN
        CREATE TRIGGER chatstate_raise_version BEFORE UPDATE ON {table}
        FOR EACH ROW WHEN (NEW.version = OLD.version) EXECUTE FUNCTION chatstate.raise_version();
    END IF;
END
$$;
