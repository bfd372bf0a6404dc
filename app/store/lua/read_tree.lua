-- Reads a task and its descendants, breadth first. Children stand in the order in which they were started.
--
-- KEYS: none
-- ARGV: id, depth (levels below the task), limit (tasks in all), bound (children looked at, in all), names of fields, the
--   first of them user_id, the second enqueued_at
-- returns: rows of {id, number of the parent's row from 1 (0: none), children that are not shown, values of the fields};
--   none where there is no such task. Those of other owners are not shown.
local depth, limit, bound = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local names = {}
for at = 5, #ARGV do names[#names + 1] = ARGV[at] end
local rows, levels = {}, {}

local function show(id, parent, level)
  local values = redis.call('HMGET', K.task .. id, unpack(names))
  if not values[1] or (parent > 0 and values[1] ~= rows[1][4][1]) then return 0 end
  rows[#rows + 1] = { id, parent, 0, values }
  levels[#rows] = level
  return 1
end

-- Some of a task's children, or all where there are not too many; always the same ones of those that are there.
local function members_of(key)
  local found, seen, cursor = {}, {}, '0'
  repeat
    local page = redis.call('SSCAN', key, cursor, 'COUNT', 200)
    cursor = page[1]
    for _, id in ipairs(page[2]) do
      if not seen[id] then found[#found + 1] = id end
      seen[id] = true
    end
  until cursor == '0' or #found >= bound
  bound = bound - #found
  return found
end

local function children_of(id)
  local found = {}
  for _, child in ipairs(members_of(K.children .. id)) do
    found[#found + 1] = { child, tonumber(redis.call('HGET', K.task .. child, 'enqueued_at')) or 0 }
  end
  table.sort(found, function(one, other)
    if one[2] == other[2] then return one[1] < other[1] end
    return one[2] < other[2]
  end)
  return found
end

show(ARGV[1], 0, 0)
local at = 1
while rows[at] do
  local id, shown = rows[at][1], 0
  local total = redis.call('SCARD', K.children .. id)
  if total > 0 and levels[at] < depth and #rows < limit and bound > 0 then
    for _, child in ipairs(children_of(id)) do
      if #rows < limit then shown = shown + show(child[1], at, levels[at] + 1) end
    end
  end
  rows[at][3] = total - shown
  at = at + 1
end
return rows
