-- What stands in queues.
--
-- KEYS: none
-- ARGV: queue names
-- returns: for each queue {name, ready, delayed, running, waiting, dead, age of the oldest ready task in ms or -1,
--   finished in the last minute, paused (1 or 0)}
local time = now()
local minute = math.floor(time / 60000)

-- The age of the task that is due longest. Each priority is a range of its own, oldest first.
local function oldest_age(zset)
  local oldest = -1
  for priority = 0, L.priority_max do
    local shift = priority * L.priority_ms
    local first = redis.call('ZRANGEBYSCORE', zset, time - shift - L.priority_ms / 2, time - shift, 'WITHSCORES', 'LIMIT', 0, 1)
    if first[1] then oldest = math.max(oldest, time - (tonumber(first[2]) + shift)) end
  end
  return oldest
end

local function finished_per_minute(queue)
  local before = tonumber(redis.call('GET', K.counts .. queue .. ':' .. string.format('%.0f', minute - 1))) or 0
  local current = tonumber(redis.call('GET', K.counts .. queue .. ':' .. string.format('%.0f', minute))) or 0
  return math.floor(current + before * (1 - time % 60000 / 60000) + 0.5)
end

local replies = {}
for _, queue in ipairs(ARGV) do
  local zset = queue_key(queue)
  local counts = redis.call('HMGET', K.counts .. queue, 'running', 'waiting', 'dead')
  local running, waiting, dead = tonumber(counts[1]) or 0, tonumber(counts[2]) or 0, tonumber(counts[3]) or 0
  local ready, all = redis.call('ZCOUNT', zset, '-inf', time), redis.call('ZCARD', zset)
  replies[#replies + 1] = { queue, ready, math.max(0, all - ready - running - waiting), running, waiting, dead,
    oldest_age(zset), finished_per_minute(queue), redis.call('SISMEMBER', K.paused, queue) }
end
return replies
