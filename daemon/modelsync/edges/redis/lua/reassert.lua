-- Write back a lease that Redis lost, if nothing here was granted since. PROTOCOL.md section 4, script `reassert`.
-- KEYS: lease epoch log
-- ARGV: epoch holder nonce seq url
-- As in `acquire`: above 2^53 two epochs would compare as equal.
local MAX = 9007199254740991
local function whole(text)
  local number = text and string.find(text, '^%d+$') and #text <= 16 and tonumber(text)
  return number and number <= MAX and number or nil
end
local function malformed(what)
  return redis.error_reply('MALFORMED ' .. what .. ' is not a whole number below 2^53')
end

local epoch = whole(ARGV[1])
if not epoch then return malformed('epoch') end
local above = false
if redis.call('EXISTS', KEYS[1]) == 1 then
  local held = whole(redis.call('HGET', KEYS[1], 'epoch'))
  if not held then return malformed('epoch of the lease') end
  above = held >= epoch
end
local granted = redis.call('GET', KEYS[2])
if granted then
  if not whole(granted) then return malformed('the epoch key') end
  above = above or whole(granted) > epoch
end
local tail = redis.call('XREVRANGE', KEYS[3], '+', '-', 'COUNT', 1)
if #tail > 0 then
  local logged = whole(string.match(tail[1][1], '^(%d+)-'))
  if not logged then return malformed('the last epoch of the log') end
  above = above or logged > epoch
end
if above then return {0, unpack(redis.call('HGETALL', KEYS[1]))} end

redis.call('SET', KEYS[2], ARGV[1])
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[1], 'epoch', ARGV[1], 'holder', ARGV[2], 'nonce', ARGV[3], 'seq', ARGV[4], 'state', 'held',
  'successor', '', 'url', ARGV[5])
return {1}
