-- Shared by all scripts: each gets those of these functions that it uses. K.<name> is a key prefix, L.<name> a limit, see
-- store/assembly.py.
--
-- KEYS: none. All keys are made from K and an id; Nightshift runs on one Redis, not on a cluster.
-- ARGV: none
-- returns: nothing; defines now, iso, pair, queue_key, channels_of, later, later_delete, ready_new, ready_again, flush, emit,
--   publish, wake, FINISHED, enter, may_pass, leave, heal, stop_waiting, resume, await, untold, tell, resolve, keep_for_waiters, keep_until,
--   approval_indices, approval_channels, close_approval, expire_approvals, withdraw_approvals, settle, remember, store_step,
--   step_facts, is_buried, unbury, forget_approvals, forget, adopt, cancel_unstarted. A script ends with flush and publish
--   where it uses what notes or emits.

-- The server's clock in Unix ms, so that the clocks of the hosts do not matter.
local function now()
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end

-- RFC 3339 in UTC. Days to date after Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms".
local function iso(ms)
  local seconds = math.floor(ms / 1000)
  local days = math.floor(seconds / 86400)
  local rest = seconds - days * 86400
  local z = days + 719468
  local era = math.floor(z / 146097)
  local doe = z - era * 146097
  local yoe = math.floor((doe - math.floor(doe / 1460) + math.floor(doe / 36524) - math.floor(doe / 146096)) / 365)
  local doy = doe - (365 * yoe + math.floor(yoe / 4) - math.floor(yoe / 100))
  local mp = math.floor((5 * doy + 2) / 153)
  local day = doy - math.floor((153 * mp + 2) / 5) + 1
  local month = mp < 10 and mp + 3 or mp - 9
  local year = yoe + era * 400 + (month <= 2 and 1 or 0)
  return string.format('%04d-%02d-%02dT%02d:%02d:%02d.%03dZ', year, month, day,
    math.floor(rest / 3600), math.floor(rest % 3600 / 60), rest % 60, ms % 1000)
end

-- Two names that may contain any character, joined as keys.pair does.
local function pair(first, second)
  return #first .. ':' .. first .. ':' .. second
end

local function queue_key(queue)
  if queue == 'default' then return K.queue end
  return K.queue .. ':' .. queue
end

-- The channels that a task's own events go to.
local function channels_of(id, user, project)
  local channels = { K.events .. 'task:' .. id, K.events .. 'user:' .. user }
  if project and project ~= '' then channels[3] = K.events .. 'project:' .. pair(user, project) end
  return channels
end

