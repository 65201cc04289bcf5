-- History: keep the newest :history versions.
DELETE FROM versions WHERE session_id = :session_id AND version <= :version - :history;
