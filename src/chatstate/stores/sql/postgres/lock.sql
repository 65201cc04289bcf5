-- Lock the rows of a batch that needs several statements, in one order, so that two servers cannot deadlock.
SELECT user_session_id
FROM {table}
WHERE user_session_id = ANY ($1::text[])
ORDER BY user_session_id COLLATE "C"
FOR UPDATE
