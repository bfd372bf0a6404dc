-- Takes due tasks of several queues for one worker: lease, attempt number, payload and the event task_started.
--
-- A task is due when its score has come: a new one, a delayed one, a retry, or one whose worker did not renew its lease.
-- A queue that has fewer due tasks than asked for notes the worker as a sleeper in the same step, so that no enqueue can
-- fall between looking and sleeping.
--
-- KEYS: none
-- ARGV: worker, lease_ms, budget (bound on the sum), then pairs: queue, want
-- returns: {server time ms, next due time ms of these queues or -1, {claim ...}}; a claim is
--   {id, queue, payload ('' if gone), token, attempt, lost (1: the worker of the attempt before died),
--   values of FIELDS}
local worker, lease_ms, budget = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local time = now()
local soonest = -1
local claims = {}
local running = {}
local aborts = redis.call('EXISTS', K.abort) == 1

-- Delayed tasks with a priority get their place among the ready ones.
local function promote(queue)
  local ids = redis.call('ZRANGEBYSCORE', K.promote .. queue, '-inf', time, 'LIMIT', 0, 100)
  for _, id in ipairs(ids) do
    local score = redis.call('ZSCORE', queue_key(queue), id)
    local status, priority = unpack(redis.call('HMGET', K.task .. id, 'status', 'priority'))
    if score and tonumber(score) <= time and (status == 'PENDING' or status == 'RETRY') then
      redis.call('ZADD', queue_key(queue), ready_score(tonumber(score), priority), id)
    end
    redis.call('ZREM', K.promote .. queue, id)
  end
end

local FIELDS = { 'status', 'attempt', 'lease', 'user_id', 'project_id', 'task', 'parent_id', 'root_id', 'correlation_id',
  'tags', 'enqueued_at', 'due_at', 'progress', 'cancel' }

local function take(id, queue)
  local key = K.task .. id
  local payload, holder = unpack(redis.call('MGET', K.job .. id, K.in_progress .. id))
  if holder == '1' then
    -- A stock worker runs it; it must not stand in the way of ready ones.
    later('ZADD', queue_key(queue), time + lease_ms, id)
    return
  end
  local fields = redis.call('HMGET', key, unpack(FIELDS))
  local status = fields[1]
  if not status then
    adopt(id, queue, payload, time)
    fields = redis.call('HMGET', key, unpack(FIELDS))
  elseif status == 'SUCCESS' or status == 'FAILURE' or status == 'CANCELLED' then
    later('ZREM', queue_key(queue), id)
    return
  end
  if aborts and redis.call('ZREM', K.abort, id) == 1 then
    redis.call('HSET', key, 'cancel', 1)
    fields[14] = '1'
  end
  local attempt, token = (tonumber(fields[2]) or 0) + 1, (tonumber(fields[3]) or 0) + 1
  local lost = status == 'STARTED' and 1 or 0
  later('ZADD', queue_key(queue), time + lease_ms, id)
  redis.call('HSET', key, 'status', 'STARTED', 'attempt', attempt, 'lease', token, 'worker', worker, 'started_at', time)
  redis.call('SET', K.in_progress .. id, token, 'PX', lease_ms)
  if attempt > 1 then redis.call('SET', K.retry .. id, attempt, 'EX', 88400) end
  local channels = channels_of(id, fields[4], fields[5])
  if lost == 1 then
    emit(channels, 'task_retrying', id, '{"attempt":' .. attempt .. ',"next_attempt_at":"' .. iso(time)
      .. '","error":{"type":"WorkerLost","message":"the worker of attempt ' .. (attempt - 1)
      .. ' stopped renewing its lease","retryable":true}}')
  else
    running[queue] = (running[queue] or 0) + 1
  end
  emit(channels, 'task_started', id, '{"attempt":' .. attempt .. '}')
  claims[#claims + 1] = { id, queue, payload or '', token, attempt, lost, fields }
end

local function look(queue, want)
  local zset, sleepers = queue_key(queue), K.sleepers .. queue
  promote(queue)
  local ids = redis.call('ZRANGEBYSCORE', zset, '-inf', time, 'LIMIT', 0, want)
  for _, id in ipairs(ids) do take(id, queue) end
  flush()
  budget = budget - #ids
  if #ids < want then
    redis.call('ZADD', sleepers, time, worker)
    local first = redis.call('ZRANGE', zset, 0, 0, 'WITHSCORES')
    if first[1] and (soonest < 0 or tonumber(first[2]) < soonest) then soonest = tonumber(first[2]) end
  else
    redis.call('ZREM', sleepers, worker)
    if redis.call('EXISTS', sleepers) == 1 and redis.call('ZCOUNT', zset, '-inf', time) > 0 then wake(queue, time) end
  end
end

for at = 4, #ARGV, 2 do
  local queue, want = ARGV[at], math.min(tonumber(ARGV[at + 1]), budget)
  if want > 0 and redis.call('SISMEMBER', K.paused, queue) == 0 then look(queue, want) end
end
publish(time)
for queue, count in pairs(running) do redis.call('HINCRBY', K.counts .. queue, 'running', count) end
return { time, soonest, claims }
