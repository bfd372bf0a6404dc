-- A worker's sign of life, once a second. Also where arq's own abort marks are seen, and approvals expire.
--
-- KEYS: none
-- ARGV: worker, record (JSON), ttl_ms
-- returns: up to 100 ids that arq clients want aborted
local time = now()
redis.call('SET', K.worker .. ARGV[1], ARGV[2], 'PX', ARGV[3])
redis.call('ZADD', K.workers, time, ARGV[1])
redis.call('ZREMRANGEBYSCORE', K.workers, '-inf', time - tonumber(ARGV[3]))
-- A mark that nobody could act on for a minute means a task that does not exist; arq keeps such marks for ever. Its time comes
-- from the client's clock, so each is shown once before it goes.
local aborts = redis.call('ZRANGE', K.abort, 0, 99)
redis.call('ZREMRANGEBYSCORE', K.abort, '-inf', time - 60000)
if expire_approvals(time, L.expired_at_once) > 0 then
  flush()
  publish(time)
end
return aborts
