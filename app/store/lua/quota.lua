-- Shared by the scripts of quotas, which have it behind lib.lua: what of a key is used, who waits for it, what still fits.
--
-- Use is counted in buckets of a hundredth of the window. A window touches at most BUCKETS + 1 of them; one more is for the
-- way from here to the provider. So where no COUNTED buckets in a row hold more than the limit, no window does, and 98 % of
-- the limit can be used. The sums over the buckets that count stand beside them; buckets that have left are taken off first.
--
-- Who waits stands in line by the time of its first ask. What those ahead asked for is not given away, so nobody starves, and
-- nobody needs to be served before the next one can be. An ask counts until `till`, unless it is repeated. The place of a task
-- that was sent away is parked until it is to come back, and counts from then on.
--
-- KEYS: none
-- ARGV: none
-- returns: nothing; defines quota_open, quota_add, quota_share, quota_leave, quota_read, quota_note, quota_stand,
--   quota_return, quota_walk, quota_held, quota_wait
local BUCKETS = 100
local COUNTED = BUCKETS + 2
local MOST_IN_LINE = 1000
-- So many of the line are read at a time.
local CHUNK = 50
-- How soon somebody who waits for a slot looks again on its own, the later the more are ahead; a slot that is given back
-- wakes it before.
local SLOT_WAIT_MS, SLOT_WAIT_EACH_MS, SLOT_WAIT_MOST_MS = 1000, 10, 5000
local LINE_TTL_MS = 7200000

