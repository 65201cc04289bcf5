-- Forget a message, unless something has become of it since it was found.
local entry = entry_of(given.key)
if not entry or age_of(entry) ~= given.age then
    return 0
end
forget(given.key, entry)
show_head()
return 1
