-- Put a message into the outbox, unless it is there.
INSERT INTO outbox (key, conversation, user_session_id, document, status, rank, created_at, due_at)
VALUES (:key, :conversation, :user_session_id, :document, 'queued', 0, :now, :now)
ON CONFLICT (key) DO NOTHING;
