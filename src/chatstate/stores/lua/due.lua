-- The first conversations of each of these sorted sets whose next message is due, and of which set each is.
-- ARGV: what names of the sets begin and end with, their hash tags, of three letters each; the time, how many of each,
-- how long an order is
local found, most, width = {}, tonumber(ARGV[5]), tonumber(ARGV[6])
local PAGE = 200

local function look_into(name, place)
    local taken, after = 0, '-'
    while true do
        local members = redis.call('ZRANGE', name, after, '+', 'BYLEX', 'LIMIT', 0, PAGE)
        for _, member in ipairs(members) do
            if before_or_at(string.sub(member, width + 1, width + 15), ARGV[4]) then
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

for place = 1, #ARGV[3] / 3 do
    look_into(ARGV[1] .. string.sub(ARGV[3], 3 * place - 2, 3 * place) .. ARGV[2], place - 1)
end
return found
