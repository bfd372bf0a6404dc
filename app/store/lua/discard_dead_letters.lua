-- Takes dead letters away, with the steps that were kept for them. One that is there no more is passed over.
--
-- KEYS: none
-- ARGV: ids ...
-- returns: for each id 1, or 0 where there was no such letter
local replies = {}
for at, id in ipairs(ARGV) do
  local failed_at = redis.call('HGET', K.dead_letter .. id, 'failed_at')
  if failed_at then unbury(failed_at .. ':' .. id) end
  replies[at] = failed_at and 1 or 0
end
return replies
