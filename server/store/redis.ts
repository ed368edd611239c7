import { randomUUID } from 'node:crypto';
import { Redis, type RedisOptions } from 'ioredis';
import { losslessJson } from '../../files/atomic-file.ts';
import {
  type BestRecord,
  BestRecordSchema,
  type Check,
  CheckpointSummarySchema,
  checkOf,
  damaged,
  type OnDamagedRecord,
  parseRecord,
  RunRecordSchema,
  type ShardRecord,
  ShardRecordSchema,
  toldOnce,
} from '../../files/records.ts';
import { DownpourError, errorCode, errorText } from '../../shared/errors.ts';
import { parseRedisAddress, type RedisFiles } from './redis-address.ts';
import {
  byId,
  bySequence,
  type CheckpointSummary,
  checkName,
  fenced,
  inOrderOfCreation,
  isSame,
  keepLease,
  type OwnerLease,
  type RunRecord,
  refuseNotFinite,
  type StateStore,
  summaryOf,
  untilFree,
} from './state-store.ts';

// The only door to Redis. Everything that must not be torn apart is one Lua script, which Redis
// runs alone: the check of the token and the write, the registry and its pointer, the comparison
// with the best. All keys begin with one prefix; `{downpour}:` keeps them in one slot of a cluster.

/** What is no number up to this is no token that was ever given: as if Redis had forgotten. */
const TOKEN_MAX = Number.MAX_SAFE_INTEGER;

// A token is the clock's microseconds, or one more than the last: so tokens keep rising even if
// Redis comes back without its memory, and are whole numbers that a double holds until 2255. The hold
// of an owner whose death is proved ends at once. KEYS: owner, token.
// ARGV: nonce, owner, since, ttlMs, lowest token, token of a dead owner.
const ACQUIRE = `
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
const RENEW = `
local newest = redis.call('GET', KEYS[2])
local known = tonumber(newest or '') or 0
if known > tonumber(ARGV[5]) and known <= ${TOKEN_MAX} then return 0 end
redis.call('SET', KEYS[2], ARGV[5])
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[1], 'nonce', ARGV[1], 'owner', ARGV[2], 'since', ARGV[3], 'token', ARGV[5])
redis.call('PEXPIRE', KEYS[1], ARGV[4])
return newest == ARGV[5] and 1 or 2`;

// The token is used up, so that nothing is written after a release. KEYS: owner, token. ARGV: token.
const RELEASE = `
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
const PUT = `${FENCE}
redis.call('HSET', KEYS[3], ARGV[2], ARGV[3])
return {1}`;

// KEYS[3]: a hash. ARGV: token, field.
const REMOVE = `${FENCE}
redis.call('HDEL', KEYS[3], ARGV[2])
return {1}`;

// Numbers are only read with cjson, never written: it would round them to 14 digits.
// KEYS[3]: the best of all runs. ARGV: token, run, record, value.
const BEST = `${FENCE}
local old = redis.call('HGET', KEYS[3], ARGV[2])
if old then
  local ok, record = pcall(cjson.decode, old)
  if not ok or type(record) ~= 'table' or type(record.value) ~= 'number' then return {2} end
  if tonumber(ARGV[4]) >= record.value then return {1, old} end
end
redis.call('HSET', KEYS[3], ARGV[2], ARGV[3])
return {1, ARGV[3]}`;

// The pointer is 'token step file'. KEYS: …, the run's checkpoints, the pointers of all runs.
// ARGV: token, run, file, summary, step, '1' if it may become the last, '1' if it may go back.
const PUBLISH = `${FENCE}
redis.call('HSET', KEYS[3], ARGV[3], ARGV[4])
if ARGV[6] ~= '1' then return {1, 0} end
local token, step = string.match(redis.call('HGET', KEYS[4], ARGV[2]) or '', '^(%d+) (%d+) ')
if token == ARGV[1] and tonumber(ARGV[5]) < tonumber(step) and ARGV[7] ~= '1' then return {1, 0} end
redis.call('HSET', KEYS[4], ARGV[2], ARGV[1] .. ' ' .. ARGV[5] .. ' ' .. ARGV[3])
return {1, 1}`;

