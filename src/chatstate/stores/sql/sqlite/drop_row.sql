-- Remove the row that lies there.
DELETE FROM {table}
WHERE {there};
