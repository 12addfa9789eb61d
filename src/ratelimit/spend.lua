-- Decides on all limits and quotas of one request and charges all of them or none.
-- The same arithmetic as src/ratelimit/gcra.rs, in whole microseconds of this server's clock; every
-- number stays below 2^53, where Lua's numbers are exact.
--
-- KEYS: the counter of each limit, then of each quota; all in one hash slot.
-- ARGV: how many limits; the cost, at least 1; 1 to charge, 0 only to look;
--   then for each limit its interval in us and its burst;
--   for each quota its limit, the least that has been used as far as the caller knows, 1 if a count
--   that is not here begins from that, and for how many ms a count is kept.
-- A counter of a limit holds when its bucket is full again and when that was written, "tat now": if the
-- clock has been set back since, the bucket is full as much later as it would have been. What is no such
-- number, whoever wrote it, is not there.
-- Answers {0, now, for each limit {tat, wait in us}.., for each quota {used, exceeded}..}, flat;
--   or {1} if a count is not here and the caller has to look for the stored one.
local limits, cost, charges = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3] == '1'
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]
local next_arg = 4
local function arg()
  next_arg = next_arg + 1
  return tonumber(ARGV[next_arg - 1])
end
local function text(number)
  return string.format('%.0f', number)
end
local function number(digits)
  return digits and #digits <= 16 and tonumber(digits) or nil
end
local function keep(i, tat)
  local idle_in = math.max(math.ceil((tat - now) / 1000), 1000)
  redis.call('SET', KEYS[i], text(tat) .. ' ' .. text(now), 'PX', text(idle_in))
end

local tats, afters, waits, passes = {}, {}, {}, true
for i = 1, limits do
  local interval, burst = arg(), arg()
  local tat, written = string.match(redis.call('GET', KEYS[i]) or '', '^(%d+) (%d+)$')
  tat, written = number(tat) or now, number(written) or now
  if written > now then
    tat = tat - (written - now)
    keep(i, tat)
  end
  tat = math.max(tat, now)
  tats[i] = tat
  afters[i] = tat + cost * interval
  waits[i] = math.max(afters[i] - burst * interval - now, 0)
  passes = passes and waits[i] == 0
end

local stored, useds, exceeded, keeps = {}, {}, {}, {}
for i = 1, #KEYS - limits do
  local limit, known, is_seeded = arg(), arg(), arg()
  keeps[i] = arg()
  stored[i] = number(string.match(redis.call('GET', KEYS[limits + i]) or '', '^%d+$'))
  if not stored[i] and is_seeded == 0 then
    return {1}
  end
  useds[i] = math.max(stored[i] or 0, known)
  exceeded[i] = useds[i] + cost > limit and 1 or 0
  passes = passes and exceeded[i] == 0
end

charges = charges and passes
for i = 1, limits do
  if charges then
    tats[i] = afters[i]
    keep(i, tats[i])
  end
end
for i = 1, #useds do
  if charges then
    useds[i] = useds[i] + cost
  end
  if useds[i] ~= stored[i] then
    redis.call('SET', KEYS[limits + i], text(useds[i]), 'PX', text(keeps[i]))
  end
end

local answer = {0, now}
for i = 1, limits do
  answer[#answer + 1] = tats[i]
  answer[#answer + 1] = waits[i]
end
for i = 1, #useds do
  answer[#answer + 1] = useds[i]
  answer[#answer + 1] = exceeded[i]
end
return answer
