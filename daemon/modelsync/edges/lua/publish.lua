-- One fenced catalog change. PROTOCOL.md section 4, script `publish`.
-- KEYS: lease log model models events
-- ARGV: epoch holder nonce id name version digest announcement nlog log... nhash hash... delete...
local epoch, holder, nonce = ARGV[1], ARGV[2], ARGV[3]
local id, name, version, digest, announcement = ARGV[4], ARGV[5], ARGV[6], ARGV[7], ARGV[8]

-- (1) the fence: this epoch, this holder, this grant
local lease = redis.call('HMGET', KEYS[1], 'epoch', 'holder', 'nonce', 'state')
if lease[1] ~= epoch or lease[2] ~= holder or lease[3] ~= nonce or lease[4] ~= 'held' then
  return {0, 'lease'}
end

-- (2) ids only grow; the last one again is a repeat whose answer was lost
local function parts(text)
  local e, s = string.match(text, '^(%d+)-(%d+)$')
  return tonumber(e), tonumber(s)
end
local id_epoch, id_seq = parts(id)
if id_epoch ~= tonumber(epoch) then return {0, 'id'} end
local tail = redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 1)
if #tail > 0 then
  if tail[1][1] == id then return {2} end
  local tail_epoch, tail_seq = parts(tail[1][1])
  if tail_epoch > id_epoch or (tail_epoch == id_epoch and tail_seq > id_seq) then return {0, 'id'} end
end

-- (3) a version number never changes content
if version ~= '' and digest ~= '' then
  local known = redis.call('HGET', KEYS[3], 'v:' .. version)
  if known and not string.find(known, digest, 1, true) then return {0, 'conflict'} end
end

-- (4) all checks passed: write
local at = 9
local nlog = tonumber(ARGV[at])
local fields = {}
for i = 1, nlog do fields[i] = ARGV[at + i] end
redis.call('XADD', KEYS[2], 'MAXLEN', '~', 10000, id, unpack(fields))
at = at + nlog + 1
local nhash = tonumber(ARGV[at])
if nhash > 0 then
  local hash = {}
  for i = 1, nhash do hash[i] = ARGV[at + i] end
  redis.call('HSET', KEYS[3], unpack(hash))
end
for i = at + nhash + 1, #ARGV do redis.call('HDEL', KEYS[3], ARGV[i]) end
if name ~= '' then redis.call('SADD', KEYS[4], name) end
redis.call('PUBLISH', KEYS[5], announcement)
return {1}
