-- Note which messages are to leave for a session.
-- KEYS: the list, what is written when nothing else is. ARGV: what it says of each
for _, member in ipairs(ARGV) do
    redis.call('ZADD', KEYS[1], 0, member)
end
redis.call('SET', KEYS[2], '', 'EX', 60)
return 1
