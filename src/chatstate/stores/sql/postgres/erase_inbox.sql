-- What has arrived in these conversations is as good as done, and what it said is erased.
UPDATE chatstate.inbox SET status = 'applied', document = '', error = ''
WHERE table_schema = {name} AND conversation = ANY ($1::text[]) AND document <> ''
RETURNING 1
