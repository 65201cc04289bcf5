-- Messages that have arrived and that are to leave; see chatstate.mailbox. What is done is forgotten eight days after it
-- has arrived.
CREATE TABLE IF NOT EXISTS chatstate.inbox (
    table_schema TEXT COLLATE "C" NOT NULL,
    key TEXT COLLATE "C" NOT NULL,
    number BIGINT NOT NULL,
    conversation TEXT COLLATE "C" NOT NULL,
    document TEXT NOT NULL,
    status TEXT COLLATE "C" NOT NULL,
    sent_at TIMESTAMPTZ NOT NULL,
    received_at TIMESTAMPTZ NOT NULL,
    due_at TIMESTAMPTZ NOT NULL,
    tries INTEGER NOT NULL DEFAULT 0,
    error TEXT NOT NULL DEFAULT '',
    PRIMARY KEY (table_schema, key)
);
CREATE INDEX IF NOT EXISTS inbox_pending ON chatstate.inbox (table_schema, conversation, sent_at, number)
    WHERE status = 'pending';
CREATE INDEX IF NOT EXISTS inbox_conversation ON chatstate.inbox (table_schema, conversation, sent_at);
CREATE INDEX IF NOT EXISTS inbox_aside ON chatstate.inbox (table_schema, received_at) WHERE status = 'aside';
CREATE INDEX IF NOT EXISTS inbox_received_at ON chatstate.inbox (table_schema, received_at);

CREATE TABLE IF NOT EXISTS chatstate.outbox (
    table_schema TEXT COLLATE "C" NOT NULL,
    key TEXT COLLATE "C" NOT NULL,
    number BIGINT GENERATED ALWAYS AS IDENTITY,
    conversation TEXT COLLATE "C" NOT NULL,
    user_session_id TEXT COLLATE "C" NOT NULL,
    document TEXT NOT NULL,
    status TEXT COLLATE "C" NOT NULL,
    rank SMALLINT NOT NULL,
    provider_key TEXT COLLATE "C",
    created_at TIMESTAMPTZ NOT NULL,
    due_at TIMESTAMPTZ NOT NULL,
    tries INTEGER NOT NULL DEFAULT 0,
    error TEXT NOT NULL DEFAULT '',
    PRIMARY KEY (table_schema, key)
);
CREATE INDEX IF NOT EXISTS outbox_queued ON chatstate.outbox (table_schema, conversation, number)
    WHERE status = 'queued';
CREATE INDEX IF NOT EXISTS outbox_session ON chatstate.outbox (table_schema, user_session_id, number);
CREATE INDEX IF NOT EXISTS outbox_provider ON chatstate.outbox (table_schema, provider_key)
    WHERE provider_key IS NOT NULL;
CREATE INDEX IF NOT EXISTS outbox_created_at ON chatstate.outbox (table_schema, created_at);
