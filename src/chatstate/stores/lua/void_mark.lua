-- From now on the session does not take in the message by this number or a lower one; unless it has: then how.
-- KEYS: the mark. ARGV: the number, how long it is kept, and below which number a mark is of a message that was there
-- before a copy has put this one in its place
local kept = redis.call('GET', KEYS[1])
local known, number = kept and cmsgpack.unpack(kept), tonumber(ARGV[1])
if known and known.number < tonumber(ARGV[3]) then
    known = nil
end
if known and (known.applied or known.number >= number) then
    redis.call('SET', KEYS[1], kept, 'KEEPTTL') -- so that it is confirmed before it is answered
    return known.applied and kept
end
redis.call('SET', KEYS[1], cmsgpack.pack({ number = number }), 'EX', ARGV[2])
return false
