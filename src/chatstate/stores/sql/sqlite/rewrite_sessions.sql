-- Put another text in the place of one, if it still lies there.
UPDATE chat_state_sessions SET chat_state = :replaced_by
WHERE user_session_id = :first AND chat_state = :text
RETURNING 1;
