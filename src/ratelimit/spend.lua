-- Decides on all limits and quotas of one request and charges all of them or none.
-- The same arithmetic as src/ratelimit/gcra.rs, in whole microseconds of this server's clock; every
-- number stays below 2^53, where Lua's numbers are exact.
--
-- KEYS: the counter of each limit, then of each quota; all in one hash slot.
-- ARGV: one text of doubles, which hold such numbers exactly and take no parsing: how many limits; the
--   cost, at least 1; 1 to charge, 0 only to look;
--   then for each limit its interval in us and its burst;
--   for each quota its limit, the least that has been used as far as the caller knows, 1 if a count
--   that is not here begins from that, and for how many ms a count is kept.
-- A counter of a limit is two such doubles: when its bucket is full again, and when that was written. If
-- the clock has been set back since, the bucket is full as much later as it would have been. If it is further
-- away than an empty bucket, by more than a second as in memory, the limit was another: it is empty. What is
-- no such pair, whoever wrote it, is not there.
-- Answers {0, now, for each limit {tat, wait in us}.., for each quota {used, exceeded}..}, flat;
--   or {1} if a count is not here and the caller has to look for the stored one.
local call, unpacked = redis.call, struct.unpack
local limits, cost, charges, at = unpacked('<ddd', ARGV[1])
-- By its whole name, which a test replaces.
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]
local function is_whole(n)
  return n >= 0 and n < 9007199254740992 and n % 1 == 0
end
local function keep(i, tat)
  local idle_in = math.ceil((tat - now) / 1000)
  if idle_in < 1000 then
    idle_in = 1000
  end
  call('SET', KEYS[i], struct.pack('<dd', tat, now), 'PX', idle_in)
end

local answer, passes, charged = {0, now}, true, {}
for i = 1, limits do
  local interval, burst
  interval, burst, at = unpacked('<dd', ARGV[1], at)
  local counter, tat = call('GET', KEYS[i]), now
  if counter and #counter == 16 then
    local full, written = unpacked('<dd', counter)
    if is_whole(full) and is_whole(written) then
      tat = math.max(full - math.max(written - now, 0), now)
      local empty = now + burst * interval
      local is_anothers = tat > empty + 1000000
      if is_anothers then
        tat = empty
      end
      if is_anothers or written > now then
        keep(i, tat)
      end
    end
  end
  charged[i] = tat + cost * interval
  local wait = charged[i] - burst * interval - now
  if wait > 0 then
    passes = false
  else
    wait = 0
  end
  answer[2 * i + 1], answer[2 * i + 2] = tat, wait
end

local quotas, stored, kept = #KEYS - limits, {}, {}
for i = 1, quotas do
  local limit, known, is_seeded
  limit, known, is_seeded, kept[i], at = unpacked('<dddd', ARGV[1], at)
  local digits = string.match(call('GET', KEYS[limits + i]) or '', '^%d+$')
  stored[i] = digits and #digits <= 16 and tonumber(digits) or nil
  if not stored[i] and is_seeded == 0 then
    return {1}
  end
  local used = math.max(stored[i] or 0, known)
  local exceeded = used + cost > limit and 1 or 0
  passes = passes and exceeded == 0
  answer[2 * (limits + i) + 1], answer[2 * (limits + i) + 2] = used, exceeded
end

local is_charged = charges == 1 and passes
if is_charged then
  for i = 1, limits do
    answer[2 * i + 1] = charged[i]
    keep(i, charged[i])
  end
end
for i = 1, quotas do
  local place = 2 * (limits + i) + 1
  if is_charged then
    answer[place] = answer[place] + cost
  end
  if answer[place] ~= stored[i] then
    call('SET', KEYS[limits + i], string.format('%.0f', answer[place]), 'PX', kept[i])
  end
end
return answer