local function quota_names(kind, first, last)
  local names = {}
  for bucket = first, last do names[#names + 1] = kind .. string.format('%.0f', bucket) end
  return names
end

local function quota_sum(key, names)
  local sum = 0
  for _, value in ipairs(redis.call('HMGET', key, unpack(names))) do sum = sum + (tonumber(value) or 0) end
  return sum
end

local function quota_evict(use)
  local oldest = use.bucket - COUNTED + 1
  if use.first >= oldest then return end
  if oldest - use.first > COUNTED then
    -- The clock was set forward: all of it has left, and it may be too much to name.
    redis.call('DEL', use.key)
    use.first, use.requests, use.tokens = use.bucket, 0, 0
    return
  end
  for field, kind in pairs({ requests = 'r', tokens = 't' }) do
    local names = quota_names(kind, use.first, oldest - 1)
    use[field] = redis.call('HINCRBY', use.key, field, -quota_sum(use.key, names))
    redis.call('HDEL', use.key, unpack(names))
  end
  use.first = oldest
  redis.call('HSET', use.key, 'first', oldest)
end

-- What counts at `time`. The hash expires when its last bucket leaves, so there is never much to evict. A clock that was set
-- back counts into the oldest bucket that still counts.
local function quota_open(name, window, time)
  local use = { key = K.quota .. name, window = window, width = math.ceil(window / BUCKETS) }
  local state = redis.call('HMGET', use.key, 'first', 'requests', 'tokens')
  use.bucket = math.floor(time / use.width)
  use.first = tonumber(state[1]) or use.bucket
  use.bucket = math.max(use.bucket, use.first)
  use.requests, use.tokens = tonumber(state[2]) or 0, tonumber(state[3]) or 0
  if state[1] then quota_evict(use) end
  return use
end

-- Adds to a bucket, or takes off it; one that has left counts no more.
local function quota_add(use, bucket, requests, tokens)
  if bucket < use.first then return end
  local suffix = string.format('%.0f', bucket)
  redis.call('HINCRBY', use.key, 'r' .. suffix, requests)
  redis.call('HINCRBY', use.key, 't' .. suffix, tokens)
  use.requests = redis.call('HINCRBY', use.key, 'requests', requests)
  use.tokens = redis.call('HINCRBY', use.key, 'tokens', tokens)
end

-- What share of the limits is in force, and until when (0: they are whole).
local function quota_share(name, time)
  local share, till = string.match(redis.call('GET', K.quota_shrunk .. name) or '', '^(%S+) (%d+)$')
  if not share or tonumber(till) <= time then return 1, 0 end
  return tonumber(share), tonumber(till)
end

local function quota_leave(name, ...)
  redis.call('HDEL', K.quota_asks .. name, ...)
  return redis.call('ZREM', K.quota_line .. name, ...)
end

local function quota_read(id, text)
  local requests, tokens, arrived, till, worker = string.match(text or '', '^(%d+) (%d+) (%d+) (%d+) (.*)$')
  if not requests then return nil end
  return { id = id, requests = tonumber(requests), tokens = tonumber(tokens), arrived = tonumber(arrived),
    till = tonumber(till), worker = worker }
end

local function quota_note(name, ask)
  redis.call('HSET', K.quota_asks .. name, ask.id,
    string.format('%.0f %.0f %.0f %.0f %s', ask.requests, ask.tokens, ask.arrived, ask.till, ask.worker))
  redis.call('PEXPIRE', K.quota_asks .. name, LINE_TTL_MS)
end

local function quota_stand(name, ask)
  redis.call('ZADD', K.quota_line .. name, ask.arrived, ask.id)
  redis.call('PEXPIRE', K.quota_line .. name, LINE_TTL_MS)
  quota_note(name, ask)
end

-- Parked places whose time has come stand in line again, where they stood.
local function quota_return(name, time)
  local parked = K.quota_parked .. name
  for _, place in ipairs(redis.call('ZRANGEBYSCORE', parked, '-inf', string.format('%.0f', time), 'LIMIT', 0, CHUNK)) do
    local ask = quota_read(place, redis.call('HGET', K.quota_asks .. name, place))
    redis.call('ZREM', parked, place)
    if ask then quota_stand(name, ask) end
  end
end

-- Shows `visit` who waits, in order, until it returns true. Asks whose time is over leave.
local function quota_walk(name, time, visit)
  local first, ids = 0, nil
  repeat
    ids = redis.call('ZRANGE', K.quota_line .. name, first, first + CHUNK - 1)
    if #ids == 0 then return end
    local gone, seen_enough = {}, false
    for index, text in ipairs(redis.call('HMGET', K.quota_asks .. name, unpack(ids))) do
      local ask = quota_read(ids[index], text)
      if not ask or ask.till < time then
        gone[#gone + 1] = ids[index]
      elseif visit(ask) then
        seen_enough = true
        break
      end
    end
    if #gone > 0 then quota_leave(name, unpack(gone)) end
    first = first + #ids - #gone
  until seen_enough or #ids < CHUNK
end

-- Slots that are held; those of dead holders are free again.
local function quota_held(name, time)
  redis.call('ZREMRANGEBYSCORE', K.quota_slots .. name, '-inf', string.format('%.0f', time))
  return redis.call('ZCARD', K.quota_slots .. name)
end

-- Ms until `excess` has left the window, when those ahead use what they asked for.
local function quota_free_in(use, kind, excess, limit, time)
  local rounds = math.ceil(excess / limit) - 1
  local rest, freed = excess - rounds * limit, 0
  local counts = redis.call('HMGET', use.key, unpack(quota_names(kind, use.first, use.bucket)))
  for index, count in ipairs(counts) do
    freed = freed + (tonumber(count) or 0)
    if freed >= rest then
      return rounds * use.window + (use.first + index - 1 + COUNTED) * use.width - time
    end
  end
  return rounds * use.window + COUNTED * use.width
end

-- Ms until `own` fits behind `ahead` (0: now). `limits` hold -1 where there is none.
local function quota_wait(name, use, limits, ahead, own, time)
  local share, till = quota_share(name, time)
  local wait = share == 0 and till - time or 0
  for field, kind in pairs({ requests = 'r', tokens = 't' }) do
    if limits[field] >= 0 and own[field] > 0 and share > 0 then
      local limit = math.max(1, math.floor(limits[field] * share))
      local excess = use[field] + ahead[field] + own[field] - limit
      if own[field] > limit then
        wait = math.max(wait, till - time)
      elseif excess > 0 then
        wait = math.max(wait, quota_free_in(use, kind, excess, limit, time))
      end
    end
  end
  if limits.slots >= 0 and quota_held(name, time) + ahead.slots + 1 > limits.slots then
    wait = math.max(wait, math.min(SLOT_WAIT_MS + SLOT_WAIT_EACH_MS * ahead.slots, SLOT_WAIT_MOST_MS))
  end
  return wait
end
