-- What became of a message that was to leave, by its key, or by the one that its channel has given it. What was sent is
-- not kept. A status of a lower rank comes too late.
UPDATE outbox
SET status = :status, rank = :rank, error = :error,
    provider_key = coalesce(nullif(:provider_key, ''), provider_key),
    due_at = coalesce(:due_at, due_at),
    tries = coalesce(:tries, tries),
    document = CASE WHEN :status IN ('queued', 'failed') THEN document ELSE '' END
WHERE {which}
    AND (rank < :rank OR (rank = :rank AND :status = 'queued'))
RETURNING 1;
