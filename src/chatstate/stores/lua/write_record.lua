-- Put or drop one record: compare its version with what is expected, and change everything of it in one step.
-- A record is one text: its version in 16 digits, when it was changed, when it ends (or NO_TIME), and its document.
-- KEYS: of its bucket: the records; by key, by change, by end
-- ARGV: what to do; its collection, and its key; the time ('': whatever has ended is there, too), the version that is
-- expected or '', when it ends; its document; the version that it gets, if that is not the next one
local RECORDS, NAMES, CHANGED, ENDS = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local verb, collection, key, now, expect, ends, document, number = unpack(ARGV)
local name = collection .. '\0' .. key

local kept = redis.call('HGET', RECORDS, name)
local version, has_ended = 0, false
if kept then
    version = tonumber(string.sub(kept, 1, 16))
    has_ended = now ~= '' and string.sub(kept, 32, 46) ~= NO_TIME and before_or_at(string.sub(kept, 32, 46), now)
end
local current = has_ended and 0 or version

if (expect ~= '' and tonumber(expect) ~= current) or (verb == 'drop' and current == 0) then
    return { 0, string.format('%d', current) }
end

if kept then
    redis.call('ZREM', CHANGED, collection .. '\0' .. string.sub(kept, 17, 31) .. key)
    redis.call('ZREM', ENDS, string.sub(kept, 32, 46) .. name)
end
if verb == 'drop' then
    redis.call('HDEL', RECORDS, name)
    redis.call('ZREM', NAMES, name)
    return { 1, string.format('%d', current) }
end
local next = number and tonumber(number) or current + 1
redis.call('HSET', RECORDS, name, string.format('%016d', next) .. now .. ends .. document)
redis.call('ZADD', NAMES, 0, name)
redis.call('ZADD', CHANGED, 0, collection .. '\0' .. now .. key)
if ends ~= NO_TIME then
    redis.call('ZADD', ENDS, 0, ends .. name)
end
return { 1, string.format('%d', next) }
