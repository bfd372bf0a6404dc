-- Cancels tasks with all their children, for the scripts that do. What no worker holds ends at once; what runs is flagged and
-- its worker is told.
--
-- KEYS: none
-- ARGV: none of its own
-- returns: nothing; defines cancel_all

-- A task of a stock client that no worker has seen yet has a payload and a place in some queue, but no record.
local function adopt_queued(id, time)
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
local function cancel_one(id, is_descendant, pending, ttl, time)
  local record = redis.call('HMGET', K.task .. id, 'status', 'queue', 'worker')
  if not record[1] then record = adopt_queued(id, time) end
  if not record then return 'missing' end
  local is_finished = FINISHED[record[1]]
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

-- Cancels all of `ids`, in their order, and of what they started as much as `bound` tasks in all allow. Returns their states,
-- and the ids of descendants that are left over. `are_descendants`: they are themselves what an earlier call left over.
-- Followed by `flush` and `publish`.
local function cancel_all(ids, are_descendants, bound, ttl, time)
  local states, pending, looked = {}, {}, 0
  for _, id in ipairs(ids) do
    states[#states + 1] = cancel_one(id, are_descendants, pending, ttl, time)
    looked = looked + 1
  end
  while #pending > 0 and looked < bound do
    cancel_one(table.remove(pending), true, pending, ttl, time)
    looked = looked + 1
  end
  return states, pending
end
