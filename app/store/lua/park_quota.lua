-- Keeps the place in line of an ask for its task, which is sent away and comes back in delay_ms. Behind quota.lua.
--
-- Until then nothing is held back for it; from then on, for grace_ms, what it asked for is.
--
-- KEYS: none
-- ARGV: key, id, task, delay_ms, grace_ms
-- returns: 1, or 0 where nobody waits under the id, or the task has a place already, which stands further ahead
local name, id, place = ARGV[1], ARGV[2], '@' .. ARGV[3]
local line, asks = K.quota_line .. name, K.quota_asks .. name
local score, kept = redis.call('ZSCORE', line, id), redis.call('ZSCORE', line, place)
local requests, tokens = string.match(redis.call('HGET', asks, id) or '', '^(%d+) (%d+) ')
quota_leave(name, id)
if not score or not requests or (kept and tonumber(kept) <= tonumber(score)) then return 0 end
local from = now() + tonumber(ARGV[4])
redis.call('ZADD', line, score, place)
quota_stand(name, place, { requests = tonumber(requests), tokens = tonumber(tokens), from = from,
  till = from + tonumber(ARGV[5]), worker = '' })
return 1
