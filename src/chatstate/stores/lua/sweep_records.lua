-- Remove records that have expired; how many.
-- KEYS: of one bucket: the records; by key, by change, by end
-- ARGV: the members by which they were found: when each ends, its collection, and its key
local removed = 0
for _, member in ipairs(ARGV) do
    local name = string.sub(member, 16)
    local kept = redis.call('HGET', KEYS[1], name)
    if kept and string.sub(kept, 32, 46) == string.sub(member, 1, 15) then
        local zero = string.find(name, '\0', 1, true)
        redis.call('HDEL', KEYS[1], name)
        redis.call('ZREM', KEYS[2], name)
        redis.call('ZREM', KEYS[3], string.sub(name, 1, zero) .. string.sub(kept, 17, 31) .. string.sub(name, zero + 1))
        removed = removed + 1
    end
    redis.call('ZREM', KEYS[4], member)
end
return removed
