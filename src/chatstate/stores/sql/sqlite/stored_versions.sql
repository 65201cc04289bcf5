-- The same of versions.
SELECT s.user_session_id, v.version, CASE WHEN {wanting} THEN v.chat_state END
FROM chat_state_sessions AS s JOIN versions AS v ON v.session_id = s.session_id
WHERE s.user_session_id >= :first AND (s.user_session_id, v.version) > (:first, CAST(:second AS INTEGER))
ORDER BY s.user_session_id, v.version
LIMIT :limit;
