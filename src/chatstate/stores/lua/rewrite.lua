-- Put another text in the place of one, if it still lies there; whether it did.
-- KEYS: where it lies
-- ARGV: the shelf, the field, the text, and the other one
local shelf, field, text, other = unpack(ARGV)
local kept
if shelf == 'sessions' then
    kept = redis.call('GET', KEYS[1])
else
    kept = redis.call('HGET', KEYS[1], field)
end
if not kept then
    return 0
end

if shelf == 'sessions' or shelf == 'records' then
    local size = shelf == 'records' and 46 or head_of(kept).size
    if string.sub(kept, size + 1) ~= text then
        return 0
    end
    kept = string.sub(kept, 1, size) .. other
elseif shelf == 'inbox' or shelf == 'outbox' then
    if kept ~= text then
        return 0
    end
    kept = other
else
    local place = shelf == 'versions' and 4 or 'state'
    local known = cmsgpack.unpack(kept)
    if known[place] ~= text then
        return 0
    end
    known[place] = other
    kept = cmsgpack.pack(known)
end

if shelf == 'sessions' then
    redis.call('SET', KEYS[1], kept)
else
    redis.call('HSET', KEYS[1], field, kept)
end
return 1
