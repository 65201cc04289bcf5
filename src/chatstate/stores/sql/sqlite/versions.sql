-- The versions of a session that are kept, newest first. The current one is there, recorded or not.
SELECT session_id, version, last_activity, updated_at AS saved_at, {size},
    CASE WHEN :with_state THEN chat_state END
FROM chat_state_sessions
WHERE user_session_id = :user_session_id AND NOT {gone}
    AND version < :before AND (:version IS NULL OR version = :version)
UNION ALL
SELECT v.session_id, v.version, v.last_activity, v.saved_at, {recorded_size},
    CASE WHEN :with_state THEN v.chat_state END
FROM chat_state_sessions AS s JOIN versions AS v ON v.session_id = s.session_id AND v.version < s.version
WHERE s.user_session_id = :user_session_id AND NOT coalesce(s.expires_at <= :now, s.updated_at <= :idle_since, 0)
    AND v.version < :before AND (:version IS NULL OR v.version = :version)
ORDER BY 2 DESC
LIMIT :limit;
