-- Keep a message that has arrived, unless it is known.
if entry_of(given.key) then
    confirm()
    return 0
end
given.entry.seq = redis.call('INCR', COUNT)

-- Those that came in one moment stand in the order in which they came.
local function is_taken(order)
    for _, letter in ipairs({ 'p', 'a', 'd', 'n' }) do
        local start = letter .. order
        if redis.call('ZLEXCOUNT', ORDER, '[' .. start, '[' .. start .. '\255') > 0 then
            return true
        end
    end
    return false
end
local sent, number = string.sub(given.entry.order, 1, 15), string.sub(given.entry.order, 16)
while is_taken(sent .. number) do
    number = order_after(number)
end
given.entry.order = sent .. number
if ARGV[2] ~= '' then
    redis.call('HSET', TEXT, given.key, ARGV[2])
end
enlist(given.key, given.entry)
show_head()
return 1
