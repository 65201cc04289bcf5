-- Put a message into the outbox, unless it is known there, or was erased before it came. It stands behind all others of
-- its conversation, whatever the clocks say. Answers whether it is there, and not another one with its key.
local entry = entry_of(given.key)
if entry then
    confirm()
    local new = given.entry
    return entry.session == new.session and entry.age == new.age and entry.at == new.at and 1 or 0
end

local function is_behind(one, other)
    local time, second = string.sub(one, 1, 15), string.sub(other, 1, 15)
    if time ~= second then
        return not before_or_at(time, second)
    end
    return tonumber(string.sub(one, 16), 16) > tonumber(string.sub(other, 16), 16)
end

entry = given.entry
for _, letter in ipairs({ 'q', 's', 'f', 'l', 'r' }) do
    local last = redis.call('ZRANGE', ORDER, '(' .. string.char(string.byte(letter) + 1), '[' .. letter,
        'BYLEX', 'REV', 'LIMIT', 0, 1)[1]
    local order = last and string.sub(last, 2, 1 + given.width)
    if order and not is_behind(entry.order, order) then
        entry.order = order_after(order)
    end
end
redis.call('HSET', TEXT, given.key, ARGV[2])
enlist(given.key, entry)
show_head()
return 1
