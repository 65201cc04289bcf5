-- Put up, show, or take away what keeps messages from a session that were erased with it.
-- KEYS: the fences of the session; of its slot: sessions with fences; what was to leave for it, and the same of the fence
-- ARGV: 'put' with the session's id, the fence's name and text; 'show' with the id; 'drop' with the id and the name
local verb, id = ARGV[1], ARGV[2]
if verb == 'put' then
    redis.call('HSET', KEYS[1], ARGV[3], ARGV[4])
    redis.call('ZADD', KEYS[2], 0, id)
    if redis.call('EXISTS', KEYS[3]) == 1 then
        redis.call('RENAME', KEYS[3], KEYS[4])
    end
    return 1
end
if verb == 'drop' then
    redis.call('DEL', KEYS[4])
    redis.call('HDEL', KEYS[1], ARGV[3])
end
local fences = redis.call('HGETALL', KEYS[1])
if #fences == 0 then
    redis.call('ZREM', KEYS[2], id)
else
    redis.call('HSET', KEYS[1], fences[1], fences[2]) -- so that they are confirmed before they are answered
end
return fences
