-- Takes the oldest event of a name out of a task's inbox and stores it as the result of a step, so that none is lost between.
--
-- KEYS: none
-- ARGV: id, token, number of the step, name of the step (JSON string), what stands before the payload in the result, duration_s,
--   failed (0), name of the event
-- returns: {'ok', result}, {'none'}, or {'stale'} when the token is stale and nothing was changed
local id, number, name = ARGV[1], ARGV[3], ARGV[8]
local task = redis.call('HMGET', K.task .. id, 'status', 'lease')
if task[1] ~= 'STARTED' or task[2] ~= ARGV[2] then return { 'stale' } end
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
local result = ARGV[5] .. payload .. '}'
store_step(id, number, ARGV[4], result, ARGV[6], false, now())
return { 'ok', result }
