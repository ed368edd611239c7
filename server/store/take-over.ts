import { errorCode, errorText } from '../../shared/errors.ts';
import type { Log } from '../../shared/log.ts';
import type { OwnerLease, StateStore } from './state-store.ts';

/** A little longer than a dead owner's lease lasts. */
const OWNER_WAIT_MS = 15_000;

/**
 * Takes the state over. Files know at once whether their owner is dead; Redis, when its lease runs
 * out: a server that is started again after a crash waits for that, and for a Redis that comes up
 * beside it, instead of ending.
 */
export async function takeOver(
  store: StateStore,
  owner: string,
  ttlMs: number,
  { log, signal, waits }: { log: Log; signal: AbortSignal; waits: boolean },
): Promise<OwnerLease> {
  try {
    return await store.acquire(owner, { ttlMs, signal });
  } catch (error) {
    const early = ['DP_STATE_LOCKED', 'DP_REDIS_UNAVAILABLE'].includes(errorCode(error));
    if (store.kind !== 'redis' || !early || !waits) throw error;
    log(`${errorText(error)}; trying again for ${OWNER_WAIT_MS / 1000} s`, {
      ...{ level: 'warn', code: errorCode(error) },
    });
    return store.acquire(owner, { ttlMs, waitMs: OWNER_WAIT_MS, signal });
  }
}
