-- History: the version that a write is about to replace, unless it is there; another program may have made it.
INSERT INTO versions (session_id, version, last_activity, saved_at, chat_state)
SELECT session_id, version, last_activity, updated_at, chat_state
FROM chat_state_sessions AS s
WHERE user_session_id = :user_session_id AND NOT {gone}
    AND NOT EXISTS (SELECT 1 FROM versions AS v WHERE v.session_id = s.session_id AND v.version = s.version);
