-- States are compressed with lz4 where the server has it (PostgreSQL 14 and newer, as most are built): it costs a fraction
-- of the CPU of the default. Instant; states that are there stay as they are until they are saved again. Only for a table
-- that we made, which our index shows: an adopted one keeps its storage until `chatstate migrate --tune`.
DO $$
BEGIN
    IF 'lz4' = ANY ((SELECT enumvals FROM pg_settings WHERE name = 'default_toast_compression')::text[])
        AND EXISTS (
            SELECT FROM pg_index
            WHERE indrelid = '{table}'::regclass
                AND pg_get_indexdef(indexrelid) LIKE '%idx_chat_state_sessions_last_activity % (last_activity, user_session_id)'
        )
    THEN
        EXECUTE 'ALTER TABLE {table} ALTER COLUMN chat_state SET COMPRESSION lz4';
    END IF;
END
$$;
