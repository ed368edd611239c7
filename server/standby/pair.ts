import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { errorCode, errorText } from '../../shared/errors.ts';
import type { Log } from '../../shared/log.ts';
import { newestToken, OWNER_FOLDER } from '../store/folder-lock.ts';
import { letHeirBegin } from '../store/followed.ts';
import type { OwnerLease, StateStore } from '../store/state-store.ts';

// Two servers, each with a state folder of its own, that orchestrators start and start again as they please: `serve --peer`.
// Who owned the state last has the newest of all runs in its folder. It begins, and the other follows it.

const LOOK_MS = 200;

/**
 * Waits until it is clear which of the two this server is.
 * @param state its own folder. @param store the Redis of both.
 * @returns the lease of the one that begins; null: the other one has owned since, and is to be followed, or the
 *   signal was aborted.
 * @throws DownpourError DP_DISK
 */
export async function beginOfTwo(
  state: string,
  store: StateStore,
  options: {
    readonly owner: string;
    readonly ttlMs: number;
    readonly log: Log;
    readonly signal: AbortSignal;
  },
): Promise<OwnerLease | null> {
  const { owner, ttlMs, log, signal } = options;
  // A lease that is released takes up one token more.
  const own = (await newestToken(join(state, OWNER_FOLDER))) + 1;
  if (await letHeirBegin(state, store, { log, signal })) return null;
  let told = '';
  while (!signal.aborted) {
    try {
      if ((await store.newestToken()) > own) return null;
      const lease = await store.acquire(owner, { ttlMs, signal });
      if (lease.previous <= own) return lease;
      // The other one has come and gone since the look.
      await lease.release();
      return null;
    } catch (error) {
      if (signal.aborted) return null;
      // The lease of this server's own life before, or Redis is away.
      const code = errorCode(error);
      if (!['DP_STATE_LOCKED', 'DP_REDIS_UNAVAILABLE'].includes(code)) throw error;
      if (code !== told) log(`${errorText(error)}; trying on`, { level: 'warn', code });
      told = code;
      await delay(LOOK_MS);
    }
  }
  return null;
}
