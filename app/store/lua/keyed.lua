-- What its key makes of a new task, for enqueue.lua; see engine/gates.py.
--
-- A look finds what is to be done, and changes nothing, so that a group can be refused as a whole; what earlier tasks of the
-- group will do is in `plan`. All of the plan is then carried out in its order.
--
-- KEYS: none
-- ARGV: none of its own; a task's options are a JSON object: `gates` (names and limits, flat, that of the key first), and of
--   one with a key `key`, `busy` (queue, reject, join, replace, parallel), `debounce` ([quiet_ms, longest_ms]), `throttle`
--   ([interval_ms, burst, longest_ms]), `awaited` (its parent waits for it), `ttl` (how long what it replaces is kept, ms)
-- returns: nothing; defines new_plan, look_under_key, replace_others, may_start, is_held, due_under_key, note_policy,
--   note_merged, change

-- Unfinished tasks of a key, the newest first, among which one of a type is looked for.
local SCANNED = 1000
local ANCESTORS = 100

local function new_plan()
  return { made = {}, of_type = {}, replaced = {}, free = {} }
end

-- The newest task of a type under a key that `suits`.
local function newest(gate, task, suits)
  for _, id in ipairs(redis.call('ZREVRANGE', K.gate .. gate, 0, SCANNED - 1)) do
    local record = redis.call('HMGET', K.task .. id, 'task', 'status', 'started_at', 'cancel', 'debounce_until')
    if record[1] == task and not FINISHED[record[2]] and suits(record) then return id end
  end
end

-- One that its owner has not given up.
local function can_be_joined(record)
  return not record[4]
end

-- One that has not begun, and was made to be changed.
local function can_be_changed(record)
  return record[2] == 'PENDING' and not record[3] and record[5]
end

-- The unfinished task whose turn it is under a key.
local function holder(asked, time)
  local first = redis.call('ZRANGE', K.gate .. asked.gates[1], 0, 0)[1]
  local status = first and redis.call('HGET', K.task .. first, 'status')
  if first and (not status or FINISHED[status]) then
    heal(cjson.encode({ asked.gates[1], 1 }), time)
    first = redis.call('ZRANGE', K.gate .. asked.gates[1], 0, 0)[1]
  end
  return first
end

-- The ancestor under the same key, which cannot end before a child does that it waits for, or that replaces it.
local function own_ancestor(asked, parent)
  for _ = 1, ANCESTORS do
    if not parent or parent == '' then return nil end
    if redis.call('ZSCORE', K.gate .. asked.gates[1], parent) then return parent end
    parent = redis.call('HGET', K.task .. parent, 'parent_id')
  end
end

-- Takes the next free start of a key: GCRA, as ATM's cell rate is watched (ITU-T I.371). `free` is when all are free again.
local function take_start(asked, user, plan, time)
  local name = K.throttle .. pair(user, asked.key)
  local interval, burst, longest = unpack(asked.throttle)
  local free = plan.free[name] or tonumber(redis.call('GET', name)) or 0
  local due = math.max(time, free - (burst - 1) * interval)
  if due - time > longest then return { 'throttled', asked.key } end
  plan.free[name] = math.max(free, due) + interval
  asked.due, asked.free = due, { name, plan.free[name] }
end

