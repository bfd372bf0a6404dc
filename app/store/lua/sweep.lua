-- Forgets finished tasks whose time is over, with every key and index entry of theirs, and old dead letters.
--
-- KEYS: none
-- ARGV: limit (of each kind), dead_letter_ttl_ms
-- returns: {tasks forgotten, dead letters forgotten}
local limit, dead_ttl = tonumber(ARGV[1]), tonumber(ARGV[2])
local time = now()

local function forget(id)
  local record = redis.call('HMGET', K.task .. id, 'user_id', 'project_id', 'tags', 'enqueued_at', 'parent_id')
  local user, project, parent = record[1], record[2], record[5]
  if user then
    local member = record[4] .. ':' .. id
    redis.call('ZREM', K.tasks, member)
    redis.call('ZREM', K.tasks .. ':user:' .. user, member)
    if project then redis.call('ZREM', K.tasks .. ':project:' .. pair(user, project), member) end
    for tag in string.gmatch(record[3] or '', '[^\n]+') do
      redis.call('ZREM', K.tasks .. ':tag:' .. pair(user, tag), member)
    end
    if parent then redis.call('SREM', K.children .. parent, id) end
  end
  redis.call('DEL', K.task .. id, K.job .. id, K.result .. id, K.children .. id, K.events .. 'task:' .. id)
  redis.call('ZREM', K.finished, id)
end

local function forget_dead(member)
  local id = string.sub(member, string.find(member, ':', 1, true) + 1)
  local record = redis.call('HMGET', K.dead_letter .. id, 'user_id', 'queue')
  if record[1] then
    redis.call('ZREM', K.dead .. ':' .. record[1], member)
    redis.call('HINCRBY', K.counts .. record[2], 'dead', -1)
  end
  redis.call('DEL', K.dead_letter .. id)
  redis.call('ZREM', K.dead, member)
end

local finished = redis.call('ZRANGEBYSCORE', K.finished, '-inf', time, 'LIMIT', 0, limit)
for _, id in ipairs(finished) do forget(id) end
-- Members begin with the time of death, so those that died before the horizon are a prefix.
local horizon = string.format('%.0f', math.max(0, time - dead_ttl))
local dead = redis.call('ZRANGEBYLEX', K.dead, '-', '(' .. horizon, 'LIMIT', 0, limit)
for _, member in ipairs(dead) do forget_dead(member) end
return { #finished, #dead }
