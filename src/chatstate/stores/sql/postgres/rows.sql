-- A page of whole rows ($1 at most), in the order of their places; it ends behind the one with which they have more than
-- $2 bytes of text. Sizes are known without reading the texts.
SELECT {columns}
FROM (
    SELECT page.*, sum({size}) OVER (ORDER BY {named_places} ROWS UNBOUNDED PRECEDING) - ({size}) AS size_before
    FROM (
        SELECT {selected}
        FROM {listed}
        WHERE {behind}
        ORDER BY {places}
        LIMIT $1
    ) AS page
) AS page
WHERE size_before <= $2
ORDER BY {named_places}
