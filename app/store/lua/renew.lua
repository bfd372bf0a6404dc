-- Renews leases. Called by the lease thread for all that its process holds.
--
-- KEYS: none
-- ARGV: lease_ms, then for each lease 3 values: id, token, queue
-- returns: for each lease 0 (lost), 1 (renewed) or 2 (renewed, and the task's owner has cancelled it)
local lease_ms = tonumber(ARGV[1])
local time = now()
local replies = {}
for at = 2, #ARGV, 3 do
  local id = ARGV[at]
  local record = redis.call('HMGET', K.task .. id, 'status', 'lease', 'cancel')
  if record[1] ~= 'STARTED' or record[2] ~= ARGV[at + 1] then
    replies[#replies + 1] = 0
  else
    redis.call('ZADD', queue_key(ARGV[at + 2]), time + lease_ms, id)
    redis.call('SET', K.in_progress .. id, ARGV[at + 1], 'PX', lease_ms)
    replies[#replies + 1] = record[3] and 2 or 1
  end
end
return replies
