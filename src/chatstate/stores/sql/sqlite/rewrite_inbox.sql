-- The same of a message that has arrived.
UPDATE inbox SET document = :replaced_by WHERE key = :first AND document = :text
RETURNING 1;
