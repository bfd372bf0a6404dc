-- Decides one tick of a schedule, once, and enqueues its task in the same step. Includes enqueue.lua as `enqueue`.
--
-- A tick is decided when it has been fired or has been found not to be fired; `seen` is the last one that is, and none at or
-- before it is looked at again. A full queue decides nothing: the tick is tried again until it is too old.
--
-- KEYS: none
-- ARGV: name, tick (Unix ms; '' when it is triggered by hand), outcome of success (fired, caught_up, triggered; missed: only
--   note that it was), overlap (1: also while the last task is unfinished), then the arguments of enqueue.lua for one task
-- returns: {outcome, id of the task}; outcomes besides the given one: decided (before, and nothing was done), early (the tick
--   is yet to come), paused, overlap (with the unfinished task), full (with the queue's name)
local name, tick, wanted, overlap = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[4] == '1'
local arguments = { unpack(ARGV, 5) }
local id = arguments[3]
local key = K.schedule .. name
local time = now()
local state = redis.call('HMGET', key, 'seen', 'paused', 'fired_task')
local seen, paused, last = tonumber(state[1]) or 0, state[2], state[3]

-- What became of a tick; triggers are not ticks, and leave them alone.
local function note(outcome, decided)
  if not tick then return end
  redis.call('HSET', key, 'tick', ARGV[2], 'outcome', outcome, 'outcome_at', time)
  if decided then redis.call('HSET', key, 'seen', ARGV[2]) end
end

local function is_unfinished(task)
  local status = task and redis.call('HGET', K.task .. task, 'status')
  return status and not FINISHED[status] and redis.call('EXISTS', K.result .. task) == 0
end

if tick and tick <= seen then return { 'decided', last or '' } end
if tick and tick > time then return { 'early', '' } end
if tick and paused then
  note('paused', true)
  return { 'paused', '' }
end
if wanted == 'missed' then
  note('missed', true)
  return { 'missed', '' }
end
-- A call that is repeated because its reply was lost finds its own task.
if not overlap and last ~= id and is_unfinished(last) then
  note('overlap', true)
  return { 'overlap', last }
end
local reply = enqueue(arguments)[1]
-- So is one whose key is held by an unfinished task, whoever made that.
if reply[1] == 'busy' then
  note('overlap', true)
  return { 'overlap', reply[3] }
end
if reply[1] ~= 'ok' then
  note(reply[1], false)
  return { reply[1], reply[2] }
end
note(wanted, true)
-- Under its key another task may stand for it.
local task = reply[3][1]
redis.call('HSET', key, 'fired_task', task, 'fired_at', time)
return { wanted, task }
