-- The first conversations of each of these sorted sets whose next message is due, and of which set each is.
-- ARGV: the time, how many of each, how long an order is, and the names of the sets
local found, most, width = {}, tonumber(ARGV[2]), tonumber(ARGV[3])
local PAGE = 200

local function look_into(name, place)
    local taken, after = 0, '-'
    while true do
        local members = redis.call('ZRANGE', name, after, '+', 'BYLEX', 'LIMIT', 0, PAGE)
        for _, member in ipairs(members) do
            if before_or_at(string.sub(member, width + 1, width + 15), ARGV[1]) then
                found[#found + 1] = place
                found[#found + 1] = member
                taken = taken + 1
                if taken == most then
                    return
                end
            end
        end
        if #members < PAGE then
            return
        end
        after = '(' .. members[#members]
    end
end

for place = 4, #ARGV do
    look_into(ARGV[place], place - 4)
end
return found
