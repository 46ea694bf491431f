-- One fenced catalog change. PROTOCOL.md section 4, script `publish`.
-- KEYS: lease log model models events
-- ARGV: epoch holder nonce id name version digest announcement nlog log... nhash hash... delete...
-- A script that fails half way is not undone, so everything that can fail is looked at before the first write.
local epoch, holder, nonce = ARGV[1], ARGV[2], ARGV[3]
local id, name, version, digest, announcement = ARGV[4], ARGV[5], ARGV[6], ARGV[7], ARGV[8]

local function slice(from, count)
  local part = {}
  for i = 1, count do part[i] = ARGV[from + i] end
  return part
end
local nlog = tonumber(ARGV[9])
local log = slice(9, nlog)
local nhash = tonumber(ARGV[10 + nlog])
local hash = slice(10 + nlog, nhash)
local first_delete = 11 + nlog + nhash
if nlog < 2 or nlog % 2 == 1 or nhash % 2 == 1 or first_delete > #ARGV + 1 then
  return redis.error_reply('MALFORMED the numbers of fields do not fit the arguments')
end
local function type_is(key, wanted)
  local found = redis.call('TYPE', key)
  found = found.ok or found
  return found == 'none' or found == wanted
end
if not type_is(KEYS[3], 'hash') or not type_is(KEYS[4], 'set') then
  return redis.error_reply('WRONGTYPE the key of a model is no hash, or that of the models no set')
end

-- (1) the fence: this epoch, this holder, this grant
local lease = redis.call('HMGET', KEYS[1], 'epoch', 'holder', 'nonce', 'state')
if lease[1] ~= epoch or lease[2] ~= holder or lease[3] ~= nonce or lease[4] ~= 'held' then
  return {0, 'lease'}
end

-- (2) ids only grow; the very last entry again is a repeat whose answer was lost
local function parts(text)
  local e, s = string.match(text, '^(%d+)-(%d+)$')
  if not e or #e > 16 or #s > 16 then return nil, nil end -- beyond 2^53 Lua cannot tell two numbers apart
  return tonumber(e), tonumber(s)
end
local function same(one, other)
  if #one ~= #other then return false end
  for i = 1, #one do
    if one[i] ~= other[i] then return false end
  end
  return true
end
local id_epoch, id_seq = parts(id)
if not id_epoch or id_epoch ~= tonumber(epoch) then return {0, 'id'} end
local tail = redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 1)
if #tail > 0 then
  if tail[1][1] == id then
    if same(tail[1][2], log) then return {2} end
    return {0, 'id'}
  end
  local tail_epoch, tail_seq = parts(tail[1][1])
  if not tail_epoch or tail_epoch > id_epoch or (tail_epoch == id_epoch and tail_seq > id_seq) then
    return {0, 'id'}
  end
end
-- A writer that names the entry it follows is told where this Redis has lost it: its fields alone, on top of an older
-- record, would drop what was lost for good, since nobody looks for it once the log's end has moved on.
for i = 1, nlog, 2 do
  if log[i] == 'after' and log[i + 1] ~= (#tail > 0 and tail[1][1] or '0-0') then return {0, 'behind'} end
end

-- (3) a version number never changes content
if version ~= '' and digest ~= '' then
  local known = redis.call('HGET', KEYS[3], 'v:' .. version)
  -- The field by its name: `parent` and `content` hold digests as well. A quote inside a text is escaped in JSON.
  if known and string.match(known, '"digest"%s*:%s*"([^"]*)"') ~= digest then return {0, 'conflict'} end
end

-- (4) all checks passed: write
redis.call('XADD', KEYS[2], 'MAXLEN', '~', 10000, id, unpack(log))
if nhash > 0 then redis.call('HSET', KEYS[3], unpack(hash)) end
for i = first_delete, #ARGV do redis.call('HDEL', KEYS[3], ARGV[i]) end
if name ~= '' then redis.call('SADD', KEYS[4], name) end
redis.call('PUBLISH', KEYS[5], announcement)
return {1}