// KEYS as above. ARGV: token, run, files… A pointer to a file that goes moves to the newest left.
const FORGET = `${FENCE}
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

/** How long one operation may take, waiting for a lost Redis included. */
const TIMEOUT_MS = 3000;

const checkRun = checkOf<RunRecord>(RunRecordSchema);
const checkSummary = checkOf<CheckpointSummary>(CheckpointSummarySchema);
const checkBest = checkOf<BestRecord>(BestRecordSchema);
const checkShard = checkOf<ShardRecord>(ShardRecordSchema);

/**
 * The store of several servers, in a Redis of version 6 or later.
 *
 * @param options.url see `parseRedisAddress`; `files` are its certificates.
 * @param options.prefix of all keys, `downpour:` unless given.
 * @param options.onForgotten Redis came back without what this owner wrote: it must be written again.
 *
 * Throws DP_CONFIG_INVALID for a URL that is none. Connects with the first operation, and again by
 * itself whenever the connection is lost; what is asked for meanwhile fails with
 * DP_REDIS_UNAVAILABLE after `timeoutMs` (3000) at most. A lease is held for as long as Redis does not
 * say that another owner came: see docs/decisions/0010-redis-away.md.
 */
export function openRedisStore(options: {
  readonly url: string;
  readonly files?: RedisFiles;
  readonly prefix?: string;
  readonly timeoutMs?: number;
  readonly onDamaged?: OnDamagedRecord;
  readonly onForgotten?: () => void;
}): StateStore {
  const { prefix = 'downpour:', timeoutMs = TIMEOUT_MS } = options;
  const onDamaged = toldOnce(options.onDamaged);
  const { place, server, tls, ...login } = parseRedisAddress(options.url, options.files);
  const secure = 'sentinels' in server ? { enableTLSForSentinelMode: true, sentinelTLS: tls } : {};
  const redis = new Redis({
    ...login,
    ...('sentinels' in server ? { ...server, sentinels: [...server.sentinels] } : server),
    ...(tls === null ? {} : { tls, ...secure }),
    lazyConnect: true,
    connectTimeout: timeoutMs,
    commandTimeout: timeoutMs,
    sentinelCommandTimeout: timeoutMs,
    maxRetriesPerRequest: 3,
    retryStrategy: (times: number) => Math.min(50 * 2 ** Math.min(times, 10), 2000),
    // After a failover this connection may lead to what is now a replica: connect anew, resend.
    reconnectOnError: (error: Error) => (error.message.startsWith('READONLY') ? 2 : false),
  } as RedisOptions);
  // The client reports lost connections here, operations only that they gave up.
  let lastError: Error | null = null;
  redis.on('error', (error: Error) => {
    lastError = error;
  });
  redis.on('ready', () => {
    lastError = null;
  });

  const nonce = randomUUID();
  const leases = new Set<OwnerLease>();
  const key = (...parts: readonly string[]) => prefix + parts.join(':');
  const ownerKeys = [key('owner'), key('token')];

  /** Any failure of Redis becomes one expected error. @param keys that it is about. */
  async function ask<T>(keys: readonly string[], operation: () => Promise<T>): Promise<T> {
    try {
      return await operation();
    } catch (error) {
      if (errorText(error).includes('WRONGTYPE')) throw await wrongType(keys);
      throw unavailable(place, error, lastError);
    }
  }

  /** Somebody has put something else in the place of a record. Redis does not say which key it is. */
  async function wrongType(keys: readonly string[]): Promise<DownpourError> {
    const types = await Promise.all(keys.map((name) => redis.type(name).catch(() => 'none')));
    const wrong = keys.flatMap((name, i) => {
      const wanted = typeOf(name.slice(prefix.length));
      return types[i] === 'none' || types[i] === wanted
        ? []
        : [`${name} is a ${types[i]}, not a ${wanted}`];
    });
    return damaged(wrong.length > 0 ? keys.join(', ') : keys[0]!, wrong.join('; ') || 'WRONGTYPE');
  }

  /** The result; what is no record is passed over and told. */
  async function passOver<T>(operation: () => Promise<T>, otherwise: T): Promise<T> {
    try {
      return await operation();
    } catch (error) {
      if (errorCode(error) !== 'DP_STATE_CORRUPT') throw error;
      onDamaged(error as DownpourError);
      return otherwise;
    }
  }
  const evaluate = (script: string, keys: readonly string[], args: readonly (string | number)[]) =>
    ask(keys, () => redis.eval(script, keys.length, ...keys, ...args));

  /** A fenced write: the script's reply without the leading 1. */
  async function write(
    token: number,
    script: string,
    keys: readonly string[],
    args: readonly (string | number)[],
  ): Promise<readonly unknown[]> {
    const fence = [key('token'), key('owner')];
    const attempt = async () =>
      (await evaluate(script, [...fence, ...keys], [token, ...args])) as unknown[];
    let reply = await attempt();
    const mine = [...leases].find((lease) => lease.token === token && !lease.lost.aborted);
    if (reply[0] === 3 && mine) {
      await mine.renew();
      reply = await attempt();
    }
    const [status, ...rest] = reply;
    if (status === 3) throw fenced(token, Number(rest[0]));
    if (status === 0) throw fenced(token, Number(rest[0]), String(rest[1]) || undefined);
    if (status === 2) throw damaged(`${keys[0]} ${args[0]}`, 'it is not a record');
    return rest;
  }

  async function read<T>(hash: string, field: string, check: Check<T>): Promise<T | null> {
    const text = await ask([hash], () => redis.hget(hash, field));
    return text === null ? null : parseRecord(`${hash} ${field}`, text, check);
  }

  /** All of a hash, by field. */
  async function readAll<T>(hash: string, check: Check<T>): Promise<[field: string, record: T][]> {
    const texts = await passOver(() => ask([hash], () => redis.hgetall(hash)), {});
    const records: [string, T][] = [];
    for (const [field, text] of Object.entries(texts)) {
      const shown = JSON.stringify(field.slice(0, 80)).slice(1, -1);
      const record = async () => parseRecord(`${hash} ${shown}`, text, check);
      const known = await passOver<T | null>(record, null);
      if (known !== null) records.push([field, known]);
    }
    return records;
  }

  const keysOf = (run: string) => [key('run', checkName(run), 'checkpoints'), key('last')];

  return {
    kind: 'redis',

    away: null,
    async newestToken() {
      const token = Number(await ask(ownerKeys, () => redis.get(key('token'))));
      return Number.isSafeInteger(token) && token > 0 ? token : 0;
    },
    // Nobody can tell from here who owns a folder.
    mayWrite: async () => {},

    async acquire(owner, { ttlMs, waitMs = 0, tokenMin = 0, dead = 0, signal }) {
      if ([...leases].some((lease) => !lease.lost.aborted)) {
        throw new DownpourError('DP_STATE_LOCKED', `${owner} already owns ${place}: release first`);
      }
      const me = [nonce, owner, new Date().toISOString(), ttlMs];
      const [token, previous] = await untilFree(
        async () => {
          const reply = await evaluate(ACQUIRE, ownerKeys, [...me, tokenMin, dead]);
          const [given, ...rest] = reply as unknown[];
          if (given === 1) return rest.map(Number) as [number, number];
          throw lockedBy(place, rest);
        },
        { waitMs, signal },
      );
      const lease = keepLease(
        { token, previous, ttlMs },
        {
          async renew() {
            const held = await evaluate(RENEW, ownerKeys, [...me, token]);
            if (held === 2) options.onForgotten?.();
            return held !== 0;
          },
          async release() {
            leases.delete(lease);
            await evaluate(RELEASE, ownerKeys, [token]);
          },
          // Who cannot reach Redis knows nothing of other owners: Redis itself refuses what is late.
          held: (error) => errorCode(error) === 'DP_REDIS_UNAVAILABLE',
        },
      );
      leases.clear();
      leases.add(lease);
      return lease;
    },

    async putRun(token, record) {
      await write(token, PUT, [key('runs')], [checkName(record.id), losslessJson(record)]);
    },
    getRun: async (id) => read(key('runs'), checkName(id), checkRun),
    async listRuns() {
      const runs: RunRecord[] = [];
      for (const [field, run] of await readAll(key('runs'), checkRun)) {
        if (run.id === field) runs.push(run);
        else onDamaged(damaged(`${key('runs')} ${run.id}`, 'it stands under another name'));
      }
      return inOrderOfCreation(runs);
    },

    async publishCheckpoint(token, run, manifest, { rollback = false } = {}) {
      const { file, step, kind } = manifest;
      const summary = losslessJson(summaryOf(manifest));
      const may = [kind === 'best' ? 0 : 1, rollback ? 1 : 0];
      const args = [run, file, summary, step, ...may];
      const [moved] = await write(token, PUBLISH, keysOf(run), args);
      return { moved: moved === 1 };
    },
    async checkpoints(run) {
      const [hash] = keysOf(run) as [string, string];
      return bySequence((await readAll(hash, checkSummary)).map(([, summary]) => summary));
    },
    async lastCheckpoint(run) {
      const [hash, last] = keysOf(run) as [string, string];
      const pointer = await ask([last], () => redis.hget(last, run));
      if (pointer === null) return null;
      const file = /^\d+ \d+ (.+)$/s.exec(pointer)?.[1];
      if (file === undefined) throw damaged(`${last} ${run}`, 'it is not a pointer');
      return read(hash, file, checkSummary);
    },
    async forgetCheckpoints(token, run, files) {
      await write(token, FORGET, keysOf(run), [run, ...files]);
    },

    async recordBest(token, run, best) {
      refuseNotFinite(best);
      const args = [checkName(run), losslessJson(best), String(best.value)];
      const [text] = await write(token, BEST, [key('best')], args);
      const kept = parseRecord(`${key('best')} ${run}`, String(text), checkBest);
      return { kept: isSame(kept, best), best: kept };
    },
    getBest: async (run) => read(key('best'), checkName(run), checkBest),
    async resetBest(token, run) {
      await write(token, REMOVE, [key('best')], [checkName(run)]);
    },

    async putEarlyStopping(token, run, record) {
      await write(token, PUT, [key('early-stopping')], [checkName(run), losslessJson(record)]);
    },
    getEarlyStopping: async (run) =>
      read(key('early-stopping'), checkName(run), (_, value) => value),

    async announceShard(id, record, ttlMs) {
      const [shards, shard] = [key('shards'), key('shard', checkName(id))];
      const both = redis.multi();
      if (record === null) both.del(shard).srem(shards, id);
      else both.set(shard, JSON.stringify(record), 'PX', ttlMs).sadd(shards, id);
      await ask([shards, shard], async () => {
        for (const [error] of (await both.exec()) ?? []) if (error) throw error;
      });
    },
    async listShards() {
      const known: ShardRecord[] = [];
      const shards = key('shards');
      for (const id of await ask([shards], () => redis.smembers(shards))) {
        const record = async () => {
          const shard = key('shard', nameAmong(shards, id));
          const text = await ask([shard], () => redis.get(shard));
          // It announces itself no more.
          if (text === null) await ask([shards], () => redis.srem(shards, id));
          if (text === null) return null;
          const found = parseRecord(shard, text, checkShard);
          if (found.id !== id) throw damaged(shard, `it is of shard '${found.id}'`);
          return found;
        };
        const found = await passOver(record, null);
        if (found) known.push(found);
      }
      return byId(known);
    },

    async close() {
      // A Redis that is gone forgets the lease by itself.
      for (const lease of leases) await lease.release().catch(() => {});
      redis.disconnect();
    },
  };
}

/** What kind of value a key of ours has. @param key without the prefix. */
function typeOf(key: string): 'string' | 'set' | 'hash' {
  if (key === 'token' || key.startsWith('shard:')) return 'string';
  return key === 'shards' ? 'set' : 'hash';
}

/** @throws DownpourError DP_STATE_CORRUPT */
function nameAmong(place: string, id: string): string {
  try {
    return checkName(id);
  } catch (error) {
    throw damaged(place, errorText(error));
  }
}

function lockedBy(place: string, [owner, since, leftMs]: readonly unknown[]): DownpourError {
  return new DownpourError(
    'DP_STATE_LOCKED',
    `${place} belongs to ${owner}, since ${since}: stop that server, or give this one another prefix; ` +
      `if it is dead, its hold ends by itself in ${leftMs} ms`,
  );
}

function unavailable(place: string, error: unknown, lastError: Error | null): DownpourError {
  const text = errorText(error);
  const why = lastError === null || text === lastError.message ? '' : ` (${lastError.message})`;
  const both = `${text} ${why}`;
  const advice = /NOAUTH|WRONGPASS|NOPERM/.test(both)
    ? 'check the user and password in its address, and what they may do'
    : /certificate/i.test(both)
      ? 'name the authority of its certificate with --redis-ca, and ours with --redis-cert and --redis-key'
      : 'check that it runs and can be reached; the connection comes back by itself';
  return new DownpourError('DP_REDIS_UNAVAILABLE', `Redis at ${place}: ${text}${why}; ${advice}`, {
    cause: error,
  });
}
