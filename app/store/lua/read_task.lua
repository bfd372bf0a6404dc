-- Reads a task: its record, or, where a stock arq client enqueued or a stock worker finished it, what arq's keys say.
--
-- KEYS: none
-- ARGV: id, with_result (1 or 0)
-- returns: {record fields, result or '', payload or '', score or '', queue found or '', steps}; an empty record and no
--   payload and no result: no such task; `behind` is added to the fields where gates hold it; steps are, with the result
--   only, numbers and facts (JSON) of the completed ones
local id = ARGV[1]

-- How many tasks must end before the gates of one let it run.
local function behind_in_gates(id, gates)
  local list, most = cjson.decode(gates), 0
  for at = 1, #list, 2 do
    local before = redis.call('ZRANK', K.gate .. list[at], id)
    if before then most = math.max(most, before - list[at + 1] + 1) end
  end
  return most
end

local record = redis.call('HGETALL', K.task .. id)
local fields = {}
for at = 1, #record, 2 do fields[record[at]] = record[at + 1] end
local result, payload, score, queue = '', '', '', fields.queue or ''
local stock = not fields.status or fields.status == 'PENDING' or fields.status == 'RETRY' or fields.status == 'STARTED'
  or fields.status == 'WAITING'
if ARGV[2] == '1' or stock then result = redis.call('GET', K.result .. id) or '' end
if not fields.status then
  payload = redis.call('GET', K.job .. id) or ''
  local queues = payload ~= '' and redis.call('SMEMBERS', K.queues) or {}
  queues[#queues + 1] = 'default'
  for _, name in ipairs(queues) do
    local found = redis.call('ZSCORE', queue_key(name), id)
    if found then score, queue = found, name end
  end
elseif stock then
  score = redis.call('ZSCORE', queue_key(queue), id) or ''
end
if fields.gates and fields.status == 'PENDING' then
  local behind = behind_in_gates(id, fields.gates)
  if behind > 0 then
    record[#record + 1] = 'behind'
    record[#record + 1] = string.format('%.0f', behind)
  end
end
local steps = ARGV[2] == '1' and fields.steps and step_facts(id) or {}
return { record, result, payload, score, queue, steps }
