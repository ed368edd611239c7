import { createHash, randomBytes } from 'node:crypto';
import { chmod, lstat, mkdir, open, readdir, readFile, rename, rm } from 'node:fs/promises';
import { homedir } from 'node:os';
import { join, resolve } from 'node:path';
import type { ConnectionOptions } from 'node:tls';
import { BUNDLE_HASH, readBundleHead } from '../shared/bundle.ts';
import { DownpourError, errorText } from '../shared/errors.ts';
import { LIMITS } from '../shared/limits.ts';
import type { MissingExperiment } from '../shared/protocol.ts';
import { createRestClient } from '../shared/rest-client.ts';
import { isPrivate } from '../wire/local-socket.ts';
import { fetchOver } from '../wire/tls.ts';
import type { BundleSource } from './shelf.ts';

/**
 * The bundles that workers of this machine have fetched: files of a folder that no other user can read or write, named
 * by their SHA-256, which is looked at before each use. Nothing gets here that a server did not offer by that hash.
 */

/** `$DOWNPOUR_BUNDLE_DIR`, else `$XDG_CACHE_HOME/downpour/bundles`, else `~/.cache/downpour/bundles`. */
export function bundlesFolder(env: NodeJS.ProcessEnv = process.env): string {
  if (env.DOWNPOUR_BUNDLE_DIR) return resolve(env.DOWNPOUR_BUNDLE_DIR);
  return join(env.XDG_CACHE_HOME || join(homedir(), '.cache'), 'downpour', 'bundles');
}

export interface BundleCacheOptions {
  readonly folder?: string;
  readonly token?: string | null | (() => string | null);
  readonly tls?: ConnectionOptions;
  readonly limits?: { readonly bundleBytesMax: number; readonly bundleCacheBytesMax: number };
}

/** An ES module, whatever lies beside it. */
const ENDING = '.mjs';
const NAME = new RegExp(BUNDLE_HASH);
/** A file of ours, or what a worker that died left of one. */
const OURS = /^[0-9a-f]{64}\.mjs(\.[0-9a-f]{8}\.tmp)?$/;
/** Enough for the first line. */
const HEAD_BYTES = 1024;

export class BundleCache implements BundleSource {
  readonly #options: BundleCacheOptions;
  readonly #folder: string;
  readonly #limits: NonNullable<BundleCacheOptions['limits']>;

  private constructor(options: BundleCacheOptions) {
    this.#options = options;
    this.#folder = options.folder ?? bundlesFolder();
    this.#limits = options.limits ?? LIMITS;
  }

  /** Makes the folder. @throws DownpourError DP_DISK: it cannot; DP_USAGE: it is open to other users. */
  static async open(options: BundleCacheOptions = {}): Promise<BundleCache> {
    const cache = new BundleCache(options);
    const folder = cache.#folder;
    try {
      await mkdir(folder, { recursive: true, mode: 0o700 });
    } catch (cause) {
      throw diskError(folder, cause);
    }
    if (process.getuid !== undefined && !isPrivate(folder)) {
      throw new DownpourError(
        'DP_USAGE',
        `${folder} is open to other users, who could change what is run from there: chmod 700 it, or name another folder by DOWNPOUR_BUNDLE_DIR`,
      );
    }
    return cache;
  }

