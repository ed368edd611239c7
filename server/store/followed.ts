import { rm } from 'node:fs/promises';
import { join } from 'node:path';
import { performance } from 'node:perf_hooks';
import { setTimeout as delay } from 'node:timers/promises';
import { diskError, makeFolder, writeSealed } from '../../files/atomic-file.ts';
import { checkOf, FollowedSchema, readSealed } from '../../files/records.ts';
import { DownpourError } from '../../shared/errors.ts';
import { LIMITS } from '../../shared/limits.ts';
import type { Log } from '../../shared/log.ts';
import { OWNER_FOLDER } from './folder-lock.ts';
import type { StateStore } from './state-store.ts';

// A primary that was killed and is back before its lease has lapsed would go on from its checkpoint, and what was
// acknowledged after that and is in its standby would be lost. So the state folder says that a standby follows, and
// who starts on it gives that one the time to take over. See docs/decisions/0011-standby.md.

interface Followed {
  /** Token of the owner that is followed: a higher one means that somebody has taken over. */
  readonly token: number;
  /** The standby's address. */
  readonly by: string;
  readonly leaseMs: number;
}

const FILE = 'followed.json';
/** A standby takes over so long after the lease has lapsed, on however busy a machine. */
const HEIR_MS = 5_000;
const LOOK_MS = 100;

/** What the state folder says of a standby of its owner. */
export class FollowedNote {
  readonly #folder: string;
  readonly #owner: Omit<Followed, 'by'>;
  #by: string | null = null;
  #writing: Promise<unknown> = Promise.resolve();

  constructor(state: string, owner: { readonly token: number; readonly leaseMs: number }) {
    this.#folder = join(state, OWNER_FOLDER);
    this.#owner = owner;
  }

  /** @param by null: nobody follows. @throws DownpourError DP_DISK */
  set(by: string | null): Promise<void> {
    this.#by = by;
    return this.#write(this.#owner.token);
  }

  /** The owner releases its lease, which takes up one token. @throws DownpourError DP_DISK */
  async passOn(): Promise<void> {
    if (this.#by !== null) await this.#write(this.#owner.token + 1);
  }

  #write(token: number): Promise<void> {
    const by = this.#by;
    const written = this.#writing.then(async () => {
      if (by !== null) {
        await makeFolder(this.#folder);
        await writeSealed(this.#folder, FILE, { ...this.#owner, token, by } satisfies Followed);
        return;
      }
      const path = join(this.#folder, FILE);
      await rm(path, { force: true }).catch((error: unknown) => {
        throw diskError(error, path, 'remove');
      });
    });
    this.#writing = written.catch(() => {});
    return written;
  }
}

/**
 * Waits, if a standby followed the last owner of this state, until it has taken over or has had the time for it.
 * @returns whether another server has owned the state since.
 */
export async function letHeirBegin(
  state: string,
  store: StateStore,
  { log, signal }: { readonly log: Log; readonly signal: AbortSignal },
): Promise<boolean> {
  const followed = await readFollowed(state, log);
  if (!followed) return false;
  const waitMs = followed.leaseMs + HEIR_MS;
  log(
    `${followed.by} followed the last server on ${state} and may have what no checkpoint has: it has ${waitMs / 1000} s to take over`,
    { level: 'warn' },
  );
  let since = performance.now();
  while (performance.now() - since < waitMs) {
    if (signal.aborted) return false;
    const newest = await store.newestToken().catch(() => null);
    if (newest !== null && newest > followed.token) {
      log(`${followed.by} has taken over; --standby-of makes this server its standby`, {
        level: 'warn',
      });
      return true;
    }
    // Nobody takes over while nobody can be asked.
    if (newest === null) since = performance.now();
    await delay(LOOK_MS);
  }
  log(`${followed.by} has not taken over: going on from the checkpoints`, { level: 'warn' });
  return false;
}

const checkFollowed = checkOf<Followed>(FollowedSchema);

/** @returns null: nobody followed, or it is damaged, which is said. @throws DownpourError DP_DISK */
async function readFollowed(state: string, log: Log): Promise<Followed | null> {
  const path = join(state, OWNER_FOLDER, FILE);
  try {
    const value = await readSealed(path, LIMITS.recordBytesMax);
    return value === undefined ? null : checkFollowed(path, value);
  } catch (error) {
    if (!(error instanceof DownpourError) || error.code !== 'DP_STATE_CORRUPT') throw error;
    log(`${error.message}; passed over: no standby is waited for`, {
      ...{ level: 'warn', code: error.code },
    });
    return null;
  }
}
