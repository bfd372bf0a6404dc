-- Cancels tasks with all their children. What no worker holds ends at once; what runs is flagged and its worker is told.
--
-- KEYS: none
-- ARGV: ttl_ms (how long the record is kept), bound (tasks looked at in one call), 1 when the ids are the `rest` of an earlier
--   call else 0, ids ...
-- returns: {states, rest}: for each id 'cancelled', 'requested', 'finished' (nothing is changed) or 'missing'; `rest` are ids
--   of descendants that the bound left over, to be given to a further call
local time = now()
local ids = { unpack(ARGV, 4) }
local states, rest = cancel_all(ids, ARGV[3] == '1', tonumber(ARGV[2]), tonumber(ARGV[1]), time)
flush()
publish(time)
return { states, rest }
