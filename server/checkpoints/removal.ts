import { rename, rm } from 'node:fs/promises';
import { basename, join } from 'node:path';
import Type from 'typebox';
import {
  diskError,
  errnoOf,
  makeFolder,
  namesIn,
  syncFolder,
  writeSealed,
} from '../../files/atomic-file.ts';
import { checkpointFolder } from '../../files/checkpoint.ts';
import { newestManifest } from '../../files/manifest.ts';
import { checkOf, readSealed } from '../../files/records.ts';
import { LIMITS } from '../../shared/limits.ts';
import type { RunState } from '../core/run/state.ts';
import type { StateStore } from '../store/state-store.ts';

/**
 * Runs that a user removes. The folder of one goes to `.removed` under its name, in one step, and from that moment
 * there is no such run, whenever the server dies: what it left there is removed when the next one begins. Only then the
 * state store forgets the run, and then its files go. Its copies in a bucket go last, beside the server's work: until they
 * have gone a note `NAME.copies` says which run they are of, since another one may have the name by then.
 */

const FOLDER = '.removed';
/** No run can have this ending. */
const NOTE = '.copies';
const checkNote = checkOf<{ readonly createdAt: string }>(
  Type.Object({ createdAt: Type.String({ maxLength: 100 }) }),
);

/** Removes the copies of a run, which is known by when it was created; calls back when they have gone. */
export type RemoveCopies = (run: string, createdAt: string, gone: () => Promise<void>) => void;

export class Removals {
  readonly #root: string;
  readonly #store: StateStore;
  readonly #token: number;
  /** They are gone, and something of them is still to be cleared. */
  readonly #begun = new Set<string>();
  /** Null: checkpoints are copied nowhere. */
  readonly #removeCopies: RemoveCopies | null;

  /** @param token the fencing token of this server. */
  constructor(
    root: string,
    store: StateStore,
    token: number,
    removeCopies: RemoveCopies | null = null,
  ) {
    this.#removeCopies = removeCopies;
    this.#root = root;
    this.#store = store;
    this.#token = token;
  }

  /** Something of it is still there, so its name is not free. */
  has(id: string): boolean {
    return this.#begun.has(id);
  }

  get begun(): readonly string[] {
    return [...this.#begun];
  }

  /** Finds those that an earlier server had begun. Throws DP_DISK. */
  async find(): Promise<void> {
    for (const name of await namesIn(join(this.#root, FOLDER))) {
      if (name.endsWith(NOTE)) await this.#removeNoted(basename(name, NOTE));
      else if (!name.includes('.')) this.#begun.add(name);
    }
  }

  /** What a server that copies nowhere finds stays noted for one that does. */
  async #removeNoted(id: string): Promise<void> {
    if (!this.#removeCopies) return;
    const path = join(this.#root, FOLDER, `${id}${NOTE}`);
    let createdAt: string;
    try {
      ({ createdAt } = checkNote(path, await readSealed(path, LIMITS.recordBytesMax)));
    } catch {
      // It does not say which run's copies they are: they stay.
      return;
    }
    this.#removeCopies(id, createdAt, () => rm(path, { force: true }));
  }

  /** Before its files go: which run its copies are of. */
  async #noteCopies(id: string): Promise<void> {
    if (!this.#removeCopies) return;
    const folder = join(this.#root, FOLDER);
    const newest = await newestManifest(checkpointFolder(folder, id)).catch(() => null);
    const { options } = Object(newest?.state) as Partial<RunState>;
    if (!options) return;
    await writeSealed(folder, `${id}${NOTE}`, { createdAt: options.createdAt });
  }

  /** From now on there is no such run. Nothing of it may be written any more. Throws DP_DISK, DP_STATE_FENCED. */
  async begin(id: string): Promise<void> {
    await this.#store.mayWrite(this.#token);
    const folder = join(this.#root, FOLDER);
    await makeFolder(folder);
    const to = join(folder, id);
    try {
      await rename(join(this.#root, id), to);
    } catch (error) {
      // With Redis, one that nobody has worked for has no folder.
      if (errnoOf(error) !== 'ENOENT') throw diskError(error, join(this.#root, id), 'remove');
      await makeFolder(to);
    }
    this.#begun.add(id);
    await syncFolder(this.#root);
    await syncFolder(folder);
  }

  /** Clears what is left of it. Throws DP_DISK, DP_STATE_FENCED, DP_REDIS_UNAVAILABLE; it can be called again then. */
  async finish(id: string): Promise<void> {
    await this.#store.removeRun(this.#token, id);
    await this.#noteCopies(id);
    const path = join(this.#root, FOLDER, id);
    await rm(path, { recursive: true, force: true }).catch((error: unknown) => {
      throw diskError(error, path, 'remove');
    });
    this.#begun.delete(id);
    await this.#removeNoted(id);
  }
}
