-- Compare and set a pointer; what it is then.
-- KEYS: the pointer
-- ARGV: what it must be, and what it becomes; '' stands for none
local found = redis.call('GET', KEYS[1]) or ''
if found == ARGV[1] then
    found = ARGV[2]
end
if found == '' then
    redis.call('DEL', KEYS[1])
else
    redis.call('SET', KEYS[1], found) -- also if it was this already: so that it is confirmed before it is answered
end
return found
