-- How many members these sorted sets have within bounds.
-- ARGV: what names of the sets begin and end with, their hash tags, of three letters each; the bounds
local count = 0
for place = 1, #ARGV[3] / 3 do
    local name = ARGV[1] .. string.sub(ARGV[3], 3 * place - 2, 3 * place) .. ARGV[2]
    count = count + redis.call('ZLEXCOUNT', name, ARGV[4], ARGV[5])
end
return count
