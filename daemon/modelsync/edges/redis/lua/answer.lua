-- What became of a command, once and by the holder alone. PROTOCOL.md section 4, script `answer`.
-- KEYS: lease answered answers events
-- ARGV: epoch holder nonce text names...
-- An earlier holder that slept must not refuse what its successor has carried out: hence the fence.
local lease = redis.call('HMGET', KEYS[1], 'epoch', 'holder', 'nonce', 'state')
if lease[1] ~= ARGV[1] or lease[2] ~= ARGV[2] or lease[3] ~= ARGV[3] or lease[4] ~= 'held' then
  return {0, 'lease'}
end
local known = {}
for _, name in ipairs(redis.call('LRANGE', KEYS[2], 0, -1)) do known[name] = true end
for i = 5, #ARGV do
  if known[ARGV[i]] then return {2} end
end
for i = 5, #ARGV do redis.call('LPUSH', KEYS[2], ARGV[i]) end
redis.call('LTRIM', KEYS[2], 0, 1999)
redis.call('LPUSH', KEYS[3], ARGV[4])
redis.call('LTRIM', KEYS[3], 0, 99)
redis.call('PUBLISH', KEYS[4], ARGV[4])
return {1}