-- Writes that can go together do: a call from Lua costs more than most commands. `later` notes the arguments of a command on
-- a key, `flush` issues what was noted. What a script reads in between must not depend on it.
local noted = {}
local function later(command, key, ...)
  local name = command .. ' ' .. key
  local note = noted[name]
  if not note then
    note = { command, key, {} }
    noted[name] = note
  end
  for _, value in ipairs({ ... }) do note[3][#note[3] + 1] = value end
end

local doomed = {}
local function later_delete(...)
  for _, key in ipairs({ ... }) do doomed[#doomed + 1] = key end
end

-- Scores of ready tasks: start-time fair queueing (Goyal, Vin and Cheng, 1996), see engine/fairness.py. They are no times:
-- each priority is a band of L.band numbers, band 0 from 1 to L.band and each higher one below the one before, so that all
-- of them are due, a higher priority is read first, and none is 0, which arq's clients take for no score.
--
-- Within a band every user has two lines: of tasks that are new, and of those that have begun before (retries, what was
-- handed back, what resumes), which do not wait behind the user's own new ones. K.fair keeps the score that the next task
-- of a line gets at least, and under the number of the band alone the score of the last task taken: where nobody waits,
-- the band goes on from there. A band that is full, which takes a queue that is not empty for months, goes on in order of ids.
local lines = {}
local function place(queue, kind, user, priority, cost)
  local band = priority or '0'
  local name, top = band .. kind .. user, (1 - band) * L.band - 1
  local known = lines[queue]
  if not known then
    known = {}
    lines[queue] = known
  end
  local score = known[name]
  if not score then
    local stored = redis.call('ZMSCORE', K.fair .. queue, band, name)
    local head = tonumber(stored[1]) or 1 - band * L.band
    score = math.min(math.max(head, tonumber(stored[2]) or head), top)
  end
  known[name] = math.min(score + (tonumber(cost) or 1), top)
  return score
end

-- The score of a task that becomes ready and has not begun yet. `cost` is that of the record, or nothing for 1. Followed by
-- `flush`.
local function ready_new(queue, user, priority, cost)
  return place(queue, 'n', user, priority, cost)
end

-- The score of a task that becomes ready and has begun before. Followed by `flush`.
local function ready_again(queue, user, priority, cost)
  return place(queue, 'a', user, priority, cost)
end

-- Each noted command, in pieces: Lua bounds how many arguments a call has. The bound is even, so pairs stay together.
local function flush()
  for queue, known in pairs(lines) do
    local places = {}
    for name, score in pairs(known) do
      places[#places + 1] = score
      places[#places + 1] = name
    end
    noted['places ' .. queue] = { 'ZADD', K.fair .. queue, places }
  end
  lines = {}
  for _, note in pairs(noted) do
    for first = 1, #note[3], 1000 do
      redis.call(note[1], note[2], unpack(note[3], first, math.min(first + 999, #note[3])))
    end
  end
  for first = 1, #doomed, 1000 do redis.call('DEL', unpack(doomed, first, math.min(first + 999, #doomed))) end
  noted, doomed = {}, {}
end

-- Events by channel, in order, until `publish` writes them.
local outbox, outbox_order = {}, {}
local function emit(channels, kind, id, payload)
  local rest = ' ' .. kind .. ' ' .. id .. ' ' .. payload
  for _, channel in ipairs(channels) do
    local events = outbox[channel]
    if not events then
      events = {}
      outbox[channel] = events
      outbox_order[#outbox_order + 1] = channel
    end
    events[#events + 1] = rest
  end
end

local DAY_MS = 86400000

-- Returns whether these are the first events of the channel on this day.
local function append(channel, events, time)
  local ms, number, is_first = time, 0, true
  local last = redis.call('LINDEX', channel, -1)
  if last then
    local last_ms, last_number = string.match(last, '^(%d+)%-(%d+) ')
    ms, number = math.max(time, tonumber(last_ms)), tonumber(last_number)
    is_first = math.floor(last_ms / DAY_MS) ~= math.floor(time / DAY_MS)
  end
  local prefix = string.format('%.0f-', ms)
  for position, rest in ipairs(events) do events[position] = prefix .. (number + position) .. rest end
  local length = 0
  for first = 1, #events, 1000 do
    length = redis.call('RPUSH', channel, unpack(events, first, math.min(first + 999, #events)))
  end
  if length > L.channel_length * 1.1 then redis.call('LTRIM', channel, -L.channel_length, -1) end
  for _, entry in ipairs(events) do redis.call('PUBLISH', channel, entry) end
  return is_first
end

-- Appends the events to their channels and publishes them there. An entry is `<ms>-<number> <type> <task> <payload>`: the
-- server's time, which never goes back within a channel, and the number of the event in the channel, without holes. A channel
-- is a list and not a stream because most hold three events, and an empty stream takes 4 KiB. That of a task is deleted with
-- the task; the others expire L.channel_ttl_ms to a day more after their last event, which a day's first one sees to.
local function publish(time)
  local task_channel = K.events .. 'task:'
  for _, channel in ipairs(outbox_order) do
    local is_first = append(channel, outbox[channel], time)
    if is_first and string.sub(channel, 1, #task_channel) ~= task_channel then
      redis.call('PEXPIRE', channel, L.channel_ttl_ms + DAY_MS)
    end
  end
  outbox, outbox_order = {}, {}
end

-- Wakes the worker that went to sleep last on the queue, if any sleeps. One task wakes one sleeper; a worker that fills up
-- and leaves tasks ready wakes the next. One that has not renewed its place for L.sleeper_ms is dead.
local function wake(queue, time)
  local sleeper = redis.call('ZPOPMAX', K.sleepers .. queue)
  while sleeper[1] and tonumber(sleeper[2]) < time - L.sleeper_ms do
    sleeper = redis.call('ZPOPMAX', K.sleepers .. queue)
  end
  if sleeper[1] then
    redis.call('RPUSH', K.wake .. sleeper[1], queue)
    redis.call('PEXPIRE', K.wake .. sleeper[1], L.sleeper_ms)
  end
end

local FINISHED = { SUCCESS = true, FAILURE = true, CANCELLED = true }

-- Gates, see engine/gates.py: the unfinished tasks of a gate stand in it in the order in which they came, and the first
-- `limit` of them may run. Names and limits of its gates are a task's field `gates`, a flat JSON array.
--
-- Puts a task behind the last of a gate. Returns how many stand before it.
local function enter(gate, id)
  local last = redis.call('ZREVRANGE', K.gate .. gate, 0, 0, 'WITHSCORES')
  redis.call('ZADD', K.gate .. gate, (tonumber(last[2]) or 0) + 1, id)
  return redis.call('ZCARD', K.gate .. gate) - 1
end

-- Whether all gates of a task let it run. One that a gate has lost goes to its end.
local function may_pass(id, gates)
  local list = cjson.decode(gates)
  for at = 1, #list, 2 do
    local before = redis.call('ZRANK', K.gate .. list[at], id) or enter(list[at], id)
    if before >= list[at + 1] then return false end
  end
  return true
end

-- Whether the parent of a task is about to cancel it: it is cancelled itself, or has failed with another child of the group.
local function is_doomed(parent, gates)
  local record = redis.call('HMGET', K.task .. parent, 'status', 'cancel', 'failed_group')
  if record[1] == 'CANCELLED' or record[2] then return true end
  for _, gate in ipairs(record[3] and cjson.decode(gates) or {}) do
    if gate == record[3] then return true end
  end
  return false
end

-- A gate has come to a task: it becomes ready, or is due when it was to be, unless another gate holds it. One that is about to
-- be cancelled stays parked. Followed by `flush`.
local function admit(id, time)
  local record = redis.call('HMGET', K.task .. id, 'status', 'started_at', 'gates', 'queue', 'user_id', 'priority', 'cost',
    'due_at', 'parent_id')
  if record[1] ~= 'PENDING' or record[2] or not may_pass(id, record[3]) then return end
  if record[9] and is_doomed(record[9], record[3]) then return end
  local score = tonumber(record[8])
  if not score or score <= time then
    score = ready_new(record[4], record[5], record[6], record[7])
    redis.call('HSET', K.task .. id, 'due_at', time)
  end
  redis.call('ZADD', queue_key(record[4]), score, id)
  wake(record[4], time)
end

-- A task leaves its gates, and each lets in the one whose turn it is; that of a group that fails with its first failure lets
-- in no more. Written at once: what follows in the same script must see who stands where. Followed by `flush`.
local function leave(id, gates, failed, time)
  local list = cjson.decode(gates)
  for at = 1, #list, 2 do
    local gate, limit = K.gate .. list[at], list[at + 1]
    if failed and string.sub(list[at], 1, 10) == 'fail-fast:' then
      local parent = K.task .. (redis.call('HGET', K.task .. id, 'parent_id') or '')
      if redis.call('EXISTS', parent) == 1 then redis.call('HSET', parent, 'failed_group', list[at]) end
    end
    local before = redis.call('ZRANK', gate, id)
    if before then
      redis.call('ZREM', gate, id)
      local next = before < limit and redis.call('ZRANGE', gate, limit - 1, limit - 1)
      if next and next[1] then admit(next[1], time) end
    end
  end
end

-- Takes out of gates the first ones that are not there (any more): nothing else would. Followed by `flush`.
local function heal(gates, time)
  local list = cjson.decode(gates)
  for at = 1, #list, 2 do
    for _, member in ipairs(redis.call('ZRANGE', K.gate .. list[at], 0, math.min(list[at + 1], L.healed) - 1)) do
      local status = redis.call('HGET', K.task .. member, 'status')
      if not status or FINISHED[status] then leave(member, cjson.encode({ list[at], list[at + 1] }), false, time) end
    end
  end
end

-- Takes a task out of its wait, whatever comes of it next.
local function stop_waiting(id, queue)
  redis.call('DEL', K.pending .. id)
  redis.call('HDEL', K.task .. id, 'waiting_for', 'wait_until', 'fail_fast')
  redis.call('HINCRBY', K.counts .. queue, 'waiting', -1)
end

-- A waiting task has something to do again, unless it has not begun and its gates hold it. One that is not waiting (any more)
-- is left alone. Followed by `flush`.
local function resume(id, time)
  local record = redis.call('HMGET', K.task .. id, 'status', 'queue', 'priority', 'user_id', 'gates', 'cost')
  if record[1] ~= 'WAITING' then return end
  stop_waiting(id, record[2])
  redis.call('HSET', K.task .. id, 'status', 'PENDING', 'due_at', time)
  if record[5] and not may_pass(id, record[5]) then
    redis.call('ZADD', queue_key(record[2]), time + L.park_ms, id)
  else
    redis.call('ZADD', queue_key(record[2]), ready_again(record[2], record[4], record[3], record[6]), id)
    wake(record[2], time)
  end
end

-- A task begins to wait for another, until a time: so long the result of that is wanted.
local function await(id, task, deadline)
  redis.call('SADD', K.waiters .. task, id)
  local longest = tonumber(redis.call('HGET', K.task .. task, 'awaited'))
  if not longest or longest < deadline then redis.call('HSET', K.task .. task, 'awaited', deadline) end
end

-- How many waiting tasks this call of a script may yet tell of an end.
local untold = L.told_at_once

-- Tells tasks that wait for one that has ended. Each has a set of what it still waits for, so that an end that is told twice,
-- or to a task that has given up waiting and waits for something else now, changes nothing. Followed by `flush`.
local function tell(id, failed, time)
  local subject = 'task:' .. id
  local waiters = redis.call('SPOP', K.waiters .. id, untold)
  untold = untold - #waiters
  for _, waiter in ipairs(waiters) do
    if redis.call('SREM', K.pending .. waiter, subject) == 1 then
      local left = redis.call('EXISTS', K.pending .. waiter)
      if left == 0 or (failed and redis.call('HGET', K.task .. waiter, 'fail_fast') == '1') then resume(waiter, time) end
    end
  end
end

-- A task has ended, for which others wait. Those that are too many for one call are told by `tell_waiters.lua`.
local function resolve(id, failed, time)
  if untold > 0 then tell(id, failed, time) end
  if untold == 0 and redis.call('EXISTS', K.waiters .. id) == 1 then
    redis.call('ZADD', K.untold, time, (failed and '1:' or '0:') .. id)
  end
end

-- For how long to keep the result of a task for which others wait: longer than any wait on it lasts.
local function keep_for_waiters(awaited, ttl, time)
  return math.max(ttl, tonumber(awaited) - time + ttl)
end

-- Keeps a finished task and its result until a time, where they would be forgotten before.
local function keep_until(id, keep_ms, time)
  local left = redis.call('PTTL', K.result .. id)
  if left >= 0 and left < keep_ms - time then
    redis.call('PEXPIRE', K.result .. id, keep_ms - time)
    redis.call('ZADD', K.finished, 'XX', 'GT', keep_ms, id)
  end
end

-- The index entries of an approval behind a prefix: of all, of everybody it concerns by name, and of those with its scope.
local function approval_indices(prefix, user, deciders, scope)
  local indices = { prefix, prefix .. ':user:' .. user }
  for decider in string.gmatch(deciders or '', '[^\n]+') do
    if decider ~= user then indices[#indices + 1] = prefix .. ':user:' .. decider end
  end
  if scope and scope ~= '' then indices[#indices + 1] = prefix .. ':scope:' .. scope end
  return indices
end

-- The channels that an approval is announced on: those of its task, and of every user who is named as a decider.
local function approval_channels(task, user, project, deciders)
  local channels = channels_of(task, user, project)
  for decider in string.gmatch(deciders or '', '[^\n]+') do
    if decider ~= user then channels[#channels + 1] = K.events .. 'user:' .. decider end
  end
  return channels
end

-- Ends an approval that is pending, tells of it, and resumes its task if that waits for it. `by` is who did it, notes and
-- edits (JSON) what came with a decision; each may be nothing. Followed by `flush` and `publish`.
local function close_approval(id, status, time, by, notes, edits)
  local key = K.approval .. id
  local record = redis.call('HMGET', key, 'task_id', 'user_id', 'project_id', 'deciders', 'scope', 'created_at', 'subject')
  redis.call('ZREM', K.approval_deadlines, id)
  -- Heartbeats come here: one entry that somebody took the record of must not stop them.
  if not record[1] then return end
  redis.call('HSET', key, 'status', status, 'decided_at', time)
  local facts = '"approval_id":"' .. id .. '","subject":' .. cjson.encode(record[7]) .. ',"status":"' .. status .. '"'
  if status == 'APPROVED' or status == 'REJECTED' then facts = facts .. ',"approved":' .. tostring(status == 'APPROVED') end
  for _, fact in ipairs({ { 'decided_by', by }, { 'notes', notes }, { 'edits', edits } }) do
    local name, value = fact[1], fact[2]
    if value and value ~= '' then
      redis.call('HSET', key, name, value)
      facts = facts .. ',"' .. name .. '":' .. (name == 'edits' and value or cjson.encode(value))
    end
  end
  for _, index in ipairs(approval_indices(K.open_approvals, record[2], record[4], record[5])) do
    redis.call('ZREM', index, record[6] .. ':' .. id)
  end
  emit(approval_channels(record[1], record[2], record[3], record[4]), 'approval_decided', record[1],
    '{' .. facts .. '}')
  if redis.call('SREM', K.pending .. record[1], 'approval:' .. id) == 1 then resume(record[1], time) end
end

-- Ends approvals whose time is over, `limit` of them at most. Followed by `flush` and `publish`.
local function expire_approvals(time, limit)
  local due = redis.call('ZRANGEBYSCORE', K.approval_deadlines, '-inf', time, 'LIMIT', 0, limit)
  for _, id in ipairs(due) do close_approval(id, 'EXPIRED', time) end
  return #due
end

-- A task has ended: nobody reads a decision any more. Followed by `publish`.
local function withdraw_approvals(task, time)
  for _, id in ipairs(redis.call('SMEMBERS', K.task_approvals .. task)) do
    if redis.call('HGET', K.approval .. id, 'status') == 'PENDING' then close_approval(id, 'WITHDRAWN', time) end
  end
end

-- What every end of a task does to its keys: out of queue and gates, result stored, kept until `ttl` ms from now. `...` are
-- more fields of the record; `awaited` is until when others wait for it at most, or 0 where it has asked for an approval. Followed by
-- `flush`, and by `publish` behind what is emitted of the end.
local function settle(id, queue, status, awaited, gates, result, ttl, time, ...)
  later('ZREM', queue_key(queue), id)
  if awaited then ttl = keep_for_waiters(awaited, ttl, time) end
  later('ZADD', K.finished, time + ttl, id)
  redis.call('SET', K.result .. id, result, 'PX', ttl)
  redis.call('HSET', K.task .. id, 'status', status, 'finished_at', time, ...)
  if awaited then
    withdraw_approvals(id, time)
    resolve(id, status ~= 'SUCCESS', time)
  end
  if gates then leave(id, gates, status ~= 'SUCCESS', time) end
end

-- Notes the error of an attempt that is followed by another: `history` is the inside of a JSON array, shown in a dead letter.
local function remember(key, attempt, error, time)
  local history = redis.call('HGET', key, 'history')
  redis.call('HSET', key, 'history', (history and history .. ',' or '')
    .. '{"attempt":' .. attempt .. ',"at":"' .. iso(time) .. '","error":' .. error .. '}')
end

-- Stores a completed step under its number; one that is stored already stays as it is. Name and result are JSON.
local function store_step(id, number, name, result, duration_s, failed, time)
  local steps = K.steps .. id
  local facts = '{"name":' .. name .. ',"at_ms":' .. string.format('%.0f', time) .. ',"duration_s":' .. duration_s
    .. (failed and ',"failed":true}' or '}')
  if redis.call('HSETNX', steps, number, facts) == 1 then
    redis.call('HSET', steps, 'result:' .. number, result)
    redis.call('HDEL', steps, 'wait:' .. number)
    redis.call('HINCRBY', K.task .. id, 'steps', 1)
    redis.call('HINCRBY', K.task .. id, 'step_bytes', #facts + #result)
  end
end

-- Numbers and facts of a task's completed steps, flat. Not their results, which may be large.
local function step_facts(id)
  local steps = {}
  for _, field in ipairs(redis.call('HKEYS', K.steps .. id)) do
    if string.match(field, '^%d+$') then
      steps[#steps + 1] = field
      steps[#steps + 1] = redis.call('HGET', K.steps .. id, field)
    end
  end
  return steps
end

-- Whether a dead letter is there. Its key alone does not say so: where it was replayed, it keeps for a while by which task.
local function is_buried(id)
  return redis.call('HEXISTS', K.dead_letter .. id, 'failed_at') == 1
end

-- Takes a dead letter away; `member` is its entry in the indices. A task's steps live as long as its record or its letter.
local function unbury(member)
  local id = string.sub(member, string.find(member, ':', 1, true) + 1)
  redis.call('ZREM', K.dead, member)
  if is_buried(id) then
    local letter = redis.call('HMGET', K.dead_letter .. id, 'user_id', 'queue')
    redis.call('ZREM', K.dead .. ':' .. letter[1], member)
    redis.call('HINCRBY', K.counts .. letter[2], 'dead', -1)
    redis.call('DEL', K.dead_letter .. id)
  end
  if redis.call('EXISTS', K.task .. id) == 0 then redis.call('DEL', K.steps .. id) end
end

-- Takes the approvals away that a task asked for.
local function forget_approvals(task)
  for _, id in ipairs(redis.call('SMEMBERS', K.task_approvals .. task)) do
    local record = redis.call('HMGET', K.approval .. id, 'user_id', 'deciders', 'scope', 'created_at')
    for _, index in ipairs(approval_indices(K.approvals, record[1], record[2], record[3])) do
      redis.call('ZREM', index, record[4] .. ':' .. id)
    end
    redis.call('DEL', K.approval .. id)
  end
  redis.call('DEL', K.task_approvals .. task)
end

-- Takes a finished task's record away, with its events and every index entry of it. Payload and result stay, and the steps
-- where a dead letter may yet be replayed.
local function forget(id)
  local record = redis.call('HMGET', K.task .. id, 'user_id', 'project_id', 'tags', 'enqueued_at', 'parent_id',
    'awaited')
  local user, project, parent = record[1], record[2], record[5]
  if user then
    local member = record[4] .. ':' .. id
    redis.call('ZREM', K.tasks, member)
    redis.call('ZREM', K.tasks .. ':user:' .. user, member)
    if project then redis.call('ZREM', K.tasks .. ':project:' .. pair(user, project), member) end
    for tag in string.gmatch(record[3] or '', '[^\n]+') do
      redis.call('ZREM', K.tasks .. ':tag:' .. pair(user, tag), member)
    end
    if parent then redis.call('SREM', K.children .. parent, id) end
    if record[6] then forget_approvals(id) end
  end
  redis.call('DEL', K.task .. id, K.children .. id, K.inbox .. id, K.events .. 'task:' .. id)
  if not is_buried(id) then redis.call('DEL', K.steps .. id) end
  redis.call('ZREM', K.finished, id)
end

-- A task that a stock arq client enqueued gets its record.
local function adopt(id, queue, payload, time)
  local decoded, job = pcall(cjson.decode, payload or '')
  if not decoded or type(job) ~= 'table' then job = {} end
  local enqueued_at = math.floor(tonumber(job.et) or time)
  if not (enqueued_at >= 0 and enqueued_at <= time) then enqueued_at = time end
  -- The client may use an id again whose dead letter is still kept; the steps of that task are not this one's.
  redis.call('DEL', K.steps .. id)
  redis.call('HSET', K.task .. id, 'status', 'PENDING', 'task', type(job.f) == 'string' and job.f or '?', 'queue', queue,
    'user_id', 'arq', 'enqueued_at', enqueued_at, 'attempt', redis.call('GET', K.retry .. id) or 0)
  local member = string.format('%.0f', enqueued_at) .. ':' .. id
  redis.call('ZADD', K.tasks, 0, member)
  redis.call('ZADD', K.tasks .. ':user:arq', 0, member)
  redis.call('SADD', K.queues, queue)
  if payload then redis.call('PERSIST', K.job .. id) end
end

-- Ends a task that no worker holds, for a reason that needs no worker: CANCELLED. arq's clients read the result.
local function cancel_unstarted(id, queue, time, ttl)
  local record = redis.call('HMGET', K.task .. id, 'task', 'user_id', 'project_id', 'enqueued_at', 'attempt', 'status',
    'awaited', 'gates')
  if record[6] == 'WAITING' then stop_waiting(id, queue) end
  local error = '{"type":"TaskCancelled","message":"cancelled","retryable":false}'
  settle(id, queue, 'CANCELLED', record[7], record[8], '{"t":' .. record[5] .. ',"f":' .. cjson.encode(record[1]) .. ',"a":[],"k":{},"et":'
    .. record[4] .. ',"s":false,"r":' .. error .. ',"st":' .. string.format('%.0f', time) .. ',"ft":'
    .. string.format('%.0f', time) .. ',"q":' .. cjson.encode(queue_key(queue)) .. ',"id":' .. cjson.encode(id) .. '}', ttl, time,
    'error', error)
  redis.call('DEL', K.retry .. id)
  emit(channels_of(id, record[2], record[3]), 'task_cancelled', id, '{}')
end
