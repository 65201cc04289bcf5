-- The versions of a session that are kept, newest first. The current one is there, recorded or not.
SELECT {version_columns_read}
FROM {table} AS s
WHERE s.user_session_id = $3 AND NOT {gone} AND s.version < $4 AND ($5::bigint IS NULL OR s.version = $5)
UNION ALL
SELECT v.session_id, v.version, v.last_activity, v.saved_at, {recorded_size},
    CASE WHEN $6::boolean THEN v.chat_state END
FROM {table} AS s
JOIN chatstate.versions AS v
    ON v.table_schema = {name} AND v.session_id = s.session_id::text AND v.version < s.version
WHERE s.user_session_id = $3 AND NOT {gone} AND v.version < $4 AND ($5::bigint IS NULL OR v.version = $5)
ORDER BY 2 DESC
LIMIT $7
