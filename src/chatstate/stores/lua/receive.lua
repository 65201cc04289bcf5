-- Keep a message that has arrived, unless it is known.
if entry_of(given.key) then
    confirm()
    return 0
end
given.entry.seq = redis.call('INCR', COUNT)
if ARGV[2] ~= '' then
    redis.call('HSET', TEXT, given.key, ARGV[2])
end
enlist(given.key, given.entry)
show_head()
return 1
