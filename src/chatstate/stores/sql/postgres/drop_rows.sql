-- Remove the rows that lie there.
DELETE FROM {into} AS t
USING unnest({arrays}) AS w ({parts})
WHERE {there}
RETURNING {returned}
