-- Forget what was remembered of an idempotency key, unless it has been used again since.
-- KEYS: what is remembered of the session; of its slot: what is remembered by its end, and ids
-- ARGV: the id, the field, and when it ends; empty: whenever that is
local kept = redis.call('HGET', KEYS[1], ARGV[2])
if ARGV[3] ~= '' and not (kept and cmsgpack.unpack(kept).forget == ARGV[3]) then
    return redis.call('ZREM', KEYS[2], ARGV[3] .. ARGV[1] .. '\0' .. ARGV[2])
end
return forget_key(KEYS, ARGV[1], ARGV[2]) and 1 or 0
