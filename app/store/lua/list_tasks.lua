-- A page of an index of tasks, newest first. Looks at no more than `bound` entries, so a page may hold fewer than asked for
-- and still have a next one.
--
-- KEYS: none
-- ARGV: index key, cursor (member to start behind, or ''), limit, bound, then pairs: record field, wanted value; the field
--   `tag` looks in tags
-- returns: {next cursor or '', {id, record fields} ...}
local index, cursor, limit, bound = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local PAGE = 100

local function matches(fields)
  for at = 5, #ARGV, 2 do
    local name, wanted = ARGV[at], ARGV[at + 1]
    if name == 'tag' then
      if not string.find('\n' .. (fields.tags or '') .. '\n', '\n' .. wanted .. '\n', 1, true) then return false end
    elseif fields[name] ~= wanted then
      return false
    end
  end
  return true
end

local reply, looked = { '' }, 0
while looked < bound do
  local from = cursor == '' and '+' or '(' .. cursor
  local members = redis.call('ZREVRANGEBYLEX', index, from, '-', 'LIMIT', 0, PAGE)
  for _, member in ipairs(members) do
    local id = string.sub(member, string.find(member, ':', 1, true) + 1)
    local record = redis.call('HGETALL', K.task .. id)
    local fields = {}
    for at = 1, #record, 2 do fields[record[at]] = record[at + 1] end
    looked = looked + 1
    cursor = member
    if #record == 0 then
      redis.call('ZREM', index, member)
    elseif matches(fields) then
      reply[#reply + 1] = { id, record }
      if #reply > limit then
        reply[1] = cursor
        return reply
      end
    end
  end
  if #members < PAGE then return reply end
end
reply[1] = cursor
return reply
