-- What several scripts need; it stands before each. No script is undone when it fails halfway: each looks at everything
-- before it writes anything.

-- Times are 15 hexadecimal digits: seconds since the year 1 in 10, microseconds in 5. Lua would compare texts by a locale.
local function before_or_at(one, other)
    local first, second = tonumber(string.sub(one, 1, 10), 16), tonumber(string.sub(other, 1, 10), 16)
    if first ~= second then
        return first < second
    end
    return tonumber(string.sub(one, 11), 16) <= tonumber(string.sub(other, 11), 16)
end

local function later_by(time, seconds)
    return string.format('%010x', tonumber(string.sub(time, 1, 10), 16) + seconds) .. string.sub(time, 11)
end

-- A session is one text: a head of fixed length, its session_id, and its state. '-' stands for what it has not.
local NO_TIME, NO_SECONDS = string.rep('-', 15), string.rep('-', 10)

local function head_of(text)
    if not text or text == '' then
        return nil
    end
    local length = tonumber(string.sub(text, 95, 98))
    return {
        version = tonumber(string.sub(text, 1, 16)),
        updated = string.sub(text, 17, 31),
        active = string.sub(text, 32, 46),
        created = string.sub(text, 47, 61),
        ends = string.sub(text, 62, 76),
        lives = string.sub(text, 77, 86),
        epoch = string.sub(text, 87, 94),
        session_id = string.sub(text, 99, 98 + length),
        size = 98 + length,
    }
end

local function text_of(session)
    return string.format('%016d', session.version) .. session.updated .. session.active .. session.created
        .. session.ends .. session.lives .. session.epoch .. string.format('%04d', #session.session_id)
        .. session.session_id
end

-- Versions that somebody has read, and that a failover has taken back because they were not confirmed, must not come
-- again with other states: after one, versions go on from where the former primary cannot have come.
local function next_version(session, epoch)
    return session.version + (session.epoch == epoch and 1 or 1001)
end

local function has_expired(session, now, idle_since)
    if session.ends ~= NO_TIME then
        return before_or_at(session.ends, now)
    end
    return idle_since ~= '' and before_or_at(session.updated, idle_since)
end

-- Remove a session and all that it has said. What is remembered of its idempotency keys stays, without states.
-- keys: the session, its history, what is remembered of it; of its slot: ids, by activity, by end
local function remove_session(keys, session, id)
    redis.call('DEL', keys[1], keys[2])
    redis.call('ZREM', keys[4], id)
    redis.call('ZREM', keys[5], session.active .. id)
    if session.ends ~= NO_TIME then
        redis.call('ZREM', keys[6], session.ends .. id)
    end
    local fields = redis.call('HGETALL', keys[3])
    for place = 1, #fields, 2 do
        local known = cmsgpack.unpack(fields[place + 1])
        if known.state then
            known.state = nil
            redis.call('HSET', keys[3], fields[place], cmsgpack.pack(known))
        end
    end
end

-- Remember what an idempotency key came to; the names of what by which it is found are those of forget_key.
-- keys: what is remembered of the session; of its slot: what is remembered by its end, and ids
local function forget_key(keys, id, field)
    local kept = redis.call('HGET', keys[1], field)
    if kept then
        redis.call('HDEL', keys[1], field)
        redis.call('ZREM', keys[2], cmsgpack.unpack(kept).forget .. id .. '\0' .. field)
        if redis.call('EXISTS', keys[1]) == 0 then
            redis.call('ZREM', keys[3], id)
        end
    end
    return kept
end

local function remember_key(keys, id, field, outcome)
    forget_key(keys, id, field)
    redis.call('HSET', keys[1], field, cmsgpack.pack(outcome))
    redis.call('ZADD', keys[2], 0, outcome.forget .. id .. '\0' .. field)
    redis.call('ZADD', keys[3], 0, id)
end
