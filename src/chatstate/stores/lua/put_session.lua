-- Put a session there as it is, or remove it; for copies.
-- KEYS: the session, its history, what is remembered of it; of its slot: ids, by activity, by end
-- ARGV: its id, whether to put it, the epoch of the primary; members and state, if it is put
local id, puts, epoch = ARGV[1], ARGV[2] == '1', ARGV[3]
if #epoch ~= 8 then
    return redis.error_reply('TRYAGAIN the epoch of the primary is not known')
end
local current = head_of(redis.call('GETRANGE', KEYS[1], 0, 620))
if not puts then
    if current then
        remove_session(KEYS, current, id)
    end
    return current and 1 or 0
end
local session = cmsgpack.unpack(ARGV[4])
session.epoch = epoch
if current then
    if current.session_id ~= session.session_id then
        redis.call('DEL', KEYS[2])
    end
    redis.call('ZREM', KEYS[5], current.active .. id)
    redis.call('ZREM', KEYS[6], current.ends .. id)
end
redis.call('SET', KEYS[1], text_of(session) .. ARGV[5])
redis.call('ZADD', KEYS[4], 0, id)
redis.call('ZADD', KEYS[5], 0, session.active .. id)
if session.ends ~= NO_TIME then
    redis.call('ZADD', KEYS[6], 0, session.ends .. id)
end
return 1
