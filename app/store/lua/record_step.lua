-- Stores the results of steps that have completed. One call carries all that are ready together.
--
-- A step has a number within its task; one that is stored already, because a reply was lost on the way and the call was
-- repeated, stays as it is.
--
-- KEYS: none
-- ARGV: for each step 6 values: id, token, number (from 0), name (JSON string), result (JSON), duration_s
-- returns: for each step 1, or 0 when the token is stale and nothing was changed
local FIELDS = 6
local time = now()

local function record(at)
  local id, number, steps = ARGV[at], ARGV[at + 2], K.steps .. ARGV[at]
  local task = redis.call('HMGET', K.task .. id, 'status', 'lease')
  if task[1] ~= 'STARTED' or task[2] ~= ARGV[at + 1] then return 0 end
  local facts = '{"name":' .. ARGV[at + 3] .. ',"at_ms":' .. string.format('%.0f', time) .. ',"duration_s":' .. ARGV[at + 5] .. '}'
  if redis.call('HSETNX', steps, number, facts) == 1 then
    redis.call('HSET', steps, 'result:' .. number, ARGV[at + 4])
    redis.call('HINCRBY', K.task .. id, 'steps', 1)
  end
  return 1
end

local replies = {}
for at = 1, #ARGV, FIELDS do replies[#replies + 1] = record(at) end
return replies
