-- Put a message there as it is, or remove it; for copies. Answers whether something was there; or what is
-- known of it, if it is claimed, or decided but not done: then nothing was changed.
local entry, kept = entry_of(given.key)
if entry and given.arrives and is_claimed(entry) then
    confirm()
    return { 'claimed', kept }
end
local was_there = entry and LETTERS[entry.status]
if not given.entry then
    if was_there then
        forget(given.key, entry)
        show_head()
    end
    confirm()
    return { was_there and 'there' or 'none' }
end
if given.arrives then
    given.entry.seq = entry and entry.seq or redis.call('INCR', COUNT)
    -- What a session remembers of one with this key that was there before does not count for this one.
    given.entry.since = math.max(entry and entry.number or 0, given.since) + 1
    given.entry.number = given.entry.since
end
if entry then
    unlist(given.key, entry)
end
if ARGV[2] == '' then
    redis.call('HDEL', TEXT, given.key)
else
    redis.call('HSET', TEXT, given.key, ARGV[2])
end
enlist(given.key, given.entry)
show_head()
return { was_there and 'there' or 'none' }
