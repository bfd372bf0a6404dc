-- Accepts tasks: record, payload, queue, indices, the event task_queued and the wake-up, in one step.
--
-- Tasks come in groups; a group is accepted as a whole or not at all, and groups do not affect each other. Several
-- requests that are ready at once share one call this way.
--
-- What a key or a group asks of a task is done by the functions of keyed.lua, which only a script has that takes such tasks
-- (enqueue_keyed): to define them costs more than to enqueue a plain task.
--
-- KEYS: none
-- ARGV: max_depth, then for each group: number of tasks, then for each task 20 values:
--   id, task, queue, payload, at (Unix ms, or '' for now), delay_ms, priority, user, project, parent, root, tags
--   (joined by a newline), idempotency key, fingerprint of the request, extra fields (flat JSON array of names and values),
--   lease token of the parent's attempt that starts the task ('' where no attempt does), id of the dead letter that the
--   task replays (or ''), 1 where it takes over the letter's steps else 0, cost
--   ('' for 1), gates and key (JSON, see keyed.lua, or '')
-- returns: for each group {'ok', time (Unix ms; 0 where this call repeats one that was carried out), {id, 0 or 1 (created), ids
--   that are still to be cancelled as those of a `rest` of cancel.lua ...} ...}, {'full', queue}, {'conflict', idempotency key},
--   {'cancelled', parent}, {'stale', parent}, {'missing', id of a task after which one is to begin}, {'replayed', letter, id of
--   the task that it became ('' where nobody knows of such a letter)}, {'busy', key, its unfinished task}, {'own', key, ancestor
--   under it} or {'throttled', key}
local FIELDS = 20
local time = now()
local max_depth = tonumber(ARGV[1])

local depth, soonest = {}, {}

-- Unfinished tasks of a queue, those of earlier groups of this call included.
local function depth_of(queue)
  depth[queue] = depth[queue] or redis.call('ZCARD', queue_key(queue))
  return depth[queue]
end

-- Why a task may not be started under its parent.
local function refuse_child(parent, token)
  local state = redis.call('HMGET', K.task .. parent, 'cancel', 'status', 'lease')
  if token ~= '' and (state[2] ~= 'STARTED' or state[3] ~= token) then return { 'stale', parent } end
  if state[1] or state[2] == 'CANCELLED' then return { 'cancelled', parent } end
end

-- Why a dead letter cannot be replayed: another task has done so, or it was discarded.
local function refuse_letter(letter)
  if not is_buried(letter) then
    return { 'replayed', letter, redis.call('HGET', K.dead_letter .. letter, 'replayed_as') or '' }
  end
end

-- What a task's extra fields say it is to begin after: ids joined by a newline, or nothing.
local function after_of(at)
  if not string.find(ARGV[at + 14], '"after",', 1, true) then return nil end
  local extra = cjson.decode(ARGV[at + 14])
  for n = 1, #extra, 2 do
    if extra[n] == 'after' then return extra[n + 1] end
  end
end

-- Why a task may not begin after others: one is not there, or somebody else's. Those of its own `group` are about to be made.
local function refuse_after(at, group)
  for id in string.gmatch(after_of(at) or '', '[^\n]+') do
    if not group[id] and redis.call('HGET', K.task .. id, 'user_id') ~= ARGV[at + 7] then return { 'missing', id } end
  end
end

-- Looks at one task of a group. Returns an error reply, or the id of the task that its key already made. Ids are new, so a
-- task that exists is one that this call made when it was carried out before, and its reply was lost.
local function check(at, group)
  local id, user, parent, key = ARGV[at], ARGV[at + 7], ARGV[at + 9], ARGV[at + 12]
  if key ~= '' then
    local made = redis.call('GET', K.idempotency .. pair(user, key))
    if made then
      local fingerprint, old = string.match(made, '^(%S+) (.+)$')
      if fingerprint ~= ARGV[at + 13] then return { 'conflict', key } end
      return nil, old
    end
  end
  if redis.call('EXISTS', K.task .. id, K.job .. id, K.result .. id) > 0 then return nil, id end
  if ARGV[at + 16] ~= '' then return refuse_letter(ARGV[at + 16]) end
  local refusal = refuse_after(at, group)
  if refusal then return refusal end
  if parent ~= '' then return refuse_child(parent, ARGV[at + 15]) end
