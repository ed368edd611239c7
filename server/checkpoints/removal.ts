import { rename, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { diskError, errnoOf, makeFolder, namesIn, syncFolder } from '../../files/atomic-file.ts';
import type { StateStore } from '../store/state-store.ts';

/**
 * Runs that a user removes. The folder of one goes to `.removed` under its name, in one step, and from that moment
 * there is no such run, whenever the server dies: what it left there is removed when the next one begins. Only then the
 * state store forgets the run, and then its files go.
 */

const FOLDER = '.removed';

export class Removals {
  readonly #root: string;
  readonly #store: StateStore;
  readonly #token: number;
  /** They are gone, and something of them is still to be cleared. */
  readonly #begun = new Set<string>();

  /** @param token the fencing token of this server. */
  constructor(root: string, store: StateStore, token: number) {
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
    for (const id of await namesIn(join(this.#root, FOLDER))) this.#begun.add(id);
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
    const path = join(this.#root, FOLDER, id);
    await rm(path, { recursive: true, force: true }).catch((error: unknown) => {
      throw diskError(error, path, 'remove');
    });
    this.#begun.delete(id);
  }
}
