-- Ends the record of a task that a stock arq worker finished: the queue and the result are arq's work, the rest is ours.
--
-- KEYS: none
-- ARGV: id, status (SUCCESS or FAILURE), error (JSON or ''), finished_at (ms), attempt, ttl_ms
-- returns: 1, or 0 when the record does not wait for it any more
local id = ARGV[1]
local record = redis.call('HMGET', K.task .. id, 'status', 'queue')
if record[1] ~= 'PENDING' and record[1] ~= 'RETRY' then return 0 end
if redis.call('ZSCORE', queue_key(record[2]), id) or redis.call('EXISTS', K.result .. id) == 0 then return 0 end
redis.call('HSET', K.task .. id, 'status', ARGV[2], 'error', ARGV[3], 'finished_at', ARGV[4], 'attempt', ARGV[5])
redis.call('ZADD', K.finished, now() + tonumber(ARGV[6]), id)
return 1
