-- Whether a message that has arrived is not done yet.
SELECT 1 FROM inbox WHERE key = :key AND status IN ('pending', 'aside');
