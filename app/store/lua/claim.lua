-- Takes due tasks of several queues for one worker: lease, attempt number, payload and the event task_started.
--
-- Ready tasks are taken in order of their scores, which are places in the turns of their users (see `ready_new` in lib.lua). A
-- task whose score is a time gets its place first, once that has come: a delayed one, a retry, one whose worker did not renew
-- its lease, one of a stock client.
-- A queue that has fewer due tasks than asked for notes the worker as a sleeper in the same step, so that no enqueue can
-- fall between looking and sleeping.
--
-- A worker that sleeps has sent this call ahead, behind a BLMOVE from its wake list to its woken list: it runs when the
-- worker is woken, without a word between the two. Each queue in the woken list is good for one task: the worker had room
-- for one when it went to sleep there, and every claim since then has put that right.
--
-- KEYS: none
-- ARGV: worker, lease_ms, budget (bound on the sum), then pairs: queue, want; no pairs: what the woken list says
-- returns: {server time ms, next due time ms of these queues or -1, {claim ...}, {queue ...}, {message ...}}; a claim is
--   {id, queue, payload ('' if gone), token, attempt, lost (1: the worker of the attempt before died),
--   values of FIELDS, what the hash of its steps holds (flat; nothing where there is none, or too much)}; the queues are those that may hold more due tasks; the messages are those of the woken list
local worker, lease_ms, budget = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local time = now()
local soonest = -1
local claims, left = {}, {}
local running = {}
-- What a stock worker writes as its mark. Our own marks are tokens, which begin behind it.
local STOCK = 1
local ROUNDS = 20
-- Tasks that get their place in one round: a few milliseconds of the server's time.
local PROMOTED = 1000
local BELOW_TIMES = string.format('(%.0f', L.band)
local aborts = redis.call('EXISTS', K.abort) == 1

-- Whether gates hold a task. It should not be here before they let it in: what holds it may be gone without an end.
local healed = {}
local function is_parked(id, gates)
  if may_pass(id, gates) then return false end
  if not healed[gates] then
    healed[gates] = true
    heal(gates, time)
  end
  return not may_pass(id, gates)
end

-- Tasks whose time has come get their place among the ready ones: delayed ones, retries after their backoff, tasks of dead
-- workers, tasks of stock clients. What was claimed before, and what a stock worker was seen to run, has begun. Each task
-- passes here once, so the cost does not grow with the backlog. Returns whether more may be due.
local function promote(queue)
  local zset = queue_key(queue)
  local ids = redis.call('ZRANGEBYSCORE', zset, L.band, time, 'LIMIT', 0, PROMOTED)
  for _, id in ipairs(ids) do
    local record = redis.call('HMGET', K.task .. id, 'status', 'user_id', 'priority', 'cost', 'started_at', 'due_at', 'gates')
    if record[7] and is_parked(id, record[7]) then
      -- Not `later`: one that leaves a gate further on in this call may let it in.
      redis.call('ZADD', zset, time + L.park_ms, id)
      if record[1] == 'WAITING' then resume(id, time) end
    else
      local is_new = not record[1] or ((record[6] or record[7]) and not record[5])
      local ready = is_new and ready_new or ready_again
      later('ZADD', zset, ready(queue, record[2] or 'arq', record[3], record[4]), id)
    end
  end
  if #ids > 0 then flush() end
  return #ids == PROMOTED
end

local FIELDS = { 'status', 'attempt', 'lease', 'user_id', 'project_id', 'task', 'parent_id', 'root_id', 'correlation_id',
  'tags', 'enqueued_at', 'due_at', 'progress', 'cancel', 'unknown_since', 'steps', 'resumes', 'after', 'gates',
  'step_bytes' }

-- Whether somebody runs the task all the same: a stock worker, or a worker of ours whose lease stands (an arq client that
-- aborts a running task moves its score). It is looked at again when that may have changed.
local function is_held(id, queue, holder, status, lease)
  local wait
  if holder == tostring(STOCK) then
    wait = lease_ms
  elseif holder and status == 'STARTED' and holder == lease then
    wait = redis.call('PTTL', K.in_progress .. id)
  else
    return false
  end
  later('ZADD', queue_key(queue), time + math.max(wait, 1), id)
  return true
end

-- Says in events and history that the worker of an attempt died.
local function note_loss(id, key, channels, attempt)
  local error = '{"type":"WorkerLost","message":"the worker of attempt ' .. attempt
    .. ' stopped renewing its lease","retryable":true}'
  remember(key, attempt, error, time)
  emit(channels, 'task_retrying', id, '{"attempt":' .. attempt .. ',"error":' .. error .. ',"next_attempt_at":"' .. iso(time)
    .. '"}')
end

-- The steps of a task, which its worker asks for first of all, where they are small.
local function steps_of(id, steps, bytes)
  if not steps or (tonumber(bytes) or 0) > L.claim_steps_bytes then return false end
  return redis.call('HGETALL', K.steps .. id)
end

