-- A page of approvals out of several indices, newest first, each once. Looks at no more than `bound` entries, so a page may
-- hold fewer than asked for and still have a next one.
--
-- KEYS: none
-- ARGV: member to start behind ('' for the newest), limit, bound, status or '' for any, index keys ...
-- returns: {next cursor or '', {id, fields} ...}
local limit, status = tonumber(ARGV[2]), ARGV[4]
local from = ARGV[1] == '' and '+' or '(' .. ARGV[1]
local share = math.max(1, math.floor(tonumber(ARGV[3]) / (#ARGV - 4)))

-- Not payload, edits and their schema, which may be large.
local LISTED = { 'task_id', 'task', 'user_id', 'project_id', 'status', 'subject', 'deciders', 'scope', 'created_at',
  'expires_at', 'decided_at', 'decided_by', 'notes' }

-- Entries of all indices. Where one had more than its share, what lies behind its last is not known of it.
local members, known, horizon = {}, {}, ''
for at = 5, #ARGV do
  local found = redis.call('ZREVRANGEBYLEX', ARGV[at], from, '-', 'LIMIT', 0, share)
  for _, member in ipairs(found) do
    if not known[member] then members[#members + 1] = member end
    known[member] = true
  end
  if #found == share and found[share] > horizon then horizon = found[share] end
end
table.sort(members, function(first, second) return first > second end)

local reply = { '' }
for _, member in ipairs(members) do
  if member < horizon then break end
  local id = string.sub(member, string.find(member, ':', 1, true) + 1)
  local values = redis.call('HMGET', K.approval .. id, unpack(LISTED))
  if values[1] and (status == '' or values[5] == status) then
    local record = {}
    for position, value in ipairs(values) do
      if value then
        record[#record + 1] = LISTED[position]
        record[#record + 1] = value
      end
    end
    reply[#reply + 1] = { id, record }
    if #reply > limit then
      reply[1] = member
      return reply
    end
  end
end
reply[1] = horizon
return reply
