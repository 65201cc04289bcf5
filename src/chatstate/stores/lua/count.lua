-- How many members these sorted sets have within bounds.
-- ARGV: the bounds, and the names of the sets
local count = 0
for place = 3, #ARGV do
    count = count + redis.call('ZLEXCOUNT', ARGV[place], ARGV[1], ARGV[2])
end
return count
