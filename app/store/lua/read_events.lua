-- Reads a channel behind an event. Numbers have no holes, so the place of an event follows from its number.
--
-- KEYS: none
-- ARGV: channel key, ms and number of the last event seen (0 and 0: none), limit
-- returns: {1 if events behind that one are not kept any more else 0, entry ...}
local channel, ms, number, limit = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])

local function id_of(entry)
  local entry_ms, entry_number = string.match(entry, '^(%d+)%-(%d+) ')
  return tonumber(entry_ms), tonumber(entry_number)
end

local seen = ms > 0 or number > 0
local first = redis.call('LINDEX', channel, 0)
if not first then return { seen and 1 or 0 } end
local _, first_number = id_of(first)
local at = number - first_number
local known = at >= 0 and redis.call('LINDEX', channel, at)
if not seen then
  return { 0, unpack(redis.call('LRANGE', channel, 0, limit - 1)) }
elseif known and id_of(known) == ms then
  return { 0, unpack(redis.call('LRANGE', channel, at + 1, at + limit)) }
elseif at == -1 then
  return { 0, unpack(redis.call('LRANGE', channel, 0, limit - 1)) }
end
-- The event seen was cut off, or the channel expired and began anew: everything later than it is new to the reader.
local entries = { 1 }
local position = 0
while #entries <= limit do
  local page = redis.call('LRANGE', channel, position, position + limit - 1)
  for _, entry in ipairs(page) do
    local entry_ms, entry_number = id_of(entry)
    local is_later = entry_ms > ms or (entry_ms == ms and entry_number > number)
    if is_later and #entries <= limit then entries[#entries + 1] = entry end
  end
  position = position + limit
  if #page < limit then break end
end
return entries
