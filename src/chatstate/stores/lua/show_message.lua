-- What is known of a message, and what it says.
-- KEYS: what is known of the conversation's messages, what they say. ARGV: its key
return { redis.call('HGET', KEYS[1], ARGV[1]), redis.call('HGET', KEYS[2], ARGV[1]) or '' }
