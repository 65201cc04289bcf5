-- The messages of one conversation: of each status the first or the last so many.
-- KEYS: what is known of its messages, what they say, their order
-- ARGV: whether the last ones, how many, how long an order is, and the letters of the statuses
local found = {}
for place = 4, #ARGV do
    local letter = ARGV[place]
    local first, last = '[' .. letter, '(' .. string.char(string.byte(letter) + 1)
    local members
    if ARGV[1] == '1' then
        members = redis.call('ZRANGE', KEYS[3], last, first, 'BYLEX', 'REV', 'LIMIT', 0, ARGV[2])
    else
        members = redis.call('ZRANGE', KEYS[3], first, last, 'BYLEX', 'LIMIT', 0, ARGV[2])
    end
    for _, member in ipairs(members) do
        local key = string.sub(member, 2 + tonumber(ARGV[3]))
        found[#found + 1] = { key, redis.call('HGET', KEYS[1], key), redis.call('HGET', KEYS[2], key) or '' }
    end
end
return found
