-- Appends events of running attempts, and stores their progress. One call carries all that are ready together.
--
-- Each event has a number within its attempt; one that was written already, because a reply was lost on the way and the call
-- was repeated, is not written again.
--
-- KEYS: none
-- ARGV: for each event 7 values: id, token, number (from 1), channel ('' for the task's own channels, '.' for the channel
--   task:<id> alone), type, payload (JSON), progress (JSON to store, or '')
-- returns: for each event 1, or 0 when the token is stale and nothing was changed
local FIELDS = 7
local time = now()

local function append(at)
  local id, token, number, channel, progress = ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3], ARGV[at + 6]
  local record = redis.call('HMGET', K.task .. id, 'status', 'lease', 'user_id', 'project_id', 'emitted')
  if record[1] ~= 'STARTED' or record[2] ~= token then return 0 end
  local lease, last = string.match(record[5] or '', '^(%d+):(%d+)$')
  if lease == token and tonumber(last) >= tonumber(number) then return 1 end
  redis.call('HSET', K.task .. id, 'emitted', token .. ':' .. number)
  if progress ~= '' then redis.call('HSET', K.task .. id, 'progress', progress, 'progress_at', time) end
  local channels = { K.events .. channel }
  if channel == '' then
    channels = channels_of(id, record[3], record[4])
  elseif channel == '.' then
    channels = { K.events .. 'task:' .. id }
  end
  emit(channels, ARGV[at + 4], id, ARGV[at + 5])
  return 1
end

local replies = {}
for at = 1, #ARGV, FIELDS do replies[#replies + 1] = append(at) end
publish(time)
return replies