end

-- Positions of the optional fields of a record; an empty one, and priority 0, is not stored.
local OPTIONAL = { [6] = 'priority', [8] = 'project_id', [9] = 'parent_id', [10] = 'root_id', [11] = 'tags', [18] = 'cost' }

local function write_record(at, id, due, asked)
  local fields = { 'status', 'PENDING', 'task', ARGV[at + 1], 'queue', ARGV[at + 2], 'user_id', ARGV[at + 7],
    'enqueued_at', time, 'attempt', 0 }
  for offset, name in pairs(OPTIONAL) do
    local value = ARGV[at + offset]
    if value ~= '' and value ~= '0' then
      fields[#fields + 1] = name
      fields[#fields + 1] = value
    end
  end
  if due > time then
    fields[#fields + 1] = 'due_at'
    fields[#fields + 1] = due
  end
  if ARGV[at + 14] ~= '' then
    for _, value in ipairs(cjson.decode(ARGV[at + 14])) do fields[#fields + 1] = value end
  end
  redis.call('HSET', K.task .. id, unpack(fields))
  if asked then note_policy(id, asked, time) end
end

local stamp = string.format('%.0f', time) .. ':'
local first_id = string.format('%.0f', time) .. '-1'

local function write_indices(at, id)
  local member = stamp .. id
  local user, project, parent, tags = ARGV[at + 7], ARGV[at + 8], ARGV[at + 9], ARGV[at + 11]
  later('ZADD', K.tasks, 0, member)
  later('ZADD', K.tasks .. ':user:' .. user, 0, member)
  if project ~= '' then later('ZADD', K.tasks .. ':project:' .. pair(user, project), 0, member) end
  for tag in string.gmatch(tags, '[^\n]+') do later('ZADD', K.tasks .. ':tag:' .. pair(user, tag), 0, member) end
  if parent ~= '' then later('SADD', K.children .. parent, id) end
end

-- When the first task of a queue is due that is not ready yet.
local function soonest_of(queue)
  if not soonest[queue] then
    local first = redis.call('ZRANGEBYSCORE', queue_key(queue), '(' .. string.format('%.0f', time), '+inf', 'WITHSCORES',
      'LIMIT', 0, 1)
    soonest[queue] = tonumber(first[2]) or math.huge
  end
  return soonest[queue]
end

-- Puts a task into its queue. One that its gates hold is parked.
local function write_schedule(at, queue, id, due, ready, parked)
  if parked then
    later('ZADD', queue_key(queue), time + L.park_ms, id)
  elseif due <= time then
    later('ZADD', queue_key(queue), ready_new(queue, ARGV[at + 7], ARGV[at + 6], ARGV[at + 18]), id)
    ready[queue] = true
  else
    -- A sleeper knows when the next task is due that it saw; an earlier one must be told.
    if due < soonest_of(queue) then
      soonest[queue] = due
      ready[queue] = true
    end
    later('ZADD', queue_key(queue), due, id)
  end
end

-- Completed steps of a dead letter become those of a new task. What a wait has begun and not ended is left behind.
local function take_steps(letter, id)
  local from, to, stored, kept, bytes = K.steps .. letter, K.steps .. id, {}, 0, 0
  -- A copy: while the old record lives, it shows its steps.
  if redis.call('COPY', from, to) == 0 then return end
  local failed = math.huge
  local fields = redis.call('HKEYS', to)
  for _, field in ipairs(fields) do
    stored[field] = true
    -- A wait that ended in an error is to be made anew, and so is all that came of it.
    if string.match(field, '^%d+$') and string.sub(redis.call('HGET', to, field), -15) == ',"failed":true}' then
      failed = math.min(failed, tonumber(field))
    end
  end
  for _, field in ipairs(fields) do
    local number = string.match(field, '^%d+$') or string.match(field, '^result:(%d+)$')
    if not (number and stored[number] and stored['result:' .. number] and tonumber(number) < failed) then
      redis.call('HDEL', to, field)
    else
      bytes = bytes + redis.call('HSTRLEN', to, field)
      if number == field then kept = kept + 1 end
    end
  end
  if kept > 0 then redis.call('HSET', K.task .. id, 'steps', kept, 'step_bytes', bytes) end
end

-- The dead letter becomes the task: it leaves the list, and for as long as an idempotency key lives its key says where to.
local function replay(letter, id, takes_steps)
  local key = K.dead_letter .. letter
  local fields = redis.call('HMGET', key, 'failed_at', 'user_id')
  if takes_steps then take_steps(letter, id) end
  unbury(fields[1] .. ':' .. letter)
  redis.call('HSET', key, 'user_id', fields[2], 'replayed_as', id)
  redis.call('PEXPIRE', key, L.idempotency_ttl_ms)
end

-- A task that is to begin when others have ended waits for those that have not. `names` are the ids that tasks of the group
-- have got, where others stand for them. A later one of the group may have replaced it already.
local function write_wait(at, after, names, ready, gates)
  local id, queue, pending, past = ARGV[at], ARGV[at + 2], 0, {}
  after = string.gsub(after, '[^\n]+', names)
  redis.call('HSET', K.task .. id, 'after', after)
  if gates and redis.call('HGET', K.task .. id, 'status') ~= 'PENDING' then return end
  local deadline = time + L.after_ms
  for task in string.gmatch(after, '[^\n]+') do
    local status = redis.call('HGET', K.task .. task, 'status')
    if status and not FINISHED[status] and redis.call('SADD', K.pending .. id, 'task:' .. task) == 1 then
      await(id, task, deadline)
      pending = pending + 1
    elseif FINISHED[status] then
      past[#past + 1] = task
    end
  end
  if pending == 0 then return write_schedule(at, queue, id, time, ready, gates and is_held(id, gates)) end
  local shown = '{"kind":"tasks","step":"after","count":' .. pending
  redis.call('HSET', K.task .. id, 'status', 'WAITING', 'waiting_for', shown .. '}', 'wait_until', deadline)
  -- The others may end long after these, whose results are wanted then.
  for _, task in ipairs(past) do keep_until(task, deadline + L.after_ms, time) end
  redis.call('HINCRBY', K.counts .. queue, 'waiting', 1)
  later('ZADD', queue_key(queue), deadline, id)
  emit(channels_of(id, ARGV[at + 7], ARGV[at + 8]), 'task_waiting', id, '{"waiting_for":' .. shown .. ',"until":"' .. iso(deadline)
    .. '"}}')
end

local function note_key(at, id)
  local user, key = ARGV[at + 7], ARGV[at + 12]
  if key ~= '' then
    redis.call('SET', K.idempotency .. pair(user, key), ARGV[at + 13] .. ' ' .. id, 'PX', L.idempotency_ttl_ms)
  end
end

-- Returns the ids that are still to be cancelled, if any.
local function write(at, ready, waiting, asked)
  local id, user = ARGV[at], ARGV[at + 7]
  local rest = asked and asked.busy == 'replace' and replace_others(asked, time)
  local due = asked and due_under_key(asked, time) or tonumber(ARGV[at + 4]) or time + tonumber(ARGV[at + 5])
  write_record(at, id, due, asked)
  redis.call('SET', K.job .. id, ARGV[at + 3])
  if ARGV[at + 16] ~= '' then replay(ARGV[at + 16], id, ARGV[at + 17] == '1') end
  write_indices(at, id)
  local after, parked = after_of(at), asked and not may_start(asked.gates, id)
  if after then
    waiting[#waiting + 1] = { at, after, asked and asked.gates }
  else
    write_schedule(at, ARGV[at + 2], id, due, ready, parked)
  end
  depth[ARGV[at + 2]] = depth_of(ARGV[at + 2]) + 1
  note_key(at, id)
  local payload = '{"task":"' .. ARGV[at + 1] .. '","queue":"' .. ARGV[at + 2] .. '"}'
  local channels = channels_of(id, user, ARGV[at + 8])
  -- Nobody can follow the channel of a task that is only being made, and its first event is number 1.
  redis.call('RPUSH', channels[1], first_id .. ' task_queued ' .. id .. ' ' .. payload)
  table.remove(channels, 1)
  emit(channels, 'task_queued', id, payload)
  return rest
end

-- A submission for which another task stands.
local function merge(at, item, ready)
  note_key(at, item.merged)
  note_merged(ARGV[at], item.merged)
  local queue, due = change(item, ARGV[at + 3], time)
  if due then write_schedule(at, queue, item.merged, due, ready) end
end

-- Two tasks of one group under one key: the second is the first again. `made` holds fingerprint and id by key.
local function twin(at, made)
  local key = ARGV[at + 12]
  local first = key ~= '' and made[pair(ARGV[at + 7], key)]
  if not first then return nil end
  if first[1] ~= ARGV[at + 13] then return { 'conflict', key } end
  return nil, first[2]
end

local function is_full(fresh, keyed)
  local more = {}
  for _, at in ipairs(fresh) do
    local queue = ARGV[at + 2]
    if not (keyed[at] and keyed[at].merged) then more[queue] = (more[queue] or 0) + 1 end
    if depth_of(queue) + (more[queue] or 0) > max_depth then return queue end
  end
end

local function accept(first, count, ready)
  local made, reply, fresh, waiting, names, keyed, plan = {}, { 'ok', time }, {}, {}, {}, {}, nil
  for n = 0, count - 1 do names[ARGV[first + n * FIELDS]] = ARGV[first + n * FIELDS] end
  for n = 0, count - 1 do
    local at = first + n * FIELDS
    local id, key, item = ARGV[at], ARGV[at + 12], nil
    local refusal, old = twin(at, made)
    if not refusal and not old then refusal, old = check(at, names) end
    if not refusal and not old and ARGV[at + 19] ~= '' then
      plan = plan or new_plan()
      item = { asked = cjson.decode(ARGV[at + 19]), row = n + 3 }
      refusal = look_under_key(item, id, ARGV[at + 1], ARGV[at + 7], ARGV[at + 9], plan, time)
      keyed[at] = item
    end
    if refusal then return refusal end
    if old == id then reply[2] = 0 end
    if not old then fresh[#fresh + 1] = at end
    old = old or item and item.merged
    reply[n + 3] = { old or id, (old or id) == id and 1 or 0 }
    names[id] = old or id
    if key ~= '' then made[pair(ARGV[at + 7], key)] = { ARGV[at + 13], old or id } end
  end
  local full = is_full(fresh, keyed)
  if full then return { 'full', full } end
  for _, at in ipairs(fresh) do
    local item = keyed[at]
    if item and item.merged then
      merge(at, item, ready)
    else
      local rest = write(at, ready, waiting, item and item.asked)
      for _, id in ipairs(rest or {}) do table.insert(reply[item.row], id) end
    end
  end
  for _, item in ipairs(waiting) do write_wait(item[1], item[2], names, ready, item[3]) end
  return reply
end

local replies, ready, at = {}, {}, 2
while ARGV[at] do
  local count = tonumber(ARGV[at])
  replies[#replies + 1] = accept(at + 1, count, ready)
  at = at + 1 + count * FIELDS
end
flush()
publish(time)
for queue in pairs(ready) do
  redis.call('SADD', K.queues, queue)
  wake(queue, time)
end
return replies
