-- Pauses a schedule or resumes it. What it did not fire while it was paused it does not fire afterwards.
--
-- KEYS: none
-- ARGV: name, paused (0 or 1)
-- returns: 1 where that changed it, 0 where it was so already
local key = K.schedule .. ARGV[1]
local time = now()
if ARGV[2] == '1' then return redis.call('HSETNX', key, 'paused', time) end
if redis.call('HDEL', key, 'paused') == 0 then return 0 end
local seen = tonumber(redis.call('HGET', key, 'seen')) or 0
redis.call('HSET', key, 'seen', string.format('%.0f', math.max(seen, time)))
return 1
