-- Finds tasks that a stock arq worker finished: in no queue, with a result, and a record that does not know of it. Goes on
-- where the call before stopped, and begins anew at the end, so that each call costs the same.
--
-- KEYS: none
-- ARGV: bound (tasks looked at)
-- returns: ids
local cursor = redis.call('GET', K.stock_scan)
local members = redis.call('ZRANGEBYLEX', K.tasks, cursor and '(' .. cursor or '-', '+', 'LIMIT', 0, ARGV[1])
local found = {}
for _, member in ipairs(members) do
  local id = string.sub(member, string.find(member, ':', 1, true) + 1)
  local record = redis.call('HMGET', K.task .. id, 'status', 'queue')
  if (record[1] == 'PENDING' or record[1] == 'RETRY' or record[1] == 'STARTED' or record[1] == 'WAITING')
    and not redis.call('ZSCORE', queue_key(record[2]), id) and redis.call('EXISTS', K.result .. id) == 1 then
    found[#found + 1] = id
  end
end
if #members < tonumber(ARGV[1]) then
  redis.call('DEL', K.stock_scan)
else
  redis.call('SET', K.stock_scan, members[#members])
end
return found
