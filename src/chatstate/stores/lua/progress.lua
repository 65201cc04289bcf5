-- What became of a message that was to leave. What was sent is not kept. A status of a lower rank comes too late.
local entry = entry_of(given.key)
if not entry or not LETTERS[entry.status] or (given.from_provider and entry.provider ~= given.provider) then
    confirm()
    return 0
end
local rank = entry.rank or given.ranks[entry.status] -- only a copy may have given it another one
if not (rank < given.rank or (rank == given.rank and given.status == 'queued')) then
    confirm()
    return 0
end
unlist(given.key, entry)
entry.status, entry.error, entry.rank = given.status, given.error, nil
entry.due, entry.tries = given.due or entry.due, given.tries or entry.tries
entry.provider = given.provider or entry.provider
if given.status ~= 'queued' and given.status ~= 'failed' then
    redis.call('HDEL', TEXT, given.key)
end
enlist(given.key, entry)
show_head()
return 1
