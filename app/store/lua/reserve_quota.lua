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

local function stand(score)
  local line, asks = K.quota_line .. name, K.quota_asks .. name
  if redis.call('ZCARD', line) >= MOST_IN_LINE and not redis.call('ZSCORE', line, id) then return end
  redis.call('ZADD', line, 'NX', score, id)
  quota_stand(name, id, { requests = own.requests, tokens = own.tokens, from = 0, till = time + patience, worker = worker })
  redis.call('PEXPIRE', line, LINE_TTL_MS)
  redis.call('PEXPIRE', asks, LINE_TTL_MS)
end

local function take_place()
  local score = place ~= '@' and redis.call('ZSCORE', K.quota_line .. name, place)
  if not score then return end
  quota_leave(name, place)
  stand(score)
end

local function asked_ahead()
  local ahead = { requests = 0, tokens = 0, slots = 0 }
  for _, ask in ipairs(quota_line(name, time)) do
    if ask.id == id then break end
    if ask.from <= time then
      ahead.requests, ahead.tokens = ahead.requests + ask.requests, ahead.tokens + ask.tokens
      ahead.slots = ahead.slots + 1
    end
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
