-- Reads schedules. With `register`, also begins those that are new, and takes note of those that were declared anew.
--
-- A schedule that is new is looked after from now on, and what it would have had to fire before is none of its business. One
-- whose expression or zone changed owes nothing from before either, but for the last moments: while workers of both versions
-- run, each finds the other's declaration, and neither may lose its own ticks by that.
--
-- KEYS: none
-- ARGV: register (0 or 1), late_ms, then for each schedule: name, definition
-- returns: {time (Unix ms), for each schedule {fields and values of its hash, status of its last task or ''}}
local register, late = ARGV[1] == '1', tonumber(ARGV[2])
local time = now()
local replies = { time }

local function begin(key, definition)
  local state = redis.call('HMGET', key, 'definition', 'seen')
  if state[1] == definition and state[2] then return end
  local from = state[2] and math.max(tonumber(state[2]), time - late) or time
  redis.call('HSET', key, 'definition', definition, 'seen', string.format('%.0f', from))
end

for at = 3, #ARGV, 2 do
  local key = K.schedule .. ARGV[at]
  if register then begin(key, ARGV[at + 1]) end
  local fields = redis.call('HGETALL', key)
  local task = redis.call('HGET', key, 'fired_task')
  replies[#replies + 1] = { fields, task and redis.call('HGET', K.task .. task, 'status') or '' }
end
return replies
