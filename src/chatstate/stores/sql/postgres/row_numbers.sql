-- What is sent from now on comes after this number.
SELECT setval(place, $1)
FROM pg_get_serial_sequence('chatstate.outbox', 'number') AS place
WHERE $1 > coalesce(pg_sequence_last_value(place::regclass), 0)
