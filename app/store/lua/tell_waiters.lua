-- Goes on telling tasks that wait for one that has ended, where they were too many for the call that ended it.
--
-- KEYS: none
-- ARGV: none
-- returns: 1 where more are left, else 0
local time = now()
while untold > 0 do
  local ended = redis.call('ZRANGE', K.untold, 0, 0)[1]
  if not ended then break end
  tell(string.sub(ended, 3), string.sub(ended, 1, 1) == '1', time)
  if untold > 0 then redis.call('ZREM', K.untold, ended) end
end
flush()
return untold == 0 and 1 or 0
