-- How many messages have arrived in a bucket; what arrives from now on has a higher number.
-- KEYS: how many have arrived
return redis.call('INCR', KEYS[1])
