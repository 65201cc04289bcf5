-- A message is done, and what it said is not kept any longer.
UPDATE inbox SET status = :status, document = '', error = ''
WHERE key = :key AND status IN ('pending', 'aside')
RETURNING 1;
