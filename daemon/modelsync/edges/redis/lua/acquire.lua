-- Take the lease, if it still is what the candidate observed. PROTOCOL.md section 4, script `acquire`.
-- KEYS: lease epoch log
-- ARGV: holder nonce url, observed epoch nonce seq ("0" "" "0" for no lease), min_epoch
local holder, nonce, url = ARGV[1], ARGV[2], ARGV[3]

-- Lua's numbers are doubles: above 2^53 two epochs would compare as equal, so such a key is refused, not used.
local MAX = 9007199254740991
local function whole(text)
  local number = text and string.find(text, '^%d+$') and #text <= 16 and tonumber(text)
  return number and number <= MAX and number or nil
end
local function malformed(what)
  return redis.error_reply('MALFORMED ' .. what .. ' is not a whole number below 2^53')
end

-- (1) compare: exactly what was observed
local lease = redis.call('HMGET', KEYS[1], 'epoch', 'nonce', 'seq')
local there = redis.call('EXISTS', KEYS[1]) == 1
local seen = {'0', '', '0'}
if there then seen = {lease[1] or '', lease[2] or '', lease[3] or ''} end
if seen[1] ~= ARGV[4] or seen[2] ~= ARGV[5] or seen[3] ~= ARGV[6] then
  return {0, unpack(redis.call('HGETALL', KEYS[1]))}
end

-- (2) above every epoch that anybody remembers
local of_lease, least = whole(seen[1]), whole(ARGV[7])
if not of_lease then return malformed('epoch of the lease') end
if not least then return malformed('min_epoch') end
local highest = math.max(of_lease, least)
local granted = redis.call('GET', KEYS[2])
if granted then
  if not whole(granted) then return malformed('the epoch key') end
  highest = math.max(highest, whole(granted))
end
local tail = redis.call('XREVRANGE', KEYS[3], '+', '-', 'COUNT', 1)
if #tail > 0 then
  local logged = whole(string.match(tail[1][1], '^(%d+)-'))
  if not logged then return malformed('the last epoch of the log') end
  highest = math.max(highest, logged)
end
if highest >= MAX then return redis.error_reply('MALFORMED no epoch is left below 2^53') end

-- (3) set
local epoch = string.format('%.0f', highest + 1)
redis.call('SET', KEYS[2], epoch)
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[1], 'epoch', epoch, 'holder', holder, 'nonce', nonce, 'seq', '0', 'state', 'held',
  'successor', '', 'url', url)
return {1, epoch}
