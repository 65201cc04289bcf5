-- Remember what an idempotency key came to, as it is; for copies.
-- KEYS: what is remembered of the session; of its slot: what is remembered by its end, and ids
-- ARGV: the id, the field, and what it came to (MessagePack)
remember_key(KEYS, ARGV[1], ARGV[2], cmsgpack.unpack(ARGV[3]))
return 1
