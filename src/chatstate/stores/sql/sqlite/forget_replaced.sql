-- The versions of the session whose place another one takes: no trigger sees that it goes.
DELETE FROM versions
WHERE session_id = (
    SELECT session_id FROM chat_state_sessions
    WHERE user_session_id = :user_session_id AND session_id <> :session_id
);
