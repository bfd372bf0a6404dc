-- Cancels tasks with all their children. What no worker holds ends at once; what runs is flagged and its worker is told.
--
-- KEYS: none
-- ARGV: ttl_ms (how long the record is kept), bound (tasks looked at in one call), 1 when the ids are the `rest` of an earlier
--   call else 0, ids ...
-- returns: {states, rest}: for each id 'cancelled', 'requested', 'finished' (nothing is changed) or 'missing'; `rest` are ids
--   of descendants that the bound left over, to be given to a further call
local ttl, bound, continues = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3] == '1'
local time = now()
local looked, pending = 0, {}

-- A task of a stock client that no worker has seen yet has a payload and a place in some queue, but no record.
local function adopt_queued(id)
  local queues = redis.call('SMEMBERS', K.queues)
  queues[#queues + 1] = 'default'
  for _, queue in ipairs(queues) do
    if redis.call('ZSCORE', queue_key(queue), id) then
      adopt(id, queue, redis.call('GET', K.job .. id), time)
      return { 'PENDING', queue }
    end
  end
end

-- Below a cancelled task, a finished one is passed through: it may have started others that are not finished. So is one that
-- was cancelled before, whose canceller may have died on the way through its descendants.
local function cancel(id, is_descendant)
  local record = redis.call('HMGET', K.task .. id, 'status', 'queue', 'worker')
  if not record[1] then record = adopt_queued(id) end
  if not record then return 'missing' end
  local is_finished = record[1] == 'SUCCESS' or record[1] == 'FAILURE' or record[1] == 'CANCELLED'
  if is_finished and record[1] ~= 'CANCELLED' and not is_descendant then return 'finished' end
  for _, child in ipairs(redis.call('SMEMBERS', K.children .. id)) do pending[#pending + 1] = child end
  if record[1] == 'STARTED' then
    redis.call('HSET', K.task .. id, 'cancel', 1)
    redis.call('RPUSH', K.wake .. record[3], '!' .. id)
    redis.call('PEXPIRE', K.wake .. record[3], L.sleeper_ms)
    return 'requested'
  elseif not is_finished then
    cancel_unstarted(id, record[2], time, ttl)
    return 'cancelled'
  end
  return 'finished'
end

local states = {}
for at = 4, #ARGV do
  states[#states + 1] = cancel(ARGV[at], continues)
  looked = looked + 1
end
while #pending > 0 and looked < bound do
  cancel(table.remove(pending), true)
  looked = looked + 1
end
flush()
publish(time)
return { states, pending }
