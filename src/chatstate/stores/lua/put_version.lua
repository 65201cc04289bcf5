-- Put a version of a session there, if that is the session, or remove it; for copies.
-- KEYS: the session, its history
-- ARGV: the number of the version, the session_id, and the version (MessagePack); empty: it is removed
if ARGV[3] == '' then
    return redis.call('HDEL', KEYS[2], ARGV[1])
end
local session = head_of(redis.call('GETRANGE', KEYS[1], 0, 620))
if not session or session.session_id ~= ARGV[2] then
    return 0
end
redis.call('HSET', KEYS[2], ARGV[1], ARGV[3])
return 1
