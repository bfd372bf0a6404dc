-- Ends the record of a task that a stock arq worker finished: the queue and the result are arq's work, the rest is ours.
--
-- The record may say STARTED: a worker of ours held the task, died, and a stock one took it when the lease had run out.
--
-- KEYS: none
-- ARGV: id, status (SUCCESS, FAILURE or CANCELLED), error (JSON or ''), finished_at (ms), attempt, ttl_ms, event type, event
--   payload (JSON)
-- returns: 1, or 0 when the record does not wait for it any more
local id = ARGV[1]
local time = now()
local record = redis.call('HMGET', K.task .. id, 'status', 'queue', 'user_id', 'project_id', 'awaited', 'gates')
if record[1] ~= 'PENDING' and record[1] ~= 'RETRY' and record[1] ~= 'STARTED' and record[1] ~= 'WAITING' then return 0 end
if redis.call('ZSCORE', queue_key(record[2]), id) or redis.call('EXISTS', K.result .. id) == 0 then return 0 end
if record[1] == 'WAITING' then stop_waiting(id, record[2]) end
redis.call('HSET', K.task .. id, 'status', ARGV[2], 'error', ARGV[3], 'finished_at', ARGV[4], 'attempt', ARGV[5])
redis.call('ZADD', K.finished, time + tonumber(ARGV[6]), id)
if record[5] then keep_until(id, time + keep_for_waiters(record[5], tonumber(ARGV[6]), time), time) end
if record[1] == 'STARTED' then redis.call('HINCRBY', K.counts .. record[2], 'running', -1) end
if record[5] then withdraw_approvals(id, time) end
emit(channels_of(id, record[3], record[4]), ARGV[7], id, ARGV[8])
publish(time)
if record[5] then resolve(id, ARGV[2] ~= 'SUCCESS', time) end
if record[6] then leave(id, record[6], ARGV[2] ~= 'SUCCESS', time) end
flush()
return 1
