-- States as they lie there, a page in the order of their ids; null for those that are all right.
SELECT user_session_id, CASE WHEN {wanting} THEN chat_state END
FROM chat_state_sessions
WHERE user_session_id > :first
ORDER BY user_session_id
LIMIT :limit;
