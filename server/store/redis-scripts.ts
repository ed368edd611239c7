// What must not be torn apart is one Lua script, which Redis runs alone: the check of the token and the write,
// the registry and its pointer, the comparison with the best.

/** What is no number up to this is no token that was ever given: as if Redis had forgotten. */
const TOKEN_MAX = Number.MAX_SAFE_INTEGER;

// A token is the clock's microseconds, or one more than the last: so tokens keep rising even if
// Redis comes back without its memory, and are whole numbers that a double holds until 2255. The hold
// of an owner whose death is proved ends at once. KEYS: owner, token.
// ARGV: nonce, owner, since, ttlMs, lowest token, token of a dead owner.
export const ACQUIRE = `
if redis.call('EXISTS', KEYS[1]) == 1 and redis.call('HGET', KEYS[1], 'nonce') ~= ARGV[1]
  and redis.call('HGET', KEYS[1], 'token') ~= ARGV[6] then
  local held = redis.call('HMGET', KEYS[1], 'owner', 'since')
  return {0, held[1] or '?', held[2] or '?', redis.call('PTTL', KEYS[1])}
end
local newest = tonumber(redis.call('GET', KEYS[2]) or '') or 0
if not (newest >= 0 and newest <= ${TOKEN_MAX}) then newest = 0 end
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local token = string.format('%.0f', math.max(newest + 1, tonumber(ARGV[5]), now))
redis.call('SET', KEYS[2], token)
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[1], 'nonce', ARGV[1], 'owner', ARGV[2], 'since', ARGV[3], 'token', token)
redis.call('PEXPIRE', KEYS[1], ARGV[4])
return {1, token, string.format('%.0f', newest)}`;

// A lease that ran out and that nobody took is taken up again, and one that Redis forgot (it shows no
// token, or an older one): 2. KEYS: owner, token. ARGV: nonce, owner, since, ttlMs, token.
export const RENEW = `
local newest = redis.call('GET', KEYS[2])
local known = tonumber(newest or '') or 0
if known > tonumber(ARGV[5]) and known <= ${TOKEN_MAX} then return 0 end
redis.call('SET', KEYS[2], ARGV[5])
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[1], 'nonce', ARGV[1], 'owner', ARGV[2], 'since', ARGV[3], 'token', ARGV[5])
redis.call('PEXPIRE', KEYS[1], ARGV[4])
return newest == ARGV[5] and 1 or 2`;

// The token is used up, so that nothing is written after a release. KEYS: owner, token. ARGV: token.
export const RELEASE = `
if redis.call('GET', KEYS[2]) == ARGV[1] then
  redis.call('INCR', KEYS[2])
  redis.call('DEL', KEYS[1])
end
return 1`;

// Every write starts with this. KEYS: token, owner. ARGV[1]: token. No token or an older one: Redis
// forgot, and no one has acquired since.
const FENCE = `
local newest = redis.call('GET', KEYS[1])
if newest ~= ARGV[1] then
  local known = tonumber(newest or '') or 0
  if not (known >= tonumber(ARGV[1]) and known <= ${TOKEN_MAX}) then return {3, newest or '0'} end
  return {0, newest, redis.call('HGET', KEYS[2], 'owner') or ''}
end
`;

// KEYS[3]: a hash. ARGV: token, field, value.
export const PUT = `${FENCE}
redis.call('HSET', KEYS[3], ARGV[2], ARGV[3])
return {1}`;

// Numbers are only read with cjson, never written: it would round them to 14 digits.
// KEYS[3]: the best of all runs. ARGV: token, run, record, value.
export const BEST = `${FENCE}
local old = redis.call('HGET', KEYS[3], ARGV[2])
if old then
  local ok, record = pcall(cjson.decode, old)
  if not ok or type(record) ~= 'table' or type(record.value) ~= 'number' then return {2} end
  if tonumber(ARGV[4]) >= record.value then return {1, old} end
end
redis.call('HSET', KEYS[3], ARGV[2], ARGV[3])
return {1, ARGV[3]}`;

// The pointer is 'token step file'. KEYS: …, the run's checkpoints, the pointers of all runs.
// ARGV: token, run, file, summary, step, '1' if it may become the last.
export const PUBLISH = `${FENCE}
redis.call('HSET', KEYS[3], ARGV[3], ARGV[4])
if ARGV[6] ~= '1' then return {1, 0} end
local token, step = string.match(redis.call('HGET', KEYS[4], ARGV[2]) or '', '^(%d+) (%d+) ')
if token == ARGV[1] and tonumber(ARGV[5]) < tonumber(step) then return {1, 0} end
redis.call('HSET', KEYS[4], ARGV[2], ARGV[1] .. ' ' .. ARGV[5] .. ' ' .. ARGV[3])
return {1, 1}`;

// KEYS as above. ARGV: token, run, files… A pointer to a file that goes moves to the newest left.
export const FORGET = `${FENCE}
for i = 3, #ARGV do redis.call('HDEL', KEYS[3], ARGV[i]) end
local file = string.match(redis.call('HGET', KEYS[4], ARGV[2]) or '', '^%d+ %d+ (.*)$')
if file and redis.call('HEXISTS', KEYS[3], file) == 1 then return {1} end
local heir
for _, text in ipairs(redis.call('HVALS', KEYS[3])) do
  local ok, c = pcall(cjson.decode, text)
  if ok and type(c) == 'table' and type(c.sequence) == 'number' and type(c.step) == 'number'
    and type(c.file) == 'string' and c.kind ~= 'best'
    and (not heir or c.sequence > heir.sequence) then heir = c end
end
if heir then
  redis.call('HSET', KEYS[4], ARGV[2], string.format('%s %.0f %s', ARGV[1], heir.step, heir.file))
else
  redis.call('HDEL', KEYS[4], ARGV[2])
end
return {1}`;

// KEYS: …, the run's checkpoints, the pointers of all runs, hashes with a record of each run. ARGV: token, run.
export const REMOVE = `${FENCE}
redis.call('DEL', KEYS[3])
for i = 4, #KEYS do redis.call('HDEL', KEYS[i], ARGV[2]) end
return {1}`;
