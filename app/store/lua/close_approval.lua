-- Decides on an approval, or withdraws it: once, and only before its deadline. Who may, the caller has checked: what that
-- depends on does not change in the life of an approval.
--
-- KEYS: none
-- ARGV: id, status (APPROVED, REJECTED or WITHDRAWN), who does it, notes, edits (JSON), key of the decision; each of the last
--   three '' where there is none
-- returns: {'ok'}, {'again'} (it was carried out under this key before), {'missing'}, or {'closed', status, decided_by or ''}
local id, status, by, notes, edits, decision = unpack(ARGV)
local key, time = K.approval .. id, now()
local record = redis.call('HMGET', key, 'status', 'expires_at', 'decided_by', 'decision')
if not record[1] then return { 'missing' } end
if record[1] ~= 'PENDING' then
  if decision ~= '' and record[4] == decision then return { 'again' } end
  return { 'closed', record[1], record[3] or '' }
end
local reply = { 'ok' }
if tonumber(record[2]) <= time then
  close_approval(id, 'EXPIRED', time)
  reply = { 'closed', 'EXPIRED', '' }
else
  if decision ~= '' then redis.call('HSET', key, 'decision', decision) end
  close_approval(id, status, time, by, notes, edits)
end
flush()
publish(time)
return reply
