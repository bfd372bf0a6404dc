-- Renews the slots that a process holds. One that has lapsed is not taken again: somebody else may have it.
--
-- KEYS: none
-- ARGV: lease_ms, then for each slot 2 values: key, id
-- returns: for each slot 1, or 0 where it has lapsed
local lease = tonumber(ARGV[1])
local time = now()
local replies = {}
for at = 2, #ARGV, 2 do
  local slots = K.quota_slots .. ARGV[at]
  local held = redis.call('ZSCORE', slots, ARGV[at + 1])
  if held then
    redis.call('ZADD', slots, time + lease, ARGV[at + 1])
    redis.call('PEXPIRE', slots, lease * 2)
  end
  replies[#replies + 1] = held and 1 or 0
end
return replies
