-- Remove a session, if it has expired.
-- KEYS: the session, its history, what is remembered of it; of its slot: ids, by activity, by end
-- ARGV: its id, the time, since when idle ones have expired; the member by which it was found
local session = head_of(redis.call('GETRANGE', KEYS[1], 0, 620))
if not session then
    redis.call('ZREM', KEYS[6], ARGV[4])
    return 0
end
if not has_expired(session, ARGV[2], ARGV[3]) then
    return 0
end
remove_session(KEYS, session, ARGV[1])
return 1
