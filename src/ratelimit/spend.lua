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
local call, format, floor = redis.call, string.format, math.floor
local limits, cost, charges = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3] == '1'
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]
local function number(digits)
  return digits and #digits <= 16 and tonumber(digits) or nil
end
-- In two halves: %d takes no more than 32 bits everywhere, and %.0f takes as long as all the rest.
local now_high = floor(now / 100000000)
local now_text = format('%d%08d', now_high, now - now_high * 100000000)
local function keep(i, tat)
  local idle_in, high = math.ceil((tat - now) / 1000), floor(tat / 100000000)
  if idle_in < 1000 then
    idle_in = 1000
  end
  local text = format('%d%08d %s', high, tat - high * 100000000, now_text)
  call('SET', KEYS[i], text, 'PX', idle_in)
end

local answer, passes = {0, now}, true
for i = 1, limits do
  local interval, burst = tonumber(ARGV[2 * i + 2]), tonumber(ARGV[2 * i + 3])
  local tat, written = string.match(call('GET', KEYS[i]) or '', '^(%d+) (%d+)$')
  tat, written = number(tat) or now, number(written) or now
  if written > now then
    tat = tat - (written - now)
    keep(i, tat)
  end
  if tat < now then
    tat = now
  end
  local wait = tat + cost * interval - burst * interval - now
  if wait > 0 then
    passes = false
  else
    wait = 0
  end
  answer[2 * i + 1], answer[2 * i + 2] = tat, wait
end

local quotas, stored = #KEYS - limits, {}
for i = 1, quotas do
  local at = 2 * limits + 4 * i
  local limit, known, is_seeded = tonumber(ARGV[at]), tonumber(ARGV[at + 1]), ARGV[at + 2] == '1'
  stored[i] = number(string.match(call('GET', KEYS[limits + i]) or '', '^%d+$'))
  if not stored[i] and not is_seeded then
    return {1}
  end
  local used = math.max(stored[i] or 0, known)
  local exceeded = used + cost > limit and 1 or 0
  passes = passes and exceeded == 0
  answer[2 * (limits + i) + 1], answer[2 * (limits + i) + 2] = used, exceeded
end

charges = charges and passes
if charges then
  for i = 1, limits do
    local tat = answer[2 * i + 1] + cost * tonumber(ARGV[2 * i + 2])
    answer[2 * i + 1] = tat
    keep(i, tat)
  end
end
for i = 1, quotas do
  local at = 2 * (limits + i) + 1
  if charges then
    answer[at] = answer[at] + cost
  end
  if answer[at] ~= stored[i] then
    call('SET', KEYS[limits + i], format('%.0f', answer[at]), 'PX', ARGV[2 * limits + 4 * i + 3])
  end
end
return answer
