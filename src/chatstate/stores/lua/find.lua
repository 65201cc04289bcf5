-- Where a message is. That it is nowhere is confirmed as a write is, for it is answered as one.
-- KEYS: the pointer, what is written when nothing else is
redis.call('SET', KEYS[2], '', 'EX', 60)
return redis.call('GET', KEYS[1])
