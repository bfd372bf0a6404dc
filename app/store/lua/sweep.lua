-- Forgets finished tasks whose time is over, with every key and index entry of theirs, and old dead letters.
--
-- KEYS: none
-- ARGV: limit (of each kind), dead_letter_ttl_ms
-- returns: {tasks forgotten, dead letters forgotten}
local limit, dead_ttl = tonumber(ARGV[1]), tonumber(ARGV[2])
local time = now()

local finished = redis.call('ZRANGEBYSCORE', K.finished, '-inf', time, 'LIMIT', 0, limit)
for _, id in ipairs(finished) do
  forget(id)
  redis.call('DEL', K.job .. id, K.result .. id)
end
-- Members begin with the time of death, so those that died before the horizon are a prefix.
local horizon = string.format('%.0f', math.max(0, time - dead_ttl))
local dead = redis.call('ZRANGEBYLEX', K.dead, '-', '(' .. horizon, 'LIMIT', 0, limit)
for _, member in ipairs(dead) do unbury(member) end
return { #finished, #dead }
