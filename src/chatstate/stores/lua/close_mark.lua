-- The message is done, and what it has made leave is in the outbox: that it was taken in is known for a while.
-- KEYS: the mark. ARGV: how long it is kept
local kept = redis.call('GET', KEYS[1])
local known = kept and cmsgpack.unpack(kept)
if known and known.applied and redis.call('TTL', KEYS[1]) == -1 then -- else it has been closed
    redis.call('SET', KEYS[1], cmsgpack.pack({ applied = true, number = known.number }), 'EX', ARGV[1])
end
return 1
