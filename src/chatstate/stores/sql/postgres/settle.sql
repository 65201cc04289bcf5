-- Messages are done, and what they said is not kept any longer.
UPDATE chatstate.inbox AS i SET status = w.status, document = '', error = ''
FROM unnest($1::text[], $2::text[]) AS w (key, status)
WHERE i.table_schema = {name} AND i.key = w.key AND i.status IN ('pending', 'aside')
RETURNING i.key
