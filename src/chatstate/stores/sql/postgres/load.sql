-- The sessions with these ids that have not expired. Other programs may store infinity, or years that no client can
-- read: times end where the calendar does, at {first} and {last}.
SELECT {columns}
FROM {table} AS s
WHERE s.user_session_id = ANY ($3::text[]) AND NOT {gone}
