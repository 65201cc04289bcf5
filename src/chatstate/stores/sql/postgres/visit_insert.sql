-- Create the visits whose ids no visit has. They arrive sorted, so that two servers cannot wait for each other.
INSERT INTO chatstate.visits AS v (
    table_schema, session_id, user_session_id, user_id, session_start_time, session_end_time, total_messages_count,
    given_duration_minutes, session_completed, session_outcome, final_step_reached, user_agent, ip_address, device_type,
    created_at
)
SELECT {name}, session_id, user_session_id, user_id, session_start_time, session_end_time, total_messages_count,
    given_duration_minutes, session_completed, session_outcome, final_step_reached, user_agent, ip_address, device_type,
    created_at
FROM jsonb_populate_recordset(NULL::chatstate.visits, $1::jsonb)
ON CONFLICT (table_schema, session_id) DO NOTHING
RETURNING {columns}
