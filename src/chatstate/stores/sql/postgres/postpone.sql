-- Try a message again later, or put it aside.
UPDATE chatstate.inbox
SET status = CASE WHEN $2::boolean THEN 'aside' ELSE 'pending' END, due_at = $3::text::timestamptz, tries = $4, error = $5
WHERE table_schema = {name} AND key = $1 AND status IN ('pending', 'aside')
RETURNING 1
