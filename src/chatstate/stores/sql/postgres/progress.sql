-- What became of a message that was to leave, by its key, or by the one that its channel has given it. What was sent is
-- not kept. A status of a lower rank comes too late.
UPDATE chatstate.outbox
SET status = $3::text, rank = $4::smallint, error = $5,
    provider_key = coalesce(nullif($2::text, ''), provider_key),
    due_at = coalesce($6::text::timestamptz, due_at),
    tries = coalesce($7::integer, tries),
    document = CASE WHEN $3::text IN ('queued', 'failed') THEN document ELSE '' END
WHERE table_schema = {name}
    AND {which}
    AND (rank < $4::smallint OR (rank = $4::smallint AND $3::text = 'queued'))
RETURNING 1
