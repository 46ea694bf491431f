-- Write a heartbeat, if the lease is still held under this very grant. PROTOCOL.md section 4, script `renew`.
-- KEYS: lease
-- ARGV: epoch holder nonce seq
local lease = redis.call('HMGET', KEYS[1], 'epoch', 'holder', 'nonce', 'state')
if lease[1] ~= ARGV[1] or lease[2] ~= ARGV[2] or lease[3] ~= ARGV[3] or lease[4] ~= 'held' then
  local found = redis.call('HGETALL', KEYS[1])
  if #found == 0 then return {-1} end
  return {0, unpack(found)}
end
redis.call('HSET', KEYS[1], 'seq', ARGV[4])
return {1}