-- Returns whether the task was claimed.
local function take(id, queue)
  local key = K.task .. id
  local payload, holder, tried = unpack(redis.call('MGET', K.job .. id, K.in_progress .. id, K.retry .. id))
  local fields = redis.call('HMGET', key, unpack(FIELDS))
  local status = fields[1]
  if is_held(id, queue, holder, status, fields[3]) then return false end
  if status == 'SUCCESS' or status == 'FAILURE' or status == 'CANCELLED' then
    if not payload or redis.call('EXISTS', K.result .. id) == 1 then
      later('ZREM', queue_key(queue), id)
      return false
    end
    -- The result is gone, and an arq client has used the id for another task.
    forget(id)
    status = false
  end
  if not status then
    adopt(id, queue, payload, time)
    fields = redis.call('HMGET', key, unpack(FIELDS))
  end
  if aborts and redis.call('ZSCORE', K.abort, id) then
    -- Where it has started others the mark stays: the heartbeat that takes it away cancels those too.
    if redis.call('EXISTS', K.children .. id) == 0 then redis.call('ZREM', K.abort, id) end
    redis.call('HSET', key, 'cancel', 1)
    fields[14] = '1'
  end
  -- An arq client that aborts a parked task makes it ready.
  if fields[19] and status == 'PENDING' and not fields[14] and is_parked(id, fields[19]) then
    redis.call('ZADD', queue_key(queue), time + L.park_ms, id)
    return false
  end
  if status == 'WAITING' then
    -- Its wait has lasted as long as it may.
    stop_waiting(id, queue)
    if fields[3] then fields[17] = '1' end
  end
  -- A stock worker on the same queue counts its tries in its own key. To come back from a wait is the same attempt.
  local attempt = math.max(tonumber(fields[2]) or 0, tonumber(tried) or 0) + (fields[17] and 0 or 1)
  if fields[17] then redis.call('HDEL', key, 'resumes') end
  local token = (tonumber(fields[3]) or STOCK) + 1
  local lost = status == 'STARTED' and 1 or 0
  later('ZADD', queue_key(queue), time + lease_ms, id)
  if fields[17] then
    -- The attempt began before it waited.
    redis.call('HSET', key, 'status', 'STARTED', 'attempt', attempt, 'lease', token, 'worker', worker)
  else
    redis.call('HSET', key, 'status', 'STARTED', 'attempt', attempt, 'lease', token, 'worker', worker, 'started_at', time)
  end
  redis.call('SET', K.in_progress .. id, token, 'PX', lease_ms)
  if attempt > 1 then redis.call('SET', K.retry .. id, attempt, 'EX', 88400) end
  local channels = channels_of(id, fields[4], fields[5])
  if lost == 1 then
    note_loss(id, key, channels, attempt - 1)
  else
    running[queue] = (running[queue] or 0) + 1
  end
  emit(channels, 'task_started', id, '{"attempt":' .. attempt .. '}')
  claims[#claims + 1] = { id, queue, payload or '', token, attempt, lost, fields, steps_of(id, fields[16], fields[20]) }
  return true
end

-- Takes up to `want` ready tasks; those that cannot be taken make room for the ones behind them. Returns how many it took,
-- whether no due ones are left, and the highest score taken.
local function take_due(queue, want)
  local taken, last = 0, nil
  for _ = 1, ROUNDS do
    local asked = want - taken
    local more = promote(queue)
    local found = redis.call('ZRANGEBYSCORE', queue_key(queue), '-inf', BELOW_TIMES, 'WITHSCORES', 'LIMIT', 0, asked)
    for at = 1, #found, 2 do
      if take(found[at], queue) then
        taken = taken + 1
        last = math.max(last or -math.huge, tonumber(found[at + 1]))
      end
    end
    flush()
    if #found < 2 * asked and not more then return taken, true, last end
    if taken == want then break end
  end
  return taken, false, last
end

-- Notes where the queue has come to in the band of the last task taken, and forgets the lines that end before: their users
-- are as good as new ones. The bands before it are empty. A queue without ready tasks keeps nothing. The step lets
-- the queue move on while all its users are new ones, so that nobody's second task waits for the last of them.
local function move_on(queue, is_empty, last)
  local fair = K.fair .. queue
  if is_empty then
    redis.call('DEL', fair)
  elseif last then
    local head = last + L.cost_step
    redis.call('ZADD', fair, 'GT', head, 0 - math.floor(last / L.band))
    redis.call('ZREMRANGEBYSCORE', fair, '-inf', string.format('(%.17g', head))
  end
end

local function look(queue, want)
  local zset, sleepers = queue_key(queue), K.sleepers .. queue
  local taken, dry, last = take_due(queue, want)
  move_on(queue, dry, last)
  budget = budget - taken
  if dry then
    redis.call('ZADD', sleepers, time, worker)
    local first = redis.call('ZRANGE', zset, 0, 0, 'WITHSCORES')
    if first[1] and (soonest < 0 or tonumber(first[2]) < soonest) then soonest = tonumber(first[2]) end
  else
    left[#left + 1] = queue
    redis.call('ZREM', sleepers, worker)
    if redis.call('EXISTS', sleepers) == 1 and redis.call('ZCOUNT', zset, '-inf', time) > 0 then wake(queue, time) end
  end
end

local wants, messages = {}, {}
for at = 4, #ARGV, 2 do wants[#wants + 1] = { ARGV[at], tonumber(ARGV[at + 1]) } end
if #ARGV == 3 then
  messages = redis.call('LRANGE', K.woken .. worker, 0, -1)
  redis.call('DEL', K.woken .. worker)
  for _, message in ipairs(messages) do
    if string.match(message, '^%a') then wants[#wants + 1] = { message, 1 } end
  end
end
for _, pair_of in ipairs(wants) do
  local queue, want = pair_of[1], math.min(pair_of[2], budget)
  if redis.call('SISMEMBER', K.paused, queue) == 0 then
    if want > 0 then
      look(queue, want)
    else
      -- The worker is full before it came to this queue: it must look again, and nobody should count on it.
      left[#left + 1] = queue
      redis.call('ZREM', K.sleepers .. queue, worker)
    end
  end
end
publish(time)
for queue, count in pairs(running) do redis.call('HINCRBY', K.counts .. queue, 'running', count) end
return { time, soonest, claims, left, messages }
