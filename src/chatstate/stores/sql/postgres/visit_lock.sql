-- Lock the rows of a batch that changes visits by id and by user, in one order, so that two servers cannot deadlock.
SELECT 1
FROM chatstate.visits
WHERE table_schema = {name} AND (session_id = ANY ($1::uuid[]) OR user_session_id = ANY ($2::text[]))
ORDER BY session_id
FOR UPDATE
