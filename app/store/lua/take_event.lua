-- Takes the oldest events of their names out of tasks' inboxes and stores them as results of steps, so that none is lost
-- between. One call carries all that are ready together.
--
-- KEYS: none
-- ARGV: for each 8 values: id, token, number of the step, name of the step (JSON string), what stands before the payload in the
--   result, duration_s, failed (0), name of the event
-- returns: for each {'ok', result}, {'none'}, or {'stale'} when the token is stale and nothing was changed
local FIELDS = 8
local time = now()

local function take(at)
  local id, number, name = ARGV[at], ARGV[at + 2], ARGV[at + 7]
  local task = redis.call('HMGET', K.task .. id, 'status', 'lease')
  if task[1] ~= 'STARTED' or task[2] ~= ARGV[at + 1] then return { 'stale' } end
  -- The call was carried out before, and its reply was lost.
  local stored = redis.call('HGET', K.steps .. id, 'result:' .. number)
  if stored then return { 'ok', stored } end
  local inbox = K.inbox .. id
  local first = redis.call('HGET', inbox, 'first:' .. name)
  if not first then return { 'none' } end
  local field = 'event:' .. name .. ':' .. first
  local payload = redis.call('HGET', inbox, field)
  redis.call('HDEL', inbox, field)
  redis.call('HINCRBY', inbox, 'events', -1)
  if redis.call('HGET', inbox, 'next:' .. name) == first then
    redis.call('HDEL', inbox, 'first:' .. name)
  else
    redis.call('HINCRBY', inbox, 'first:' .. name, 1)
  end
  local result = ARGV[at + 4] .. payload .. '}'
  store_step(id, number, ARGV[at + 3], result, ARGV[at + 5], false, time)
  return { 'ok', result }
end

local replies = {}
for at = 1, #ARGV, FIELDS do replies[#replies + 1] = take(at) end
return replies
