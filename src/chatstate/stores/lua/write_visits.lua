-- Create, change or remove visits of one bucket, with everything that lists them, in one step.
-- KEYS: the visits; all by start, of each user session by start, of each person by user session, all by creation;
--       the beginning of the names of voids; and all by id
-- ARGV: what to do, and what the function of this name takes
local VISITS, STARTS, USERS, PEOPLE, CREATED, VOID, IDS =
    KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6], KEYS[7]
local VOID_SECONDS = 3600 -- no creation is on its way for as long

local function members(id, visit)
    local person = visit.user_id and visit.user_id .. '\0' .. visit.user_session_id .. '\0' .. id
    return {
        [STARTS] = visit.session_start_time .. id,
        [USERS] = visit.user_session_id .. '\0' .. visit.session_start_time .. id,
        [PEOPLE] = person or '',
        [CREATED] = visit.created_at .. id,
        [IDS] = id,
    }
end

-- Change what lists the visit from these members to those; '' is none.
local function list(old, new)
    for _, set in ipairs({ STARTS, USERS, PEOPLE, CREATED, IDS }) do
        local before, after = old and old[set] or '', new and new[set] or ''
        if before ~= after then
            if before ~= '' then
                redis.call('ZREM', set, before)
            end
            if after ~= '' then
                redis.call('ZADD', set, 0, after)
            end
        end
    end
end

local function found(id)
    local kept = redis.call('HGET', VISITS, id)
    return kept and cmsgpack.unpack(kept), kept
end

-- From now on no visit with this id is created here by this number of its pointer, or a lower one.
local function void(id, number)
    local known = tonumber(redis.call('GET', VOID .. id) or 0)
    redis.call('SET', VOID .. id, string.format('%d', math.max(known, number)), 'EX', VOID_SECONDS)
end

local function change(id, visit, set, unset)
    local before = members(id, visit)
    for name, value in pairs(set) do
        visit[name] = value
    end
    for _, name in ipairs(unset) do
        visit[name] = nil
    end
    local text = cmsgpack.pack(visit)
    redis.call('HSET', VISITS, id, text)
    list(before, members(id, visit))
    return text
end

-- Remove it; its id and the number of its pointer.
local function remove(id, visit, removed)
    list(members(id, visit), nil)
    redis.call('HDEL', VISITS, id)
    void(id, visit.number)
    removed[#removed + 1] = id
    removed[#removed + 1] = visit.number
end

local function of_user_session(user_session_id)
    local ids = {}
    local named = redis.call('ZRANGE', USERS, '[' .. user_session_id .. '\0', '(' .. user_session_id .. '\1', 'BYLEX')
    for place, member in ipairs(named) do
        ids[place] = string.sub(member, #user_session_id + 17)
    end
    return ids
end

local verbs = {}

-- Whether there is a visit with this id; if not, 0 or the number above which one could be created.
function verbs.create(id, text)
    local visit, kept = found(id)
    if visit then
        redis.call('HSET', VISITS, id, kept) -- so that it is confirmed before it is answered
        return 'taken'
    end
    local voided = tonumber(redis.call('GET', VOID .. id) or 0)
    visit = cmsgpack.unpack(text)
    if voided >= visit.number then
        return voided
    end
    redis.call('HSET', VISITS, id, text)
    list(nil, members(id, visit))
    return 'made'
end

-- Make sure that none is created here by this number; 0: only look.
function verbs.void(id, number)
    local visit, kept = found(id)
    if visit then
        redis.call('HSET', VISITS, id, kept) -- so that it is confirmed before it is answered
        return 'taken'
    end
    if number ~= '0' then
        void(id, tonumber(number))
    end
    return 'free'
end

function verbs.change(id, packed)
    local visit, wanted = found(id), cmsgpack.unpack(packed)
    local owner = visit and visit.user_session_id
    if not visit or string.sub(owner, 1, #wanted.prefix) ~= wanted.prefix or (wanted.only and owner ~= wanted.only) then
        return false
    end
    return change(id, visit, wanted.set, wanted.unset)
end

function verbs.change_all(user_session_id, packed)
    local ids, wanted = of_user_session(user_session_id), cmsgpack.unpack(packed)
    for _, id in ipairs(ids) do
        change(id, found(id), wanted.set, wanted.unset)
    end
    return #ids
end

-- Without a person all of the user session; else not those that name another one.
function verbs.erase(user_session_id, person)
    local removed = {}
    for _, id in ipairs(of_user_session(user_session_id)) do
        local visit = found(id)
        if not person or not visit.user_id or visit.user_id == person then
            remove(id, visit, removed)
        end
    end
    return removed
end

-- Put it there as it is; or the number above which it could be.
function verbs.put(id, text)
    local before, after = found(id), cmsgpack.unpack(text)
    local voided = tonumber(redis.call('GET', VOID .. id) or 0)
    if not before and voided >= after.number then
        return voided
    end
    redis.call('HSET', VISITS, id, text)
    list(before and members(id, before), members(id, after))
    return 'made'
end

-- Remove it, if it is there, and make sure that none is created here by this number.
function verbs.drop(id, number)
    local visit, removed = found(id), {}
    if visit then
        remove(id, visit, removed)
    end
    void(id, tonumber(number))
    return removed
end

-- By the members of CREATED by which they were found.
function verbs.sweep()
    local removed = {}
    for place = 2, #ARGV do
        local member = ARGV[place]
        local id = string.sub(member, 16)
        local visit = found(id)
        if visit and visit.created_at == string.sub(member, 1, 15) then
            remove(id, visit, removed)
        end
    end
    return removed
end

return verbs[ARGV[1]](ARGV[2], ARGV[3])
