import { randomUUID } from 'node:crypto';
import { losslessJson } from '../../files/atomic-file.ts';
import {
  type BestRecord,
  BestRecordSchema,
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
import { keepLease, untilFree } from './lease.ts';
import type { RedisFiles } from './redis-address.ts';
import { RedisConnection } from './redis-connection.ts';
import { ACQUIRE, BEST, FORGET, PUBLISH, PUT, RELEASE, REMOVE, RENEW } from './redis-scripts.ts';
import {
  type AcquireOptions,
  byId,
  type CheckpointRecord,
  checkName,
  fenced,
  inOrderOfCreation,
  isSameBest,
  type OwnerLease,
  type RunRecord,
  recordOfManifest,
  refuseNotFinite,
  type StateStore,
} from './state-store.ts';

const checkRun = checkOf<RunRecord>(RunRecordSchema);
const checkSummary = checkOf<CheckpointRecord>(CheckpointSummarySchema);
const checkBest = checkOf<BestRecord>(BestRecordSchema);
const checkShard = checkOf<ShardRecord>(ShardRecordSchema);

export interface RedisStoreOptions {
  /** See `parseRedisAddress`; `files` are its certificates. */
  readonly url: string;
  readonly files?: RedisFiles;
  /** Prefix of all keys; `downpour:` by default. */
  readonly prefix?: string;
  readonly timeoutMs?: number;
  readonly onDamaged?: OnDamagedRecord;
  /** Redis came back without what this owner wrote: it must be written again. */
  readonly onForgotten?: () => void;
}

/**
 * The store of several servers, in a Redis of version 6 or later. A lease is held for as long as Redis does not
 * say that another owner came: see docs/decisions/0010-redis-away.md.
 * @throws DownpourError DP_CONFIG_INVALID for a URL that is none.
 */
export function openRedisStore(options: RedisStoreOptions): StateStore {
  return new RedisStore(options);
}

class RedisStore implements StateStore {
  readonly kind = 'redis';
  readonly away = null;
  readonly #redis: RedisConnection;
  readonly #onDamaged: OnDamagedRecord;
  readonly #onForgotten: () => void;
  readonly #nonce = randomUUID();
  readonly #leases = new Set<OwnerLease>();

  constructor({ onDamaged, onForgotten = () => {}, ...options }: RedisStoreOptions) {
    this.#onDamaged = toldOnce(onDamaged);
    this.#onForgotten = onForgotten;
    this.#redis = new RedisConnection(options, this.#onDamaged);
  }

  // The owner.

  async newestToken(): Promise<number> {
    const answer = await this.#redis.ask(this.#ownerKeys(), (redis) =>
      redis.get(this.#redis.key('token')),
    );
    const token = Number(answer);
    return Number.isSafeInteger(token) && token > 0 ? token : 0;
  }

  /** Nobody can tell from here who owns a folder. */
  async mayWrite(): Promise<void> {}

  async acquire(
    owner: string,
    { ttlMs, waitMs = 0, tokenMin = 0, dead = 0, signal }: AcquireOptions,
  ): Promise<OwnerLease> {
    const redis = this.#redis;
    if ([...this.#leases].some((lease) => !lease.lost.aborted)) {
      throw new DownpourError(
        'DP_STATE_LOCKED',
        `${owner} already owns ${redis.place}: release first`,
      );
    }
    const keys = this.#ownerKeys();
    const me = [this.#nonce, owner, new Date().toISOString(), ttlMs];
    const [token, previous] = await untilFree(
      async () => {
        const reply = await redis.evaluate(ACQUIRE, keys, [...me, tokenMin, dead]);
        const [given, ...rest] = reply as unknown[];
        if (given === 1) return rest.map(Number) as [number, number];
        throw lockedBy(redis.place, rest);
      },
      { waitMs, signal },
    );
    const lease = keepLease(
      { token, previous, ttlMs },
      {
        renew: async () => {
          const held = await redis.evaluate(RENEW, keys, [...me, token]);
          if (held === 2) this.#onForgotten();
          return held !== 0;
        },
        release: async () => {
          this.#leases.delete(lease);
          await redis.evaluate(RELEASE, keys, [token]);
        },
        // Who cannot reach Redis knows nothing of other owners: Redis itself refuses what is late.
        held: (error) => errorCode(error) === 'DP_REDIS_UNAVAILABLE',
      },
    );
    this.#leases.clear();
    this.#leases.add(lease);
    return lease;
  }

  #ownerKeys(): string[] {
    return [this.#redis.key('owner'), this.#redis.key('token')];
  }

  /** A fenced write: the script's reply without the leading 1. */
  async #write(
    token: number,
    script: string,
    keys: readonly string[],
    args: readonly (string | number)[],
  ): Promise<readonly unknown[]> {
    const redis = this.#redis;
    const fence = [redis.key('token'), redis.key('owner')];
    const attempt = async () =>
      (await redis.evaluate(script, [...fence, ...keys], [token, ...args])) as unknown[];
    let reply = await attempt();
    const mine = [...this.#leases].find((lease) => lease.token === token && !lease.lost.aborted);
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

  // Runs.

  async putRun(token: number, record: RunRecord): Promise<void> {
    const args = [checkName(record.id), losslessJson(record)];
    await this.#write(token, PUT, [this.#redis.key('runs')], args);
  }

  async removeRun(token: number, id: string): Promise<void> {
    const [checkpoints, last] = this.#checkpointKeys(id);
    const names = ['runs', 'best', 'early-stopping'].map((name) => this.#redis.key(name));
    await this.#write(token, REMOVE, [checkpoints, last, ...names], [id]);
  }

  async listRuns(): Promise<readonly RunRecord[]> {
    const hash = this.#redis.key('runs');
    const runs: RunRecord[] = [];
    for (const [field, run] of await this.#redis.readAll(hash, checkRun)) {
      if (run.id === field) runs.push(run);
      else this.#onDamaged(damaged(`${hash} ${run.id}`, 'it stands under another name'));
    }
    return inOrderOfCreation(runs);
  }

  // Checkpoints.

  async publishCheckpoint(
    token: number,
    run: string,
    manifest: CheckpointRecord,
  ): Promise<{ readonly moved: boolean }> {
    const { file, step, kind } = manifest;
    const summary = losslessJson(recordOfManifest(manifest));
    const args = [run, file, summary, step, kind === 'best' ? 0 : 1];
    const [moved] = await this.#write(token, PUBLISH, this.#checkpointKeys(run), args);
    return { moved: moved === 1 };
  }

  async lastCheckpoint(run: string): Promise<CheckpointRecord | null> {
    const [hash, last] = this.#checkpointKeys(run);
    const pointer = await this.#redis.ask([last], (redis) => redis.hget(last, run));
    if (pointer === null) return null;
    const file = /^\d+ \d+ (.+)$/s.exec(pointer)?.[1];
    if (file === undefined) throw damaged(`${last} ${run}`, 'it is not a pointer');
    return this.#redis.read(hash, file, checkSummary);
  }

  async forgetCheckpoints(token: number, run: string, files: readonly string[]): Promise<void> {
    await this.#write(token, FORGET, this.#checkpointKeys(run), [run, ...files]);
  }

  #checkpointKeys(run: string): [checkpoints: string, last: string] {
    return [this.#redis.key('run', checkName(run), 'checkpoints'), this.#redis.key('last')];
  }

  // The best evaluation, and early stopping.

  async recordBest(
    token: number,
    run: string,
    best: BestRecord,
  ): Promise<{ readonly kept: boolean; readonly best: BestRecord }> {
    refuseNotFinite(best);
    const hash = this.#redis.key('best');
    const args = [checkName(run), losslessJson(best), String(best.value)];
    const [text] = await this.#write(token, BEST, [hash], args);
    const kept = parseRecord(`${hash} ${run}`, String(text), checkBest);
    return { kept: isSameBest(kept, best), best: kept };
  }

  async putEarlyStopping(token: number, run: string, record: unknown): Promise<void> {
    const args = [checkName(run), losslessJson(record)];
    await this.#write(token, PUT, [this.#redis.key('early-stopping')], args);
  }

  // Shards.

  async announceShard(id: string, record: ShardRecord | null, ttlMs: number): Promise<void> {
    const [shards, shard] = [this.#redis.key('shards'), this.#redis.key('shard', checkName(id))];
    await this.#redis.ask([shards, shard], async (redis) => {
      const both = redis.multi();
      if (record === null) both.del(shard).srem(shards, id);
      else both.set(shard, JSON.stringify(record), 'PX', ttlMs).sadd(shards, id);
      for (const [error] of (await both.exec()) ?? []) if (error) throw error;
    });
  }

  async listShards(): Promise<readonly ShardRecord[]> {
    const shards = this.#redis.key('shards');
    const known: ShardRecord[] = [];
    for (const id of await this.#redis.ask([shards], (redis) => redis.smembers(shards))) {
      const found = await this.#redis.passOver(() => this.#shard(shards, id), null);
      if (found) known.push(found);
    }
    return byId(known);
  }

  /** Null: it announces itself no more. @throws DownpourError DP_STATE_CORRUPT. */
  async #shard(shards: string, id: string): Promise<ShardRecord | null> {
    const shard = this.#redis.key('shard', nameAmong(shards, id));
    const text = await this.#redis.ask([shard], (redis) => redis.get(shard));
    if (text === null) {
      await this.#redis.ask([shards], (redis) => redis.srem(shards, id));
      return null;
    }
    const found = parseRecord(shard, text, checkShard);
    if (found.id !== id) throw damaged(shard, `it is of shard '${found.id}'`);
    return found;
  }

  async close(): Promise<void> {
    // A Redis that is gone forgets the lease by itself.
    for (const lease of this.#leases) await lease.release().catch(() => {});
    this.#redis.close();
  }
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
      `if it is dead, its lease expires in ${leftMs} ms`,
  );
}
