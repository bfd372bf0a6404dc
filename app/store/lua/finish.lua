-- Ends attempts for good: result, status, event, dead letter, counters. One call commits all that are ready together.
--
-- KEYS: none
-- ARGV: for each task 10 values: id, token, queue, status (SUCCESS, FAILURE, CANCELLED), result (arq's JSON), ttl_ms,
--   error (JSON or ''), event payload (JSON), traceback (or ''), dead_letter (1 or 0)
-- returns: for each task 1, or 0 when the token is stale and nothing was changed
local FIELDS = 10
local EVENTS = { SUCCESS = 'task_complete', FAILURE = 'task_failed', CANCELLED = 'task_cancelled' }
local time = now()
local finished, dead = {}, {}

local function bury(id, queue, user, error, traceback)
  local key = K.dead_letter .. id
  -- A stock client may use an id again, whose letter gives way.
  local before = redis.call('HGET', key, 'failed_at')
  if before then unbury(before .. ':' .. id) end
  redis.call('DEL', key)
  local names = { 'task', 'project_id', 'tags', 'enqueued_at', 'attempt', 'correlation_id', 'history', 'root_id', 'parent_id',
    'priority', 'after', 'key' }
  local fields = { 'queue', queue, 'user_id', user, 'error', error, 'traceback', traceback, 'failed_at', time, 'payload',
    redis.call('GET', K.job .. id) or '' }
  for index, value in ipairs(redis.call('HMGET', K.task .. id, unpack(names))) do
    if value then
      fields[#fields + 1] = names[index]
      fields[#fields + 1] = value
    end
  end
  redis.call('HSET', key, unpack(fields))
  local member = string.format('%.0f', time) .. ':' .. id
  redis.call('ZADD', K.dead, 0, member)
  redis.call('ZADD', K.dead .. ':' .. user, 0, member)
  dead[queue] = (dead[queue] or 0) + 1
end

local function finish(at)
  local id, queue, status, error = ARGV[at], ARGV[at + 2], ARGV[at + 3], ARGV[at + 6]
  local record = redis.call('HMGET', K.task .. id, 'status', 'lease', 'user_id', 'project_id', 'awaited', 'gates')
  if record[1] ~= 'STARTED' or record[2] ~= ARGV[at + 1] then return 0 end
  if ARGV[at + 9] == '1' then bury(id, queue, record[3], error, ARGV[at + 8]) end
  settle(id, queue, status, record[5], record[6], ARGV[at + 4], tonumber(ARGV[at + 5]), time, 'error', error)
  later_delete(K.in_progress .. id, K.retry .. id, K.job .. id)
  emit(channels_of(id, record[3], record[4]), EVENTS[status], id, ARGV[at + 7])
  finished[queue] = (finished[queue] or 0) + 1
  return 1
end

local replies = {}
for at = 1, #ARGV, FIELDS do replies[#replies + 1] = finish(at) end
flush()
publish(time)
local minute = string.format('%.0f', math.floor(time / 60000))
for queue, count in pairs(finished) do
  redis.call('HINCRBY', K.counts .. queue, 'running', -count)
  redis.call('INCRBY', K.counts .. queue .. ':' .. minute, count)
  redis.call('EXPIRE', K.counts .. queue .. ':' .. minute, 180)
end
for queue, count in pairs(dead) do redis.call('HINCRBY', K.counts .. queue, 'dead', count) end
return replies
