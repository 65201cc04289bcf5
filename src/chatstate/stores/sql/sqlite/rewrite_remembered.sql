-- The same of a remembered request.
UPDATE idempotency_keys SET chat_state = :replaced_by
WHERE user_session_id = :first AND caller = :second AND key = :third AND chat_state = :text
RETURNING 1;
