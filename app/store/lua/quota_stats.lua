-- What is used of keys, for people. Behind quota.lua.
--
-- KEYS: none
-- ARGV: window_ms, then keys
-- returns: for each key {requests and tokens used in the window, slots held, how many wait or have a place, share of the limits in force, until
--   when it is less than whole (Unix ms, 0: it is whole)}
local time = now()
local replies = {}
for at = 2, #ARGV do
  local name = ARGV[at]
  local use = quota_open(name, tonumber(ARGV[1]), time)
  local share, till = quota_share(name, time)
  local waiting = redis.call('ZCARD', K.quota_line .. name) + redis.call('ZCARD', K.quota_parked .. name)
  replies[#replies + 1] = { use.requests, use.tokens, quota_held(name, time), waiting, tostring(share), till }
end
return replies
