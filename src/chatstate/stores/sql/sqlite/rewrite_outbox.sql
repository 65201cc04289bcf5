-- The same of a message that is to leave.
UPDATE outbox SET document = :replaced_by WHERE key = :first AND document = :text
RETURNING 1;