  /**
   * The file of an experiment that a server offers, with the content that its hash names.
   * @param server `http://host:port`
   * @throws DownpourError DP_SERVER_UNREACHABLE or what the server answers; DP_EXPERIMENT_MISMATCH: it sent something
   *   else than it offered; DP_FRAME_TOO_LARGE; DP_DISK.
   */
  async fetch(server: string, missing: MissingExperiment, signal: AbortSignal): Promise<string> {
    const { sha256, bytes } = missing.bundle!;
    const { bundleBytesMax } = this.#limits;
    if (!NAME.test(sha256)) {
      throw new DownpourError('DP_EXPERIMENT_MISMATCH', `'${sha256.slice(0, 80)}' is no SHA-256`);
    }
    if (bytes > bundleBytesMax) {
      throw new DownpourError(
        'DP_FRAME_TOO_LARGE',
        `bundle ${sha256} has ${bytes} bytes; this worker takes at most ${bundleBytesMax}`,
      );
    }
    const path = join(this.#folder, sha256 + ENDING);
    const kept = await this.#kept(path, sha256);
    if (kept) {
      mustBeOf(kept, missing);
      return path;
    }
    const content = await this.#download(server, { sha256, bytes }, signal);
    mustBeOf(content, missing);
    await this.#write(path, content);
    return path;
  }

  /** Null: it is not there, or not what its name says. */
  async #kept(path: string, sha256: string): Promise<Buffer | null> {
    try {
      const { size } = await lstat(path);
      if (size > this.#limits.bundleBytesMax) return null;
      const content = await readFile(path);
      if (hashOf(content) !== sha256) return null;
      // When it was used last, by the clock of the file system.
      await chmod(path, 0o600);
      return content;
    } catch {
      return null;
    }
  }

  async #download(
    server: string,
    { sha256, bytes }: NonNullable<MissingExperiment['bundle']>,
    signal: AbortSignal,
  ): Promise<Buffer> {
    const { token, tls } = this.#options;
    const now = typeof token === 'function' ? token() : token;
    const stopped = AbortSignal.any([signal, AbortSignal.timeout(LIMITS.bundleFetchMs)]);
    const client = createRestClient({
      ...{ server, signal: stopped },
      ...(now ? { token: now } : {}),
      ...(tls ? { fetch: fetchOver(tls) } : {}),
    });
    const body = await client.bundle(sha256);
    const pieces: Uint8Array[] = [];
    let length = 0;
    const reader = body.getReader();
    try {
      for (;;) {
        const { done, value } = await reader.read();
        if (done) break;
        length += value.length;
        if (length > bytes) {
          throw new DownpourError(
            'DP_EXPERIMENT_MISMATCH',
            `bundle ${sha256} of ${server} has more than the ${bytes} bytes that it was offered with: it is not used`,
          );
        }
        pieces.push(value);
      }
    } catch (error) {
      signal.throwIfAborted();
      if (error instanceof DownpourError) throw error;
      throw new DownpourError(
        'DP_SERVER_UNREACHABLE',
        `bundle ${sha256} did not come from ${server}: ${errorText(error)}`,
        { cause: error },
      );
    } finally {
      await reader.cancel().catch(() => {});
    }
    const content = Buffer.concat(pieces);
    const hash = hashOf(content);
    if (hash === sha256) return content;
    throw new DownpourError(
      'DP_EXPERIMENT_MISMATCH',
      `${server} offered bundle ${sha256} and sent ${content.length} bytes with SHA-256 ${hash}: they are not run; send the experiment again`,
    );
  }

  async #write(path: string, content: Buffer): Promise<void> {
    const temporary = `${path}.${randomBytes(4).toString('hex')}.tmp`;
    try {
      await this.#makeRoom(content.length);
      const handle = await open(temporary, 'wx', 0o600);
      try {
        await handle.writeFile(content);
        await handle.sync();
      } finally {
        await handle.close();
      }
      await rename(temporary, path);
    } catch (cause) {
      await rm(temporary, { force: true }).catch(() => {});
      throw diskError(path, cause);
    }
  }

  /** Those that were used longest ago go. */
  async #makeRoom(bytes: number): Promise<void> {
    const files: { path: string; size: number; usedMs: number }[] = [];
    for (const name of await readdir(this.#folder)) {
      if (!OURS.test(name)) continue;
      const path = join(this.#folder, name);
      // Another worker may have removed it.
      const found = await lstat(path).catch(() => null);
      if (found) files.push({ path, size: found.size, usedMs: found.ctimeMs });
    }
    files.sort((a, b) => a.usedMs - b.usedMs);
    let sum = files.reduce((total, { size }) => total + size, 0);
    for (const { path, size } of files) {
      if (sum + bytes <= this.#limits.bundleCacheBytesMax) return;
      await rm(path, { force: true });
      sum -= size;
    }
  }
}

/** @throws DownpourError DP_EXPERIMENT_MISMATCH: it is no bundle, or that of another experiment. */
function mustBeOf(content: Buffer, { run, experiment, experimentHash }: MissingExperiment): void {
  const head = readBundleHead(content.toString('utf8', 0, HEAD_BYTES));
  if (head?.experiment === experiment && head.experimentHash === experimentHash) return;
  const what = head ? `of '${head.experiment}', hash ${head.experimentHash.slice(0, 12)}` : 'none';
  throw new DownpourError(
    'DP_EXPERIMENT_MISMATCH',
    `run ${run} needs a bundle of '${experiment}', hash ${experimentHash.slice(0, 12)}; what its server sent is ${what}: it is not run`,
  );
}

const hashOf = (content: Uint8Array) => createHash('sha256').update(content).digest('hex');

const diskError = (path: string, cause: unknown) =>
  new DownpourError(
    'DP_DISK',
    `${path} cannot be written: ${errorText(cause)}; name a folder that this user may write to by DOWNPOUR_BUNDLE_DIR`,
    { cause },
  );
