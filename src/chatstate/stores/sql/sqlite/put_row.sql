-- Put a row there as it is, in the place of any that has its key; or, in the outbox, its number.
INSERT OR REPLACE INTO {table} ({columns})
SELECT {values}
WHERE {condition};