-- Looks at a task of a group: `item.asked` are its options. Returns an error reply; or notes in `item.merged` the id of the task
-- that stands for this one, and in `item.changes` whether that gets its parameters; or plans that it is made.
local function look_under_key(item, id, task, user, parent, plan, time)
  local asked = item.asked
  item.merged = redis.call('GET', K.merged .. id) or nil
  if item.merged or not asked.key then return end
  local gate = asked.gates[1]
  local planned = gate and plan.of_type[gate .. '\n' .. task]
  if asked.awaited or asked.busy == 'replace' then
    local ancestor = gate and own_ancestor(asked, parent)
    if ancestor then return { 'own', asked.key, ancestor } end
  end
  if asked.busy == 'reject' then
    local other = plan.made[gate] or (not plan.replaced[gate] and holder(asked, time))
    if other then return { 'busy', asked.key, other } end
  elseif asked.busy == 'join' then
    local other = planned and planned.id or (not plan.replaced[gate] and newest(gate, task, can_be_joined))
    if other then
      item.merged = other
      return
    end
  elseif asked.debounce then
    local other = planned and planned.debounced or (not plan.replaced[gate] and newest(gate, task, can_be_changed))
    if other then
      item.merged, item.changes = other, true
      return
    end
  end
  if asked.throttle then
    local refusal = take_start(asked, user, plan, time)
    if refusal then return refusal end
  end
  if not gate then return end
  if asked.busy == 'replace' then
    for name in pairs(plan.of_type) do
      if string.sub(name, 1, #gate + 1) == gate .. '\n' then plan.of_type[name] = nil end
    end
    plan.replaced[gate], planned = true, nil
  end
  plan.made[gate] = id
  plan.of_type[gate .. '\n' .. task] = { id = id, debounced = asked.debounce and id or planned and planned.debounced }
end

-- Cancels all that stands under the key, the newest first, so that none of it is let in on the way. Returns the ids of what
-- the bound on one call left over.
local function replace_others(asked, time)
  -- What was noted of tasks made in this call must not come after their end.
  flush()
  local ids = redis.call('ZREVRANGE', K.gate .. asked.gates[1], 0, -1)
  local now_ids = { unpack(ids, 1, math.min(#ids, L.cancel_bound)) }
  local _, rest = cancel_all(now_ids, false, L.cancel_bound, asked.ttl, time)
  for at = #now_ids + 1, #ids do rest[#rest + 1] = ids[at] end
  return rest
end

-- Puts a new task into its gates. Returns whether they let it run.
local function may_start(gates, id)
  local passes = true
  for at = 1, #gates, 2 do
    if enter(gates[at], id) >= gates[at + 1] then passes = false end
  end
  return passes
end

-- Whether the gates in which a task stands hold it.
local function is_held(id, gates)
  return not may_pass(id, cjson.encode(gates))
end

-- When a task is due that its key holds back; nothing for any other.
local function due_under_key(asked, time)
  if asked.debounce then return time + math.min(asked.debounce[1], asked.debounce[2]) end
  if asked.throttle then
    redis.call('SET', asked.free[1], string.format('%.0f', asked.free[2]), 'PX', string.format('%.0f', asked.free[2] - time))
    return asked.due
  end
end

local function note_policy(id, asked, time)
  if asked.gates[1] then redis.call('HSET', K.task .. id, 'gates', cjson.encode(asked.gates)) end
  if asked.key then redis.call('HSET', K.task .. id, 'key', asked.key) end
  if asked.debounce then redis.call('HSET', K.task .. id, 'debounce_until', time + asked.debounce[2]) end
end

-- Remembers which task stands for a submission, for as long as its call may be repeated.
local function note_merged(id, other)
  redis.call('SET', K.merged .. id, other, 'PX', L.merged_ttl_ms)
end

-- The task that stands for a submission gets its parameters and is put off again, up to its bound. Returns its queue and when
-- it is due, where its place is to change.
local function change(item, payload, time)
  if not item.changes then return end
  local id = item.merged
  local record = redis.call('HMGET', K.task .. id, 'queue', 'user_id', 'project_id', 'gates', 'debounce_until', 'due_at')
  local due = math.min(time + item.asked.debounce[1], tonumber(record[5]))
  redis.call('SET', K.job .. id, payload)
  emit(channels_of(id, record[2], record[3]), 'task_debounced', id, '{"next_attempt_at":"'
    .. iso(due > time and due or tonumber(record[6])) .. '"}')
  if due <= time then return end
  redis.call('HSET', K.task .. id, 'due_at', due)
  if may_pass(id, record[4]) then return record[1], due end
end
