-- A statement that saves, and the history of what it saved: the version before, unless it is there (another program may
-- have made it), the new one, and room for both by the removal of the oldest. LATERAL with LIMIT or OFFSET: see recall.sql.
WITH saved AS (
{statement}
), prior AS (
    INSERT INTO chatstate.versions (table_schema, session_id, version, last_activity, saved_at, chat_state)
    SELECT {name}, before.*
    FROM saved
    CROSS JOIN LATERAL (
        SELECT {version_columns} FROM {table} AS s
        WHERE s.user_session_id = saved.user_session_id AND s.session_id::text = saved.session_id
            AND s.version < saved.version AND s.version > saved.version - {history}
            AND NOT EXISTS (
                SELECT FROM chatstate.versions AS v
                WHERE v.table_schema = {name} AND v.session_id = saved.session_id AND v.version = s.version
            )
        LIMIT 1
    ) AS before
    ON CONFLICT DO NOTHING
), recorded AS (
    INSERT INTO chatstate.versions (table_schema, session_id, version, last_activity, saved_at, chat_state)
    SELECT {name}, session_id, version, last_activity, updated_at, chat_state
    FROM saved
    ON CONFLICT (table_schema, session_id, version) DO UPDATE
    SET last_activity = excluded.last_activity, saved_at = excluded.saved_at, chat_state = excluded.chat_state
), pruned AS (
    DELETE FROM chatstate.versions
    WHERE ctid = ANY (ARRAY(
        SELECT place
        FROM saved
        CROSS JOIN LATERAL (
            SELECT v.ctid AS place FROM chatstate.versions AS v
            WHERE v.table_schema = {name} AND v.session_id = saved.session_id
                AND v.version <= saved.version - {history}
            OFFSET 0
        ) AS old
    ))
)
SELECT session_id, user_session_id, kept_state, last_activity, created_at, updated_at, version, expires_at
FROM saved
