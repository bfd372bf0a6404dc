-- What stands in queues.
--
-- KEYS: none
-- ARGV: queue names
-- returns: for each queue {name, ready, delayed, running, waiting, dead, age of the oldest ready task in ms or -1 (see below),
--   finished in the last minute, paused (1 or 0)}
local time = now()
local minute = math.floor(time / 60000)

-- Tasks looked at for the age, of each priority.
local SAMPLE = 20
local BELOW_TIMES = string.format('(%.0f', L.band)

-- Since when a task is ready whose score is no time. Of a stock client's that nobody has claimed, arq's payload tells when it
-- was enqueued, in its last field. Of one whose worker died it is not known.
local function ready_since(id)
  local record = redis.call('HMGET', K.task .. id, 'status', 'due_at', 'enqueued_at')
  if not record[1] then
    return tonumber(string.match(redis.call('GETRANGE', K.job .. id, -40, -1), '"et": ?(%d+)}$'))
  elseif record[1] == 'PENDING' or record[1] == 'RETRY' then
    return tonumber(record[2] or record[3])
  end
end

-- The age of the task that is ready longest, of those next to be taken of each priority and of those whose time has come
-- since the last claim. One that is older may stand further back, behind others of its user.
local function oldest_age(zset)
  local oldest = redis.call('ZRANGEBYSCORE', zset, L.band, time, 'WITHSCORES', 'LIMIT', 0, 1)[2]
  oldest = tonumber(oldest) or math.huge
  for priority = 0, L.priority_max do
    local top = priority == 0 and BELOW_TIMES or string.format('(%.0f', (1 - priority) * L.band)
    for _, id in ipairs(redis.call('ZRANGEBYSCORE', zset, 0 - priority * L.band, top, 'LIMIT', 0, SAMPLE)) do
      oldest = math.min(oldest, ready_since(id) or math.huge)
    end
  end
  return oldest < math.huge and math.max(0, time - oldest) or -1
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
