-- Forget what was remembered of an idempotency key, unless it has been used again since.
-- KEYS: what is remembered of the session; of its slot: what is remembered, by end
-- ARGV: the member by which it was found: when it ends, a digest, and the field
local kept = redis.call('HGET', KEYS[1], string.sub(ARGV[1], 80))
if kept and cmsgpack.unpack(kept).forget == string.sub(ARGV[1], 1, 15) then
    redis.call('HDEL', KEYS[1], string.sub(ARGV[1], 80))
end
return redis.call('ZREM', KEYS[2], ARGV[1])
