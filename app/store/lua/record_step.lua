-- Stores the results of steps that have completed. One call carries all that are ready together.
--
-- A step has a number within its task; one that is stored already, because a reply was lost on the way and the call was
-- repeated, stays as it is.
--
-- KEYS: none
-- ARGV: for each step 7 values: id, token, number (from 0), name (JSON string), result (JSON), duration_s, failed (1 or 0)
-- returns: for each step 1, or 0 when the token is stale and nothing was changed
local FIELDS = 7
local time = now()

local function record(at)
  local id, number = ARGV[at], ARGV[at + 2]
  local task = redis.call('HMGET', K.task .. id, 'status', 'lease')
  if task[1] ~= 'STARTED' or task[2] ~= ARGV[at + 1] then return 0 end
  store_step(id, number, ARGV[at + 3], ARGV[at + 4], ARGV[at + 5], ARGV[at + 6] == '1', time)
  return 1
end

local replies = {}
for at = 1, #ARGV, FIELDS do replies[#replies + 1] = record(at) end
return replies
