-- A page of whole rows, in the order of their places.
SELECT {columns}
FROM {table}
WHERE {behind}
ORDER BY {order}
LIMIT :limit;
