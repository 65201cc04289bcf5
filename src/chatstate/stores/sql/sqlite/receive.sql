-- Keep a message that has arrived, unless it is known.
INSERT INTO inbox (key, number, conversation, document, status, sent_at, received_at, due_at)
VALUES (:key, :number, :conversation, :document, :status, :sent_at, :now, :now)
ON CONFLICT (key) DO NOTHING
RETURNING 1;
