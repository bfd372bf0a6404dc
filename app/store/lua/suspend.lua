-- Ends attempts in a wait: notes what each task waits for, and looks in the same step at what of it has come about already.
--
-- A task that comes to the same wait again, because it was resumed for nothing, goes on with the deadline of the first time.
--
-- KEYS: none
-- ARGV: for each task: id, token, queue, number of the wait among the steps, facts (JSON), timeout_ms, fail_fast (1 or 0),
--   waiting_for (JSON object), ttl_ms (for how long what it waits for is kept beyond its deadline), number of subjects,
--   subjects: `task:<id>`, `event:<name>`, `approval:<id>`
-- returns: for each task 1, or 0 when the token is stale and nothing was changed
local FIELDS = 10
local time = now()
local running, waiting, ready = {}, {}, {}

-- Whether a subject has come about, and whether as a failure. What is not there (any more) never will.
local function look(id, subject)
  local kind, name = string.match(subject, '^(%a+):(.*)$')
  if kind == 'task' then
    local status = redis.call('HGET', K.task .. name, 'status')
    return not status or FINISHED[status] == true, status ~= 'SUCCESS'
  elseif kind == 'event' then
    return redis.call('HEXISTS', K.inbox .. id, 'first:' .. name) == 1, false
  end
  return redis.call('HGET', K.approval .. name, 'status') ~= 'PENDING', false
end

-- What of the subjects is still to come (nothing when the wait is over all the same), and what has come about.
local function pending_of(id, first, count, fail_fast)
  local pending, past = {}, {}
  for at = first, first + count - 1 do
    local over, failed = look(id, ARGV[at])
    if not over then
      pending[#pending + 1] = ARGV[at]
    elseif failed and fail_fast then
      return {}, {}
    else
      past[#past + 1] = ARGV[at]
    end
  end
  return pending, past
end

local function deadline_of(at, record)
  local steps, number = K.steps .. ARGV[at], ARGV[at + 3]
  local begun = redis.call('HGET', steps, 'wait:' .. number)
  if begun then return tonumber(string.match(begun, '^%d+')) end
  local deadline = string.format('%.0f', time + tonumber(ARGV[at + 5]))
  redis.call('HSET', steps, 'wait:' .. number, deadline .. ' ' .. ARGV[at + 4])
  -- Says to the next attempt that something is stored.
  if not record[7] then redis.call('HSET', K.task .. ARGV[at], 'steps', 0) end
  return tonumber(deadline)
end

local function wait(at, deadline, pending, past, record)
  local id, queue = ARGV[at], ARGV[at + 2]
  for first = 1, #pending, 1000 do
    redis.call('SADD', K.pending .. id, unpack(pending, first, math.min(first + 999, #pending)))
  end
  for _, subject in ipairs(pending) do
    local task = string.match(subject, '^task:(.*)$')
    if task then await(id, task, deadline) end
  end
  for _, subject in ipairs(past) do
    -- The others may come about long after this one is over, and its result is wanted then.
    local task = string.match(subject, '^task:(.*)$')
    if task then keep_until(task, deadline + tonumber(ARGV[at + 8]), time) end
  end
  redis.call('HSET', K.task .. id, 'status', 'WAITING', 'waiting_for', ARGV[at + 7], 'wait_until', deadline,
    'fail_fast', ARGV[at + 6], 'resumes', 1)
  later('ZADD', queue_key(queue), deadline, id)
  waiting[queue] = (waiting[queue] or 0) + 1
  emit(channels_of(id, record[3], record[4]), 'task_waiting', id, '{"waiting_for":' .. string.sub(ARGV[at + 7], 1, -2)
    .. ',"until":"' .. iso(deadline) .. '"}}')
end

local function suspend(at)
  local id, queue, count = ARGV[at], ARGV[at + 2], tonumber(ARGV[at + 9])
  local record = redis.call('HMGET', K.task .. id, 'status', 'lease', 'user_id', 'project_id', 'priority', 'cancel', 'steps',
    'cost')
  if record[1] ~= 'STARTED' or record[2] ~= ARGV[at + 1] then return 0 end
  local deadline = deadline_of(at, record)
  local pending, past = pending_of(id, at + FIELDS, count, ARGV[at + 6] == '1')
  redis.call('DEL', K.in_progress .. id, K.pending .. id)
  running[queue] = (running[queue] or 0) + 1
  -- A task that was cancelled while its attempt ended must not wait: its next claim ends it.
  if record[6] or deadline <= time or (count > 0 and #pending == 0) then
    redis.call('HSET', K.task .. id, 'status', 'PENDING', 'due_at', time, 'resumes', 1)
    later('ZADD', queue_key(queue), ready_again(queue, record[3], record[5], record[8]), id)
    ready[queue] = true
  else
    wait(at, deadline, pending, past, record)
  end
  return 1
end

local replies, at = {}, 1
while ARGV[at] do
  replies[#replies + 1] = suspend(at)
  at = at + FIELDS + tonumber(ARGV[at + 9])
end
flush()
publish(time)
for queue, count in pairs(running) do redis.call('HINCRBY', K.counts .. queue, 'running', -count) end
for queue, count in pairs(waiting) do redis.call('HINCRBY', K.counts .. queue, 'waiting', count) end
for queue in pairs(ready) do wake(queue, time) end
return replies
