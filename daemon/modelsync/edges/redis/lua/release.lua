-- Give the lease back, or hand it to a successor, and tell the others. PROTOCOL.md section 4, script `release`.
-- KEYS: lease events
-- ARGV: epoch holder nonce successor state announcement
local lease = redis.call('HMGET', KEYS[1], 'epoch', 'holder', 'nonce', 'state')
if lease[1] ~= ARGV[1] or lease[2] ~= ARGV[2] or lease[3] ~= ARGV[3] or lease[4] ~= 'held' then
  return {0, unpack(redis.call('HGETALL', KEYS[1]))}
end
redis.call('HSET', KEYS[1], 'state', ARGV[5], 'successor', ARGV[4])
redis.call('PUBLISH', KEYS[2], ARGV[6])
return {1}
