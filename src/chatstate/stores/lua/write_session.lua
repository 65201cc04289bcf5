-- Save or delete one session: compare with what is expected, and change everything of it in one step.
-- KEYS: the session, its history, what is remembered of it; of its slot: ids, by activity, by end, what is remembered by
-- its end, and ids of which something is remembered. If messages are settled or erased with it: its fences, what is to
-- leave for it, and the mark of the message; or what is to leave that the fence keeps, and of the slot, which sessions
-- have fences
-- ARGV: what is asked for (MessagePack), the state, the epoch of the primary
local write, state, epoch = cmsgpack.unpack(ARGV[1]), ARGV[2], ARGV[3]
local SESSION, HISTORY, REMEMBERED, IDS, ACTIVE, ENDS, FORGET, KEYED =
    KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6], KEYS[7], KEYS[8]
local FENCES, LEAVING, MARK, KEPT_LEAVING, FENCED = KEYS[9], KEYS[10], KEYS[11], KEYS[11], KEYS[12]
local now, once, id = write.now, write.once, write.id
if #epoch ~= 8 then
    return redis.error_reply('TRYAGAIN the epoch of the primary is not known')
end

if once then
    local kept = redis.call('HGET', REMEMBERED, once.field)
    if kept then
        local known = cmsgpack.unpack(kept)
        if not before_or_at(known.forget, now) then
            redis.call('HSET', REMEMBERED, once.field, kept) -- so that it is confirmed before it is answered
            return { 'replay', known.digest, known.deleted or false, known.session_id, known.active, known.created, known.updated,
                string.format('%d', known.version), known.ends, known.state or false }
        end
    end
end

-- What the message has come to is decided here: it is taken in with the state, or never by this claim or an earlier one.
local settles = write.settles
if settles then
    if settles.is_done then
        return { 'settled', 'done' }
    end
    local mark = redis.call('GET', MARK)
    local known = mark and cmsgpack.unpack(mark)
    if known and known.number < settles.since then -- of a message that a copy has put this one in the place of
        known = nil
    end
    if known and (known.applied or known.number >= settles.number) then
        redis.call('SET', MARK, mark, 'KEEPTTL') -- so that it is confirmed before it is answered
        return { 'settled', known.applied and 'applied' or 'void', mark }
    end
    local fences = redis.call('HGETALL', FENCES)
    for place = 2, #fences, 2 do
        local bound = cjson.decode(fences[place]).bounds[settles.conversation]
        if bound and settles.seq <= bound then
            redis.call('HSET', FENCES, fences[place - 1], fences[place])
            return { 'settled', 'fenced' }
        end
    end
end

local raw = redis.call('GETRANGE', SESSION, 0, 620)
local current = head_of(raw)
local expired = current and has_expired(current, now, write.idle_since)

local function allowed()
    if not current or expired then
        return write.absent
    end
    local tag = current.session_id .. '-' .. string.format('%d', current.version)
    local found = not write.only
    for _, one in ipairs(write.only or {}) do
        found = found or one == tag
    end
    for _, one in ipairs(write.unless) do
        found = found and one ~= tag
    end
    return found
end

if not allowed() then
    if expired then
        remove_session({ SESSION, HISTORY, REMEMBERED, IDS, ACTIVE, ENDS }, current, id)
    end
    if not current or expired then
        return { 'conflict' }
    end
    local whole = write.show and redis.call('GET', SESSION)
    return { 'conflict', current.session_id, string.format('%d', current.version), whole }
end

local function forget()
    remove_session({ SESSION, HISTORY, REMEMBERED, IDS, ACTIVE, ENDS }, current, id)
end

local function remember(outcome)
    if once then
        outcome.digest, outcome.forget = once.digest, once.forget
        remember_key({ REMEMBERED, FORGET, KEYED }, id, once.field, outcome)
    end
end

-- Keep so many of the newest versions. Their numbers do not follow each other: after a failover they skip.
local function prune(most)
    local surplus = redis.call('HLEN', HISTORY) - most
    if surplus <= 0 then
        return
    end
    local numbers = {}
    for place, field in ipairs(redis.call('HKEYS', HISTORY)) do
        numbers[place] = tonumber(field)
    end
    table.sort(numbers)
    for place = 1, surplus do
        redis.call('HDEL', HISTORY, string.format('%d', numbers[place]))
    end
end

if write.deletes then
    forget()
    if write.fence then
        redis.call('HSET', FENCES, write.fence.name, write.fence.text)
        redis.call('ZADD', FENCED, 0, id)
        if redis.call('EXISTS', LEAVING) == 1 then
            redis.call('RENAME', LEAVING, KEPT_LEAVING)
        end
    end
    remember({ deleted = true, session_id = current.session_id, version = current.version, active = now, created = now,
        updated = now, ends = NO_TIME })
    return { 'deleted', current.session_id, string.format('%d', current.version) }
end

if expired then
    forget()
    current = nil
end

local keeps = not write.has_state
if keeps then
    state = string.sub(redis.call('GET', SESSION), current.size + 1)
end
local prior = current and write.history > 0 and redis.call('GET', SESSION)

local lives = current and current.lives or NO_SECONDS
if write.expires_in then
    lives = write.expires_in == 0 and NO_SECONDS or string.format('%010d', write.expires_in)
end
local session = {
    version = current and next_version(current, epoch) or 1,
    epoch = epoch,
    session_id = current and current.session_id or write.session_id,
    created = current and current.created or now,
    updated = now,
    active = write.active,
    lives = lives,
    ends = lives == NO_SECONDS and NO_TIME or later_by(now, tonumber(lives)),
}

if write.history > 0 then
    local function record(one, text)
        redis.call('HSET', HISTORY, string.format('%d', one.version),
            cmsgpack.pack({ one.session_id, one.active, one.updated, text }))
    end
    if current and redis.call('HEXISTS', HISTORY, string.format('%d', current.version)) == 0 then
        record(current, string.sub(prior, current.size + 1))
    end
    record(session, state)
    prune(write.history)
end

redis.call('SET', SESSION, text_of(session) .. state)
if not current then
    redis.call('ZADD', IDS, 0, id)
elseif current.active ~= session.active then
    redis.call('ZREM', ACTIVE, current.active .. id)
end
if not current or current.active ~= session.active then
    redis.call('ZADD', ACTIVE, 0, session.active .. id)
end
if current and current.ends ~= session.ends and current.ends ~= NO_TIME then
    redis.call('ZREM', ENDS, current.ends .. id)
end
if session.ends ~= NO_TIME then
    redis.call('ZADD', ENDS, 0, session.ends .. id)
end
if settles then
    redis.call('SET', MARK, cmsgpack.pack({ applied = true, number = settles.number, effects = settles.effects }))
    for _, member in ipairs(settles.leaving) do
        redis.call('ZADD', LEAVING, 0, member)
    end
end
remember({ session_id = session.session_id, version = session.version, active = session.active, created = session.created,
    updated = session.updated, ends = session.ends, state = keeps and once and state or nil })
return { 'saved', session.session_id, session.created, string.format('%d', session.version), session.ends, keeps and state }
