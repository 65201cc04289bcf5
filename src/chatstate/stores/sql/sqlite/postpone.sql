-- Try a message again later, or put it aside.
UPDATE inbox
SET status = CASE WHEN :aside THEN 'aside' ELSE 'pending' END, due_at = :due_at, tries = :tries, error = :error
WHERE key = :key AND status IN ('pending', 'aside')
RETURNING 1;
