-- Create the visit if there is none with this id.
INSERT INTO chat_sessions (
    session_id, user_session_id, user_id, session_start_time, session_end_time, total_messages_count,
    given_duration_minutes, session_completed, session_outcome, final_step_reached, user_agent, ip_address, device_type,
    created_at
)
VALUES (
    :session_id, :user_session_id, :user_id, :session_start_time, :session_end_time, :total_messages_count,
    :given_duration_minutes, :session_completed, :session_outcome, :final_step_reached, :user_agent, :ip_address,
    :device_type, :created_at
)
ON CONFLICT (session_id) DO NOTHING
RETURNING {columns};
