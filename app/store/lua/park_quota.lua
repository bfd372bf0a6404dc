-- Keeps the place in line of an ask for its task, which is sent away and comes back in delay_ms. Behind quota.lua.
--
-- Until then nothing is held back for it; from then on, for grace_ms, what it asked for is.
--
-- KEYS: none
-- ARGV: key, id, task, delay_ms, grace_ms
-- returns: 1, or 0 where nobody waits under the id, or the task has a place already, which stands further ahead
local name, id, place = ARGV[1], ARGV[2], '@' .. ARGV[3]
local asks, parked = K.quota_asks .. name, K.quota_parked .. name
local time = now()
local ask, kept = quota_read(id, redis.call('HGET', asks, id)), quota_read(place, redis.call('HGET', asks, place))
quota_leave(name, id)
if not ask or (kept and kept.till >= time and kept.arrived <= ask.arrived) then return 0 end
local from = time + tonumber(ARGV[4])
ask.id, ask.till, ask.worker = place, from + tonumber(ARGV[5]), ''
quota_note(name, ask)
redis.call('ZADD', parked, from, place)
redis.call('PEXPIRE', parked, LINE_TTL_MS)
return 1
