-- Takes requests, tokens and a slot of a key together, or nothing, and then says how long to wait. Behind quota.lua.
--
-- Called again with the same id until it is granted; the ask keeps its place in line meanwhile, and loses it when it is not
-- repeated within patience_ms. An id that was granted is granted again: the reply may have been lost.
--
-- KEYS: none
-- ARGV: key, id, task whose parked place in line this ask takes over (or ''), worker to wake ('' for none), requests, tokens,
--   limits: requests, tokens, slots (-1: no limit), window_ms, lease_ms of the slot, patience_ms
-- returns: {1 (granted) or 0, wait_ms until it is worth to ask again, server time ms}
local name, id, place, worker = ARGV[1], ARGV[2], '@' .. ARGV[3], ARGV[4]
local own = { requests = tonumber(ARGV[5]), tokens = tonumber(ARGV[6]) }
local limits = { requests = tonumber(ARGV[7]), tokens = tonumber(ARGV[8]), slots = tonumber(ARGV[9]) }
local window, lease, patience = tonumber(ARGV[10]), tonumber(ARGV[11]), tonumber(ARGV[12])
local time = now()

local function stamp(ms) return string.format('%.0f', ms) end

local function stand(arrived)
  local line = K.quota_line .. name
  local score = redis.call('ZSCORE', line, id)
  if not score and redis.call('ZCARD', line) >= MOST_IN_LINE then return end
  quota_stand(name, { id = id, requests = own.requests, tokens = own.tokens, arrived = tonumber(score) or arrived,
    till = time + patience, worker = worker })
end

local function take_place()
  local parked = place ~= '@' and quota_read(place, redis.call('HGET', K.quota_asks .. name, place))
  if not parked then return end
  redis.call('ZREM', K.quota_parked .. name, place)
  quota_leave(name, place)
  stand(parked.arrived)
end

local function too_many(ahead)
  for kind, limit in pairs(limits) do
    if limit >= 0 and ahead[kind] >= limit then return true end
  end
  return false
end

-- What those ahead want. It is read until it is too much in any case; the rest, which is a matter of how long the wait is
-- likely to be, is taken to want as much on average.
local function asked_ahead()
  local ahead, read, stopped = { requests = 0, tokens = 0, slots = 0 }, 0, false
  quota_walk(name, time, function(ask)
    if ask.id == id then return true end
    read = read + 1
    ahead.requests, ahead.tokens = ahead.requests + ask.requests, ahead.tokens + ask.tokens
    ahead.slots = ahead.slots + 1
    stopped = too_many(ahead)
    return stopped
  end)
  if stopped then
    local line = K.quota_line .. name
    local standing = redis.call('ZRANK', line, id) or redis.call('ZCARD', line)
    local factor = math.max(1, standing / read)
    for kind, sum in pairs(ahead) do ahead[kind] = math.ceil(sum * factor) end
  end
  return ahead
end

local function grant(use)
  local life = (COUNTED + 1) * use.width
  redis.call('HSETNX', use.key, 'first', use.bucket)
  quota_add(use, use.bucket, own.requests, own.tokens)
  redis.call('PEXPIRE', use.key, life)
  redis.call('SET', K.quota_hold .. id, stamp(use.bucket) .. ' ' .. ARGV[5] .. ' ' .. ARGV[6], 'PX', life)
  if limits.slots >= 0 then
    redis.call('ZADD', K.quota_slots .. name, time + lease, id)
    redis.call('PEXPIRE', K.quota_slots .. name, lease * 2)
  end
  quota_leave(name, id)
end

if redis.call('EXISTS', K.quota_hold .. id) == 1 then return { 1, 0, time } end
quota_return(name, time)
take_place()
local ahead = asked_ahead()
local use = quota_open(name, window, time)
local wait = quota_wait(name, use, limits, ahead, own, time)
if wait <= 0 then
  grant(use)
  return { 1, 0, time }
end
stand(time)
return { 0, math.ceil(wait), time }
