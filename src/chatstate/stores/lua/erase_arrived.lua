-- What has arrived in the conversation up to some message is as good as done, and what it said is erased: at most so
-- much at once. Answers how many, whether there are more, and which are claimed, or decided but not done.
local erased, busy, more = 0, {}, 0
for _, key in ipairs(redis.call('HKEYS', TEXT)) do
    local entry, kept = entry_of(key)
    if entry.seq <= given.bound then
        local released = given.released[key]
        local is_free = released and released[1] == entry.session and released[2] == entry.number
        if erased == given.most then
            more = 1
            break
        elseif entry.decided or (entry.session and not is_free) then
            busy[#busy + 1] = key
            busy[#busy + 1] = kept
        else
            finish(key, entry, 'applied')
            erased = erased + 1
        end
    end
end
confirm()
return { erased, more, busy }
