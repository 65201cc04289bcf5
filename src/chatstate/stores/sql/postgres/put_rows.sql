-- Put rows there as they are, whatever lies in their places. The trigger that raises versions is told not to before.
INSERT INTO {into} AS t ({into_columns})
{overriding}
SELECT {values}
FROM unnest({arrays}) AS w ({members})
{condition}
ON CONFLICT ({key}) DO UPDATE
SET {assignments}
RETURNING {kept}
