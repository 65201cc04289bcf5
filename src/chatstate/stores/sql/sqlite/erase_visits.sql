-- Remove the visits of a user session, but for those that name another person than :user_id if that is given.
DELETE FROM chat_sessions
WHERE user_session_id = :user_session_id AND (:user_id IS NULL OR coalesce(user_id, :user_id) = :user_id)
RETURNING 1;
