-- Say where a message is, unless that is known; and where it is.
-- KEYS: the pointer. ARGV: the conversation
redis.call('SET', KEYS[1], redis.call('GET', KEYS[1]) or ARGV[1])
return redis.call('GET', KEYS[1])
