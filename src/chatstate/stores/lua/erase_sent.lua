-- What was to leave, or has left, is erased. That it was there stays known for a while: whoever puts messages there late
-- must not bring it back. Answers whether it was there, and the key that its channel gave it; nothing when another session
-- has a message with this key.
local entry = entry_of(given.key)
if entry and not LETTERS[entry.status] then
    confirm()
    return { 0, '' }
end
if entry and entry.session ~= given.session then
    confirm()
    return false
end
if entry then
    unlist(given.key, entry)
    redis.call('HDEL', TEXT, given.key)
end
enlist(given.key, { status = 'erased', age = given.now })
show_head()
return { entry and 1 or 0, entry and entry.provider or '' }
