-- Expiry: how many seconds after its last write a session expires, and when that is. Instant, rows or no rows. The index
-- is for sweeping; where there are rows it would hold up writers, so there it waits for `chatstate migrate --tune`.
ALTER TABLE {table} ADD COLUMN IF NOT EXISTS expires_in_seconds BIGINT;
ALTER TABLE {table} ADD COLUMN IF NOT EXISTS expires_at TIMESTAMPTZ;
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM {table}) THEN
        CREATE INDEX IF NOT EXISTS idx_chat_state_sessions_expires_at ON {table} (expires_at)
        WHERE expires_at IS NOT NULL;
    END IF;
END
$$;

-- History: the versions that are kept, the current one among them.
CREATE TABLE IF NOT EXISTS chatstate.versions (
    table_schema TEXT COLLATE "C" NOT NULL,
    session_id TEXT COLLATE "C" NOT NULL,
    version BIGINT NOT NULL,
    last_activity TIMESTAMPTZ NOT NULL,
    saved_at TIMESTAMPTZ NOT NULL,
    chat_state TEXT NOT NULL,
    PRIMARY KEY (table_schema, session_id, version)
);

-- What is remembered of writes with an idempotency key. A state is there only where a write kept the one it found.
CREATE TABLE IF NOT EXISTS chatstate.idempotency_keys (
    table_schema TEXT COLLATE "C" NOT NULL,
    user_session_id TEXT COLLATE "C" NOT NULL,
    caller TEXT COLLATE "C" NOT NULL,
    key TEXT COLLATE "C" NOT NULL,
    digest BYTEA NOT NULL,
    forget_at TIMESTAMPTZ NOT NULL,
    deleted BOOLEAN NOT NULL,
    session_id TEXT NOT NULL,
    version BIGINT NOT NULL,
    last_activity TIMESTAMPTZ NOT NULL,
    created_at TIMESTAMPTZ NOT NULL,
    updated_at TIMESTAMPTZ NOT NULL,
    expires_at TIMESTAMPTZ,
    chat_state TEXT,
    PRIMARY KEY (table_schema, user_session_id, caller, key)
);
CREATE INDEX IF NOT EXISTS idempotency_keys_forget_at ON chatstate.idempotency_keys (forget_at);

DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_settings WHERE name = 'default_toast_compression' AND 'lz4' = ANY (enumvals)) THEN
        EXECUTE 'ALTER TABLE chatstate.versions ALTER COLUMN chat_state SET COMPRESSION lz4';
    END IF;
END
$$;

-- A program that does not know the version does not know the expiry either: its write renews that too, and sets
-- updated_at if the program has not. A row that is given to a new session starts at version 1.
CREATE OR REPLACE FUNCTION chatstate.raise_version() RETURNS trigger LANGUAGE plpgsql SET timezone = 'UTC' AS $$
BEGIN
    IF NEW.session_id IS DISTINCT FROM OLD.session_id THEN
        RETURN NEW;
    END IF;
    NEW.version := OLD.version + 1;
    IF NEW.updated_at = OLD.updated_at THEN
        NEW.updated_at := clock_timestamp();
    END IF;
    IF NEW.expires_at = OLD.expires_at THEN
        NEW.expires_at := clock_timestamp() + NEW.expires_in_seconds * interval '1 second';
    END IF;
    RETURN NEW;
END
$$;

-- Whoever removes a session, or gives its row to another, removes all that it has said; also a program that may not look
-- into our tables, so the function runs with the rights of their owner.
CREATE OR REPLACE FUNCTION chatstate.forget() RETURNS trigger LANGUAGE plpgsql
SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    DELETE FROM chatstate.versions
    WHERE table_schema = TG_TABLE_SCHEMA AND session_id = OLD.session_id::text;
    UPDATE chatstate.idempotency_keys SET chat_state = NULL
    WHERE table_schema = TG_TABLE_SCHEMA AND user_session_id = OLD.user_session_id AND chat_state IS NOT NULL;
    RETURN CASE WHEN TG_OP = 'UPDATE' THEN NEW ELSE OLD END;
END
$$;

DO $$
BEGIN
    IF NOT EXISTS (
        SELECT FROM pg_trigger WHERE tgrelid = '{table}'::regclass AND tgname = 'chatstate_forget_deleted'
    ) THEN
        CREATE TRIGGER chatstate_forget_deleted AFTER DELETE ON {table}
        FOR EACH ROW EXECUTE FUNCTION chatstate.forget();
    END IF;
    IF NOT EXISTS (
        SELECT FROM pg_trigger WHERE tgrelid = '{table}'::regclass AND tgname = 'chatstate_forget_replaced'
    ) THEN
        CREATE TRIGGER chatstate_forget_replaced BEFORE UPDATE ON {table}
        FOR EACH ROW WHEN (NEW.session_id <> OLD.session_id) EXECUTE FUNCTION chatstate.forget();
    END IF;
END
$$;
