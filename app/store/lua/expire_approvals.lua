-- Ends approvals whose time is over, as the heartbeats of workers do: for a process that runs where no worker lives.
--
-- KEYS: none
-- ARGV: none
-- returns: how many it ended
local time = now()
local ended = expire_approvals(time, L.expired_at_once)
flush()
publish(time)
return ended
