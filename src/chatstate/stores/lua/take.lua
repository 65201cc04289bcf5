-- Claim a message for a session, settle it, postpone it, or note that it is done. A message is claimed before a session
-- takes it in: by whom, and by which number. Only who claims it for the same session, or has it void there
-- (`released`), gets past that.
local entry = entry_of(given.key)
if not entry or not OPEN[entry.status] then
    confirm()
    return { 'done' }
end
if given.verb == 'finish' then
    finish(given.key, entry, given.status)
    return { 'ok' }
end
if entry.decided then
    confirm()
    return { 'decided', entry.decided }
end
local function is_free()
    if not entry.session or (given.verb == 'claim' and entry.session == given.session) then
        return true
    end
    return given.released and given.released[1] == entry.session and given.released[2] == entry.number
end
if not is_free() then
    confirm()
    return { 'claimed', entry.session, string.format('%.0f', entry.number), string.format('%.0f', entry.since or 0) }
end

if given.verb == 'claim' then
    entry.number = math.max((entry.number or 0) + 1, given.number)
    entry.session = given.session
    keep(given.key, entry)
    return { 'ok', string.format('%.0f', entry.number), entry.seq, string.format('%.0f', entry.since or 0) }
end
if given.verb == 'settle' then
    if given.effects then -- it is done when they are in place
        entry.session, entry.decided = nil, given.effects
        keep(given.key, entry)
    else
        finish(given.key, entry, given.status)
    end
    return { 'ok' }
end
unlist(given.key, entry)
entry.status, entry.due, entry.tries, entry.error = given.status, given.due, given.tries, given.error
entry.session = nil
enlist(given.key, entry)
show_head()
return { 'ok' }
