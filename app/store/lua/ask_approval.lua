-- Asks for an approval, or looks at what has become of it: a task that comes to the same place again asks for nothing new.
--
-- The wait under its number begins here, so that it ends with the approval.
--
-- KEYS: none
-- ARGV: task, token, id of the approval, number of the wait among the steps, facts of the wait (JSON), expires_in_ms,
--   subject, payload (JSON), deciders (joined by a newline), scope or '', JSON schema of the edits or ''
-- returns: {'stale'} when the token is stale and nothing was changed; else {'ok', status, created_at (ms), decided_at (ms),
--   decided_by, notes, edits (JSON)}, each '' where there is none
local task, token, id, number = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local deciders, scope = ARGV[9], ARGV[10]
local key, time = K.approval .. id, now()
local record = redis.call('HMGET', K.task .. task, 'status', 'lease', 'user_id', 'project_id', 'task')
if record[1] ~= 'STARTED' or record[2] ~= token then return { 'stale' } end

local function ask()
  local user, project = record[3], record[4]
  local deadline = string.format('%.0f', time + tonumber(ARGV[6]))
  redis.call('HSET', key, 'task_id', task, 'task', record[5], 'user_id', user, 'status', 'PENDING', 'subject', ARGV[7],
    'payload', ARGV[8], 'created_at', time, 'expires_at', deadline)
  for name, value in pairs({ project_id = project or '', deciders = deciders, scope = scope, edits_schema = ARGV[11] }) do
    if value ~= '' then redis.call('HSET', key, name, value) end
  end
  local member = string.format('%.0f', time) .. ':' .. id
  for _, prefix in ipairs({ K.approvals, K.open_approvals }) do
    for _, index in ipairs(approval_indices(prefix, user, deciders, scope)) do redis.call('ZADD', index, 0, member) end
  end
  redis.call('ZADD', K.approval_deadlines, deadline, id)
  redis.call('SADD', K.task_approvals .. task, id)
  redis.call('HSET', K.steps .. task, 'wait:' .. number, deadline .. ' ' .. ARGV[5])
  -- `steps` says to the next attempt that something is stored, `awaited` to the end of the task that something hangs on it.
  redis.call('HSETNX', K.task .. task, 'steps', 0)
  redis.call('HSETNX', K.task .. task, 'awaited', 0)
  emit(approval_channels(task, user, project, deciders), 'hitl_pending', task, '{"approval_id":"' .. id .. '","subject":'
    .. cjson.encode(ARGV[7]) .. ',"expires_at":"' .. iso(tonumber(deadline)) .. '"}')
end

local before = redis.call('HMGET', key, 'status', 'expires_at')
if not before[1] then
  ask()
elseif before[1] == 'PENDING' and tonumber(before[2]) <= time then
  close_approval(id, 'EXPIRED', time)
end
flush()
publish(time)
local reply = redis.call('HMGET', key, 'status', 'created_at', 'decided_at', 'decided_by', 'notes', 'edits')
for at = 1, 6 do reply[at] = reply[at] or '' end
return { 'ok', unpack(reply) }
