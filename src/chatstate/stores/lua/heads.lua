-- The first member of each of these sorted sets within bounds, and of which it is: of many slots of one node.
-- ARGV: whether from the end, the bounds, and the names of the sets
local found = {}
for place = 4, #ARGV do
    local first
    if ARGV[1] == '1' then
        first = redis.call('ZRANGE', ARGV[place], ARGV[3], ARGV[2], 'BYLEX', 'REV', 'LIMIT', 0, 1)
    else
        first = redis.call('ZRANGE', ARGV[place], ARGV[2], ARGV[3], 'BYLEX', 'LIMIT', 0, 1)
    end
    if first[1] then
        found[#found + 1] = place - 4
        found[#found + 1] = first[1]
    end
end
return found
