-- The same of a record.
UPDATE records SET document = :replaced_by
WHERE collection = :first AND key = :second AND document = :text
RETURNING 1;
