-- The rows that hold these session_ids under another name: a program that gave a session to another user has left them.
DELETE FROM {table} AS t
USING unnest($1::text[], $2::text[]) AS w (user_session_id, session_id)
WHERE t.session_id = w.session_id::{session_id_type} AND t.user_session_id <> w.user_session_id
