-- What has arrived in these conversations is as good as done, and what it said is erased.
UPDATE inbox SET status = 'applied', document = '', error = ''
WHERE conversation IN (SELECT value FROM json_each(:conversations)) AND document <> ''
RETURNING 1;
