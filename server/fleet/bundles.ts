import { open, readFile, rm, stat } from 'node:fs/promises';
import { join } from 'node:path';
import type { Readable } from 'node:stream';
import {
  diskError,
  makeFolder,
  namesIn,
  sha256Of,
  TEMPORARY,
  writeAll,
  writeFileAtomic,
} from '../../files/atomic-file.ts';
import { BUNDLE_HASH } from '../../shared/bundle.ts';
import { DownpourError } from '../../shared/errors.ts';
import { LIMITS } from '../../shared/limits.ts';
import type { Log } from '../../shared/log.ts';
import type { Bundle } from '../../shared/rest.ts';

/**
 * Experiments that operators have sent, for workers that accept them: files in the state folder, named by the SHA-256 of
 * their content. The server hands them out and looks into none of them. See shared/bundle.ts.
 */

/** No run can have this name. */
export const BUNDLE_FOLDER = '.bundles';
const NAME = new RegExp(BUNDLE_HASH);

export interface BundleLimits {
  readonly bundleBytesMax: number;
  readonly bundleCountMax: number;
  readonly bundlesBytesMax: number;
}

export class Bundles {
  readonly #folder: string;
  readonly #log: Log;
  readonly #limits: BundleLimits;
  /** Bytes of each; the one that was sent first comes first. */
  readonly #known = new Map<string, number>();
  #bytes = 0;
  /** Changes of the folder, one after the other. */
  #queue: Promise<unknown> = Promise.resolve();
  /** Those that a run needs that is not over for good. */
  needed: () => ReadonlySet<string> = () => new Set();

  private constructor(folder: string, log: Log, limits: BundleLimits) {
    this.#folder = folder;
    this.#log = log;
    this.#limits = limits;
  }

  /**
   * Finds what there is.
   * @param named bundles that runs name: all others are removed; null: that is not known.
   * @throws DownpourError DP_DISK.
   */
  static async open(
    state: string,
    {
      log,
      named,
      limits = LIMITS,
    }: { log: Log; named: ReadonlySet<string> | null; limits?: BundleLimits },
  ): Promise<Bundles> {
    const bundles = new Bundles(join(state, BUNDLE_FOLDER), log, limits);
    await bundles.#find(named);
    return bundles;
  }

  async #find(named: ReadonlySet<string> | null): Promise<void> {
    const found: { name: string; bytes: number; atMs: number }[] = [];
    for (const name of await namesIn(this.#folder)) {
      const path = join(this.#folder, name);
      const isBundle = NAME.test(name);
      if (name.endsWith(TEMPORARY) || (isBundle && named?.has(name) === false)) await remove(path);
      else if (isBundle) {
        const { size, mtimeMs } = await stat(path);
        found.push({ name, bytes: size, atMs: mtimeMs });
      }
    }
    for (const { name, bytes } of found.sort((a, b) => a.atMs - b.atMs)) this.#enter(name, bytes);
  }

  #enter(sha256: string, bytes: number): void {
    this.#bytes += bytes - (this.#known.get(sha256) ?? 0);
    this.#known.delete(sha256);
    this.#known.set(sha256, bytes);
  }

  /** What the server has of a bundle; null: nothing. */
  find(sha256: string): Bundle | null {
    const bytes = this.#known.get(sha256);
    return bytes === undefined ? null : { sha256, bytes };
  }

  /** @throws DownpourError DP_NOT_FOUND. */
  mustHave(sha256: string): Bundle {
    const found = this.find(sha256);
    if (found) return found;
    throw new DownpourError(
      'DP_NOT_FOUND',
      `this server has no bundle ${sha256}: send it first, by PUT /bundles/${sha256}`,
    );
  }

  /** As many bytes as it had when it was sent. @throws DownpourError DP_NOT_FOUND, DP_DISK. */
  async read(sha256: string): Promise<Readable> {
    const { bytes } = this.mustHave(sha256);
    const path = join(this.#folder, sha256);
    try {
      return (await open(path)).createReadStream({ end: bytes - 1 });
    } catch (error) {
      throw diskError(error, path, 'read');
    }
  }

  /** All of it. @throws DownpourError DP_NOT_FOUND, DP_DISK. */
  async content(sha256: string): Promise<Buffer> {
    this.mustHave(sha256);
    const path = join(this.#folder, sha256);
    try {
      return await readFile(path);
    } catch (error) {
      throw diskError(error, path, 'read');
    }
  }

  /**
   * Keeps a bundle. Where there is no room, those go that no run needs any more, the oldest first.
   * @throws DownpourError DP_BODY_INVALID: it has another hash; DP_LIMIT; DP_DISK.
   */
  async keep(sha256: string, content: Uint8Array): Promise<Bundle> {
    const { bundleBytesMax } = this.#limits;
    const bytes = content.length;
    if (bytes === 0 || bytes > bundleBytesMax) {
      throw new DownpourError(
        'DP_FRAME_TOO_LARGE',
        `the bundle has ${bytes} bytes; it must have 1 to ${bundleBytesMax}: read large tables from a file in data()`,
      );
    }
    const hash = sha256Of(content);
    if (hash !== sha256) {
      throw new DownpourError(
        'DP_BODY_INVALID',
        `the body has SHA-256 ${hash}; the address says ${sha256}: send what it names`,
      );
    }
    return this.#after(async () => {
      const path = join(this.#folder, sha256);
      // What lies there may have been damaged.
      if (this.#known.has(sha256) && (await hashOf(path)) === sha256) {
        this.#enter(sha256, bytes);
        return { sha256, bytes };
      }
      await this.#makeRoom(sha256, bytes);
      await makeFolder(this.#folder);
      await writeFileAtomic(path, (handle) => writeAll(handle, content));
      this.#enter(sha256, bytes);
      return { sha256, bytes };
    });
  }

  /** All that was to be kept is on disk, or has failed. */
  async whenIdle(): Promise<void> {
    await this.#queue;
  }

  async #makeRoom(sha256: string, bytes: number): Promise<void> {
    const { bundleCountMax, bundlesBytesMax } = this.#limits;
    const fits = () => {
      const others = this.#known.size - (this.#known.has(sha256) ? 1 : 0);
      const othersBytes = this.#bytes - (this.#known.get(sha256) ?? 0);
      return others < bundleCountMax && othersBytes + bytes <= bundlesBytesMax;
    };
    const needed = this.needed();
    for (const old of [...this.#known.keys()]) {
      if (fits()) return;
      if (old === sha256 || needed.has(old)) continue;
      await remove(join(this.#folder, old));
      this.#bytes -= this.#known.get(old)!;
      this.#known.delete(old);
      this.#log(`bundle ${old.slice(0, 12)}, which no run needs any more, gives way to a new one`);
    }
    if (fits()) return;
    throw new DownpourError(
      'DP_LIMIT',
      `runs that are not over need ${this.#known.size} bundles of ${this.#bytes} bytes; at most ${bundleCountMax} of ${bundlesBytesMax} bytes are kept: let some runs end, or copy this experiment to the workers`,
    );
  }

  #after<T>(change: () => Promise<T>): Promise<T> {
    const done = this.#queue.then(change);
    // A failure is its caller's; the next one goes on.
    this.#queue = done.catch(() => {});
    return done;
  }
}

async function hashOf(path: string): Promise<string | null> {
  return readFile(path).then(sha256Of, () => null);
}

async function remove(path: string): Promise<void> {
  try {
    await rm(path, { force: true });
  } catch (error) {
    throw diskError(error, path, 'remove');
  }
}
