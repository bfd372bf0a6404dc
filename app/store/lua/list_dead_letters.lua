-- A page of dead letters, newest first. Looks at no more than `bound` entries, so a page may hold fewer than asked for and
-- still have a next one.
--
-- KEYS: none
-- ARGV: index key, cursor (member to start behind, or ''), limit, bound, then pairs: field, wanted value
-- returns: {next cursor or '', {id, fields} ...}
local index, cursor, limit, bound = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])

local function matches(fields)
  for at = 5, #ARGV, 2 do
    if fields[ARGV[at]] ~= ARGV[at + 1] then return false end
  end
  return true
end

-- Not payload, traceback and history, which may be large.
local LISTED = { 'task', 'queue', 'user_id', 'project_id', 'correlation_id', 'tags', 'error', 'attempt', 'enqueued_at',
  'failed_at' }

local reply = { '' }
local from = cursor == '' and '+' or '(' .. cursor
local members = redis.call('ZREVRANGEBYLEX', index, from, '-', 'LIMIT', 0, bound)
for _, member in ipairs(members) do
  local id = string.sub(member, string.find(member, ':', 1, true) + 1)
  local values = redis.call('HMGET', K.dead_letter .. id, unpack(LISTED))
  local fields, record = {}, {}
  for at, value in ipairs(values) do
    if value then
      fields[LISTED[at]] = value
      record[#record + 1] = LISTED[at]
      record[#record + 1] = value
    end
  end
  if fields.task and matches(fields) then
    reply[#reply + 1] = { id, record }
    if #reply > limit then
      reply[1] = member
      return reply
    end
  end
end
if #members == bound then reply[1] = members[bound] end
return reply
