-- The same of remembered requests.
SELECT user_session_id, caller, key, CASE WHEN {wanting} THEN chat_state END
FROM idempotency_keys
WHERE (user_session_id, caller, key) > (:first, :second, :third)
ORDER BY user_session_id, caller, key
LIMIT :limit;
