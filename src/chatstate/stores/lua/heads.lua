-- The first member of each of these sorted sets within bounds, and of which it is: of many slots of one node.
-- ARGV: what names of the sets begin and end with, their hash tags, of three letters each; whether from the end, the bounds
local found = {}
for place = 1, #ARGV[3] / 3 do
    local name = ARGV[1] .. string.sub(ARGV[3], 3 * place - 2, 3 * place) .. ARGV[2]
    local first
    if ARGV[4] == '1' then
        first = redis.call('ZRANGE', name, ARGV[6], ARGV[5], 'BYLEX', 'REV', 'LIMIT', 0, 1)
    else
        first = redis.call('ZRANGE', name, ARGV[5], ARGV[6], 'BYLEX', 'LIMIT', 0, 1)
    end
    if first[1] then
        found[#found + 1] = place - 1
        found[#found + 1] = first[1]
    end
end
return found
