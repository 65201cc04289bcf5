-- A box is the inbox or the outbox of one conversation, with what lists the messages of its bucket.
-- KEYS: of the conversation: what is known of its messages (MessagePack by key), what they say (by key), their order; of
-- the bucket: by status, by age, conversations by their next message, that by conversation, how many have arrived,
-- what is written when nothing else is, and by key
-- ARGV: what is asked for (MessagePack), and what a message says
local META, TEXT, ORDER, STATUS, AGE, HEADS, HEAD, COUNT, ASKED, NAMES =
    KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6], KEYS[7], KEYS[8], KEYS[9], KEYS[10]
local given = cmsgpack.unpack(ARGV[1])

-- A message that was erased before it was put into the outbox has no letter: it is known, and in no list.
local LETTERS = {
    pending = 'p', aside = 'a', applied = 'd', noted = 'n',
    queued = 'q', sent = 's', failed = 'f', delivered = 'l', read = 'r',
}
local OPEN = { pending = true, aside = true, queued = true }

local function entry_of(key)
    local kept = redis.call('HGET', META, key)
    return kept and cmsgpack.unpack(kept) or nil, kept
end

-- So that what was found is confirmed before it is answered: nothing is that stands behind it and is not.
local function confirm()
    redis.call('SET', ASKED, '', 'EX', 60)
end

local function age_of(entry)
    return (OPEN[entry.status] and 'o' or 'd') .. entry.age
end

local function unlist(key, entry)
    local letter, whole = LETTERS[entry.status], key .. '\0' .. given.conversation
    if letter then
        redis.call('ZREM', ORDER, letter .. entry.order .. key)
        redis.call('ZREM', STATUS, letter .. entry.order .. whole)
    end
    redis.call('ZREM', AGE, age_of(entry) .. whole)
end

local function keep(key, entry)
    redis.call('HSET', META, key, cmsgpack.pack(entry))
end

local function enlist(key, entry)
    local letter, whole = LETTERS[entry.status], key .. '\0' .. given.conversation
    keep(key, entry)
    if letter then
        redis.call('ZADD', ORDER, 0, letter .. entry.order .. key)
        redis.call('ZADD', STATUS, 0, letter .. entry.order .. whole)
        redis.call('ZADD', NAMES, 0, whole)
    else
        redis.call('ZREM', NAMES, whole)
    end
    redis.call('ZADD', AGE, 0, age_of(entry) .. whole)
end

local function forget(key, entry)
    unlist(key, entry)
    redis.call('HDEL', META, key)
    redis.call('HDEL', TEXT, key)
    redis.call('ZREM', NAMES, key .. '\0' .. given.conversation)
end

-- Whether the message may be taken in by a session, or has come to its end without being done: unless it is free of that
-- claim (`released`).
local function is_claimed(entry)
    if entry.decided then
        return true
    end
    local released = given.released
    return entry.session and not (released and released[1] == entry.session and released[2] == entry.number)
end

-- Orders of the outbox, and the ends of those of the inbox, are a time and 3 more hexadecimal digits.
local function order_after(order)
    local place = tonumber(string.sub(order, 16), 16) + 1
    if place < 1000 then
        return string.sub(order, 1, 15) .. string.format('%03x', place)
    end
    local micro = tonumber(string.sub(order, 11, 15), 16) + 1
    if micro < 1000000 then
        return string.sub(order, 1, 10) .. string.format('%05x000', micro)
    end
    return later_by(string.sub(order, 1, 10), 1) .. '00000000'
end

-- Have the conversation stand where its next message has it stand: by its order, with when it is due.
local function show_head()
    local waiting = given.waiting
    local first = redis.call('ZRANGE', ORDER, '[' .. waiting, '(' .. string.char(string.byte(waiting) + 1),
        'BYLEX', 'LIMIT', 0, 1)[1]
    local head
    if first then
        local order = string.sub(first, 2, 1 + given.width)
        head = order .. entry_of(string.sub(first, 2 + given.width)).due .. given.conversation
    end
    local shown = redis.call('HGET', HEAD, given.conversation)
    if shown == head then
        return
    end
    if shown then
        redis.call('ZREM', HEADS, shown)
        redis.call('HDEL', HEAD, given.conversation)
    end
    if head then
        redis.call('ZADD', HEADS, 0, head)
        redis.call('HSET', HEAD, given.conversation, head)
    end
end

-- A message that has arrived is done, and what it said is not kept any longer. Which session has the mark of it, is: if
-- nobody comes to close that, the sweep does.
local function finish(key, entry, status)
    unlist(key, entry)
    entry.home = entry.session
    entry.status, entry.error, entry.session, entry.decided = status, '', nil, nil
    redis.call('HDEL', TEXT, key)
    enlist(key, entry)
    show_head()
end
