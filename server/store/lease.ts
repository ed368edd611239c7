import { performance } from 'node:perf_hooks';
import { setTimeout as delay } from 'node:timers/promises';
import { DownpourError, errorCode, errorText } from '../../shared/errors.ts';
import type { OwnerLease } from './state-store.ts';

const POLL_MS = 200;

/** Tries until it succeeds, `waitMs` are over, or it fails for another reason than being early. */
export async function untilFree<T>(
  attempt: () => Promise<T>,
  options: { readonly waitMs: number; readonly signal: AbortSignal | undefined },
): Promise<T> {
  const { waitMs, signal } = options;
  const start = performance.now();
  for (;;) {
    signal?.throwIfAborted();
    try {
      return await attempt();
    } catch (error) {
      const early = ['DP_STATE_LOCKED', 'DP_REDIS_UNAVAILABLE'].includes(errorCode(error));
      const leftMs = waitMs - (performance.now() - start);
      if (!early || leftMs <= 0) throw error;
      await delay(Math.min(POLL_MS, leftMs), undefined, signal === undefined ? {} : { signal });
    }
  }
}

/**
 * Keeps a lease alive: renews it three times in `ttlMs`, and declares it lost when the store says
 * so or `ttlMs` have passed since the last renewal was asked for, whatever others think by then.
 *
 * @param door.held what a renewal that fails with this error says of the lease: true, it is still held
 *   for as long as the store does not say otherwise.
 */
export function keepLease(
  { token, previous, ttlMs }: { token: number; previous: number; ttlMs: number },
  door: {
    renew(): Promise<boolean>;
    release(): Promise<void>;
    held?(error: unknown): boolean;
  },
): OwnerLease {
  const controller = new AbortController();
  const lost = controller.signal;
  let released = false;
  let failure: unknown;
  let next: NodeJS.Timeout | undefined;
  let deadline: NodeJS.Timeout | undefined;

  function end(): void {
    clearTimeout(next);
    clearTimeout(deadline);
  }
  function lose(why: string): void {
    end();
    controller.abort(
      new DownpourError(
        'DP_STATE_FENCED',
        `the owner's lease (token ${token}) is lost: ${why}; stop this server, or let it acquire again and resume from the last checkpoint`,
      ),
    );
  }
  function expireIn(ms: number): void {
    clearTimeout(deadline);
    deadline = setTimeout(() => {
      // The process may have been held up and have asked nobody: it asks once before it gives up.
      renew().catch((error) => {
        if (released || lost.aborted || door.held?.(error)) return;
        lose(`it could not be renewed within ${ttlMs} ms (${errorText(failure ?? error)})`);
      });
    }, ms).unref();
  }
  async function renew(): Promise<void> {
    lost.throwIfAborted();
    const asked = performance.now();
    const held = await door.renew();
    lost.throwIfAborted();
    if (released) return;
    if (!held) lose('another owner took over');
    lost.throwIfAborted();
    failure = undefined;
    expireIn(ttlMs - (performance.now() - asked));
  }
  function renewSoon(): void {
    next = setTimeout(() => {
      renew()
        .catch((error) => {
          failure = error;
        })
        .finally(() => {
          if (!released && !lost.aborted) renewSoon();
        });
    }, ttlMs / 3).unref();
  }

  expireIn(ttlMs);
  renewSoon();
  return {
    token,
    previous,
    lost,
    renew,
    async release() {
      if (released) return;
      released = true;
      end();
      if (!lost.aborted) await door.release();
    },
  };
}
