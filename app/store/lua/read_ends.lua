-- What became of tasks.
--
-- KEYS: none
-- ARGV: bound on the bytes of all results together, ids
-- returns: nothing but 0 when the bound is exceeded; else for each id {owner, task, status, result (arq's JSON; '' while it is unfinished or when it is not kept any more)};
--   all '' where there is no such task
local replies, left = {}, tonumber(ARGV[1])
for at = 2, #ARGV do
  local id = ARGV[at]
  local record = redis.call('HMGET', K.task .. id, 'user_id', 'task', 'status')
  local finished = record[3] == 'SUCCESS' or record[3] == 'FAILURE' or record[3] == 'CANCELLED'
  local result = finished and redis.call('GET', K.result .. id) or ''
  left = left - #result
  if left < 0 then return 0 end
  replies[#replies + 1] = { record[1] or '', record[2] or '', record[3] or '', result }
end
return replies
