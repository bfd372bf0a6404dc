-- A page of dead letters, newest first. Looks at no more than `bound` entries, so a page may hold fewer than asked for and
-- still have a next one.
--
-- KEYS: none
-- ARGV: index key, member to start behind ('' for the newest), member to end at ('' for the oldest), limit, bound, then pairs:
--   field, wanted value; a field is one of the letter's, or `tag`, or `error_type`
-- returns: {next cursor or '', {id, fields} ...}
local index, limit, bound = ARGV[1], tonumber(ARGV[4]), tonumber(ARGV[5])
local from = ARGV[2] == '' and '+' or '(' .. ARGV[2]
local to = ARGV[3] == '' and '-' or '[' .. ARGV[3]

local function matches(fields)
  for at = 6, #ARGV, 2 do
    local name, wanted = ARGV[at], ARGV[at + 1]
    if name == 'tag' then
      if not string.find('\n' .. (fields.tags or '') .. '\n', '\n' .. wanted .. '\n', 1, true) then return false end
    elseif name == 'error_type' then
      if cjson.decode(fields.error).type ~= wanted then return false end
    elseif fields[name] ~= wanted then
      return false
    end
  end
  return true
end

-- Not payload, traceback and history, which may be large.
local LISTED = { 'task', 'queue', 'user_id', 'project_id', 'correlation_id', 'tags', 'error', 'attempt', 'enqueued_at',
  'failed_at' }

local reply = { '' }
local members = redis.call('ZREVRANGEBYLEX', index, from, to, 'LIMIT', 0, bound)
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
