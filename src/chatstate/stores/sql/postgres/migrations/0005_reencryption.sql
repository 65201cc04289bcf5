-- Sealing a state with another key changes nothing of its session, so there the version does not rise. Otherwise the
-- function is as it was.
CREATE OR REPLACE FUNCTION chatstate.raise_version() RETURNS trigger LANGUAGE plpgsql SET timezone = 'UTC' AS $$
BEGIN
    IF current_setting('chatstate.reencrypting', true) = 'on' THEN
        RETURN NEW;
    END IF;
    IF NEW.session_id IS DISTINCT FROM OLD.session_id THEN
        RETURN NEW;
    END IF;
    NEW.version := OLD.version + 1;
    IF NEW.updated_at = OLD.updated_at THEN
        NEW.updated_at := clock_timestamp();
    END IF;
    IF NEW.expires_at = OLD.expires_at THEN
        NEW.expires_at := clock_timestamp() + NEW.expires_in_seconds * interval '1 second';
    END IF;
    RETURN NEW;
END
$$;
