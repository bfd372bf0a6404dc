-- Ends a reservation: corrects what it took to what was used, in its own bucket, gives its slot back, or takes an ask that
-- still waits out of the line. Whoever fits now is woken. A second settlement changes nothing. Behind quota.lua.
--
-- KEYS: none
-- ARGV: key, id, requests used, tokens used (-1: as reserved), shrink: -1 (no), 0 (the provider refused and did not say until
--   when: half of the limits for a window, down to a sixteenth) or ms until its reset (nothing is granted until then),
--   limits: requests, tokens, slots (-1: no limit), window_ms
-- returns: 1, or 0 where nothing was held and nobody waited under the id
local name, id = ARGV[1], ARGV[2]
local shrink = tonumber(ARGV[5])
local limits = { requests = tonumber(ARGV[6]), tokens = tonumber(ARGV[7]), slots = tonumber(ARGV[8]) }
local window = tonumber(ARGV[9])
local LEAST_SHARE = 1 / 16
local MOST_WOKEN = 20
local time = now()
local use = quota_open(name, window, time)

-- Returns whether there was a reservation whose record is still kept.
local function correct()
  local bucket, requests, tokens = string.match(redis.call('GET', K.quota_hold .. id) or '', '^(%d+) (%d+) (%d+)$')
  if not bucket then return false end
  redis.call('DEL', K.quota_hold .. id)
  local function change(reserved, used) return tonumber(used) < 0 and 0 or tonumber(used) - tonumber(reserved) end
  quota_add(use, tonumber(bucket), change(requests, ARGV[3]), change(tokens, ARGV[4]))
  return true
end

local function shrink_limits()
  local share, till = quota_share(name, time)
  if shrink > 0 then
    share, till = 0, math.max(share == 0 and till or 0, time + shrink)
  elseif share > 0 then
    share, till = math.max(share / 2, LEAST_SHARE), time + window
  end
  redis.call('SET', K.quota_shrunk .. name, share .. ' ' .. string.format('%.0f', till), 'PX', math.max(till - time, 1))
end

local function wake_who_fits()
  local ahead, woken = { requests = 0, tokens = 0, slots = 0 }, 0
  quota_walk(name, time, function(ask)
    if woken == MOST_WOKEN or quota_wait(name, use, limits, ahead, ask, time) > 0 then return true end
    ahead.requests, ahead.tokens = ahead.requests + ask.requests, ahead.tokens + ask.tokens
    ahead.slots = ahead.slots + 1
    if ask.worker ~= '' then
      redis.call('RPUSH', K.wake .. ask.worker, '?' .. ask.id)
      redis.call('PEXPIRE', K.wake .. ask.worker, L.sleeper_ms)
      woken = woken + 1
      -- Once: it names its worker again when it asks again.
      ask.worker = ''
      quota_note(name, ask)
    end
  end)
end

local held = correct()
local had_slot = redis.call('ZREM', K.quota_slots .. name, id) == 1
local stood = quota_leave(name, id) == 1
if shrink >= 0 then shrink_limits() end
quota_return(name, time)
if redis.call('EXISTS', K.quota_line .. name) == 1 then wake_who_fits() end
return (held or had_slot or stood) and 1 or 0
