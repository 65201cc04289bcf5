-- Messages that have arrived and that are to leave; see chatstate.mailbox. Times are microseconds since
-- 1970-01-01T00:00:00Z. What is done is forgotten eight days after it has arrived.
CREATE TABLE IF NOT EXISTS inbox (
    key TEXT PRIMARY KEY,
    number INTEGER NOT NULL,
    conversation TEXT NOT NULL,
    document TEXT NOT NULL CHECK (instr(document, char(0)) = 0),
    status TEXT NOT NULL,
    sent_at INTEGER NOT NULL,
    received_at INTEGER NOT NULL,
    due_at INTEGER NOT NULL,
    tries INTEGER NOT NULL DEFAULT 0,
    error TEXT NOT NULL DEFAULT ''
) STRICT;
CREATE INDEX IF NOT EXISTS inbox_pending ON inbox (conversation, sent_at, number) WHERE status = 'pending';
CREATE INDEX IF NOT EXISTS inbox_conversation ON inbox (conversation, sent_at);
CREATE INDEX IF NOT EXISTS inbox_aside ON inbox (received_at) WHERE status = 'aside';
CREATE INDEX IF NOT EXISTS inbox_received_at ON inbox (received_at);

CREATE TABLE IF NOT EXISTS outbox (
    number INTEGER PRIMARY KEY,
    key TEXT NOT NULL UNIQUE,
    conversation TEXT NOT NULL,
    user_session_id TEXT NOT NULL,
    document TEXT NOT NULL CHECK (instr(document, char(0)) = 0),
    status TEXT NOT NULL,
    rank INTEGER NOT NULL,
    provider_key TEXT,
    created_at INTEGER NOT NULL,
    due_at INTEGER NOT NULL,
    tries INTEGER NOT NULL DEFAULT 0,
    error TEXT NOT NULL DEFAULT ''
) STRICT;
CREATE INDEX IF NOT EXISTS outbox_queued ON outbox (conversation, number) WHERE status = 'queued';
CREATE INDEX IF NOT EXISTS outbox_session ON outbox (user_session_id, number);
CREATE INDEX IF NOT EXISTS outbox_provider ON outbox (provider_key) WHERE provider_key IS NOT NULL;
CREATE INDEX IF NOT EXISTS outbox_created_at ON outbox (created_at);
