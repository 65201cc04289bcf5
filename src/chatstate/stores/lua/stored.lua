-- A text as it lies there, for re-encryption: whether it is all right, else the text; nothing when there is none.
-- KEYS: where it lies
-- ARGV: the shelf; what begins those that are all right, or ''; what begins those that are sealed; the field
local TEXTS = {
    sessions = function(kept)
        return string.sub(kept, head_of(kept).size + 1)
    end,
    versions = function(kept)
        return cmsgpack.unpack(kept)[4]
    end,
    remembered = function(kept)
        return cmsgpack.unpack(kept).state
    end,
    records = function(kept)
        return string.sub(kept, 47)
    end,
}
TEXTS.inbox = function(kept)
    return kept
end
TEXTS.outbox = TEXTS.inbox
local text_in, head, sealed = TEXTS[ARGV[1]], ARGV[2], ARGV[3]

local function begins(text, start)
    return string.sub(text, 1, #start) == start
end

local kept
if ARGV[1] == 'sessions' then
    kept = redis.call('GET', KEYS[1])
else
    kept = redis.call('HGET', KEYS[1], ARGV[4])
end
local text = kept and text_in(kept)
if not text or text == '' and (ARGV[1] == 'inbox' or ARGV[1] == 'outbox') then
    return false
elseif head == '' and not begins(text, sealed) or head ~= '' and begins(text, head) then
    return { 1 }
end
return { 0, text }
