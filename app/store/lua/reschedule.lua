-- Ends attempts that are to run again: a retry after its backoff, or a task that is handed back.
--
-- KEYS: none
-- ARGV: for each task 10 values: id, token, queue, status (RETRY or PENDING), delay_ms, cost (1: the attempt counts, 0: it
--   does not), error (JSON or ''), event type, event payload (a JSON object; next_attempt_at is added), name of a field that
--   keeps the time of the first reschedule that names it, or ''
-- returns: for each task 1, or 0 when the token is stale and nothing was changed
local FIELDS = 10
local time = now()
local running = {}
local ready = {}

local function next_attempt(payload, due)
  local body = string.sub(payload, 1, -2)
  return body .. (body == '{' and '' or ',') .. '"next_attempt_at":"' .. iso(due) .. '"}'
end

local function put_back(id, queue, due, user, priority, cost)
  local score = due
  if due <= time then
    score = ready_again(queue, user, priority, cost)
    ready[queue] = true
  end
  later('ZADD', queue_key(queue), score, id)
end

local function reschedule(at)
  local id, queue, error, key = ARGV[at], ARGV[at + 2], ARGV[at + 6], K.task .. ARGV[at]
  local record = redis.call('HMGET', key, 'status', 'lease', 'user_id', 'project_id', 'attempt', 'priority', 'cancel',
    'cost')
  if record[1] ~= 'STARTED' or record[2] ~= ARGV[at + 1] then return 0 end
  -- A task that was cancelled while its attempt ended must not wait out a backoff: its next claim ends it.
  local delay = record[7] and 0 or tonumber(ARGV[at + 4])
  local due, attempt = time + delay, tonumber(record[5])
  if error ~= '' then remember(key, attempt, error, time) end
  if ARGV[at + 5] == '0' then
    attempt = attempt - 1
  end
  redis.call('SET', K.retry .. id, attempt, 'EX', 88400)
  redis.call('HSET', key, 'status', ARGV[at + 3], 'due_at', due, 'attempt', attempt, 'error', error)
  if ARGV[at + 9] ~= '' then redis.call('HSETNX', key, ARGV[at + 9], time) end
  redis.call('DEL', K.in_progress .. id)
  put_back(id, queue, due, record[3], record[6], record[8])
  emit(channels_of(id, record[3], record[4]), ARGV[at + 7], id, next_attempt(ARGV[at + 8], due))
  running[queue] = (running[queue] or 0) + 1
  return 1
end

local replies = {}
for at = 1, #ARGV, FIELDS do replies[#replies + 1] = reschedule(at) end
flush()
publish(time)
for queue, count in pairs(running) do redis.call('HINCRBY', K.counts .. queue, 'running', -count) end
for queue in pairs(ready) do wake(queue, time) end
return replies
