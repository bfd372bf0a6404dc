-- Gives a task an event from outside, whether it waits for it by now or not. Events of one name are taken in their order.
--
-- The inbox of a task is a hash: `event:<name>:<number>` payload, `first:<name>` and `next:<name>` numbers, and `events`, how
-- many there are. A key is remembered as those of enqueues are; no client can write the line feeds in its name.
--
-- KEYS: none
-- ARGV: id, user ('' for an administrator), name, payload (JSON), key of the delivery or '', bound on events kept
-- returns: {'ok'}, {'again'} (the key was seen), {'missing'}, {'finished', status} or {'full'}
local id, user, name, key = ARGV[1], ARGV[2], ARGV[3], ARGV[5]
local record = redis.call('HMGET', K.task .. id, 'user_id', 'status', 'project_id')
if not record[1] or (user ~= '' and record[1] ~= user) then return { 'missing' } end
local inbox = K.inbox .. id
local seen = K.idempotency .. pair(record[1], 'event\n' .. id .. '\n' .. key)
if key ~= '' and redis.call('EXISTS', seen) == 1 then return { 'again' } end
if record[2] == 'SUCCESS' or record[2] == 'FAILURE' or record[2] == 'CANCELLED' then return { 'finished', record[2] } end
if (tonumber(redis.call('HGET', inbox, 'events')) or 0) >= tonumber(ARGV[6]) then return { 'full' } end
local time = now()
local number = redis.call('HINCRBY', inbox, 'next:' .. name, 1)
redis.call('HSETNX', inbox, 'first:' .. name, number)
redis.call('HSET', inbox, 'event:' .. name .. ':' .. number, ARGV[4])
redis.call('HINCRBY', inbox, 'events', 1)
if key ~= '' then redis.call('SET', seen, 1, 'PX', L.idempotency_ttl_ms) end
emit(channels_of(id, record[1], record[3]), 'event_delivered', id, '{"name":' .. cjson.encode(name) .. '}')
publish(time)
if redis.call('SREM', K.pending .. id, 'event:' .. name) == 1 then resume(id, time) end
flush()
return { 'ok' }
