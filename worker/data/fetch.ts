import { createHash } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { mkdir, open, rename, rm, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { pipeline } from 'node:stream/promises';
import { createGunzip } from 'node:zlib';
import { DownpourError, errorText } from '../../shared/errors.ts';
import { corrupt, isGzip } from './files.ts';
import { MNIST_FILES } from './mnist.ts';

/** Fetches MNIST's four files: resumable, checked, and never half there under their final names. */

/** Folders on the web that hold the files under their usual names with .gz. */
const MNIST_MIRRORS = [
  'https://ossci-datasets.s3.amazonaws.com/mnist/',
  'https://storage.googleapis.com/cvdf-datasets/mnist/',
] as const;

export interface RemoteFile {
  readonly name: string;
  /** The size of the content without compression, since mirrors pack it differently. */
  readonly bytes: number;
  readonly sha256: string;
}

/** As published by the authors; many projects pin the same digests. */
const MNIST_REMOTE: readonly RemoteFile[] = [
  {
    name: MNIST_FILES.trainImages,
    bytes: 47_040_016,
    sha256: 'ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db',
  },
  {
    name: MNIST_FILES.trainLabels,
    bytes: 60_008,
    sha256: '65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5',
  },
  {
    name: MNIST_FILES.testImages,
    bytes: 7_840_016,
    sha256: '0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7',
  },
  {
    name: MNIST_FILES.testLabels,
    bytes: 10_008,
    sha256: 'ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2',
  },
];

export interface FetchProgress {
  readonly file: string;
  readonly bytes: number;
  /** Null when the mirror doesn't say. */
  readonly bytesTotal: number | null;
  readonly state: 'present' | 'fetching' | 'done';
}

export interface FetchOptions {
  /** Made when it isn't there. */
  readonly folder: string;
  /** Tried in order. Default `MNIST_MIRRORS`. */
  readonly mirrors?: readonly string[];
  readonly signal?: AbortSignal;
  readonly onProgress?: (progress: FetchProgress) => void;
  /** Without an answer, or without a byte, before the next mirror is tried. */
  readonly silenceMs?: number;
  /** For tests: other files than MNIST's. */
  readonly files?: readonly RemoteFile[];
}

const SILENCE_MS = 15_000;
/** gzip of what can't be packed is a little larger than that. */
const PACKED_SLACK_BYTES = 64 * 1024;

/**
 * Fetches what is missing of MNIST into a folder, as `NAME.gz`. What was broken off goes on where it
 * ended; a file gets its name only once its content has the published SHA-256.
 * @returns the paths of the four files.
 * @throws DownpourError DP_DATA_MISSING when no mirror gave a file, DP_DATA_CORRUPT when what they gave
 * has another checksum, DP_DISK when it cannot be written, DP_USAGE for a mirror that is no http(s)
 * address; the signal's reason when it aborts.
 */
export async function fetchMnist(options: FetchOptions): Promise<string[]> {
  const { folder, mirrors = MNIST_MIRRORS, files = MNIST_REMOTE } = options;
  const bases = mirrors.map(mirrorAddress);
  try {
    await mkdir(folder, { recursive: true });
  } catch (error) {
    throw diskError(folder, error);
  }
  const paths: string[] = [];
  for (const file of files) {
    options.signal?.throwIfAborted();
    paths.push((await findGood(folder, file, options)) ?? (await fetchFile(bases, file, options)));
  }
  return paths;
}

function mirrorAddress(mirror: string): URL {
  const url = URL.canParse(mirror) ? new URL(mirror) : null;
  if (url === null || !['http:', 'https:'].includes(url.protocol)) {
    throw new DownpourError(
      'DP_USAGE',
      `the mirror '${mirror}' is no address; write it like https://example.org/mnist/`,
    );
  }
  if (!url.pathname.endsWith('/')) url.pathname += '/';
  return url;
}

/** A file that is there already, with the right content. A damaged one is fetched anew. */
async function findGood(
  folder: string,
  file: RemoteFile,
  options: FetchOptions,
): Promise<string | null> {
  for (const name of [`${file.name}.gz`, file.name]) {
    const path = join(folder, name);
    const bytes = await sizeOf(path);
    if (bytes === null || !(await hasContent(path, file, options.signal))) continue;
    options.onProgress?.({ file: name, bytes, bytesTotal: bytes, state: 'present' });
    return path;
  }
  return null;
}

async function fetchFile(
  bases: readonly URL[],
  file: RemoteFile,
  options: FetchOptions,
): Promise<string> {
  const name = `${file.name}.gz`;
  const partial = join(options.folder, `${name}.part`);
  const failures: string[] = [];
  let wrongContent = false;
  for (const base of bases) {
    const url = new URL(name, base);
    // What was resumed may be of another mirror, packed differently: then once more from its start.
    for (let attempt = 0; attempt < 2; attempt++) {
      let resumed: boolean;
      try {
        resumed = await download(url, partial, file, options);
      } catch (error) {
        options.signal?.throwIfAborted();
        if (error instanceof DownpourError && error.code === 'DP_DISK') throw error;
        failures.push(`${url.host}: ${reason(error)}`);
        break;
      }
      if (await hasContent(partial, file, options.signal)) {
        const path = join(options.folder, (await isGzipFile(partial)) ? name : file.name);
        await rename(partial, path).catch((error) => {
          throw diskError(path, error);
        });
        const bytes = (await sizeOf(path)) ?? 0;
        options.onProgress?.({ file: name, bytes, bytesTotal: bytes, state: 'done' });
        return path;
      }
      await rm(partial, { force: true });
      if (resumed) continue;
      wrongContent = true;
      failures.push(`${url.host}: its content has not the SHA-256 ${file.sha256}`);
      break;
    }
  }
  const tried = failures.join('; ');
  if (wrongContent) {
    throw corrupt(name, `no mirror gave the right file (${tried}); name another one with --mirror`);
  }
  throw new DownpourError(
    'DP_DATA_MISSING',
    `${name} could not be fetched (${tried}). Check the connection, name another mirror with --mirror, or copy the four files to ${options.folder}; what came so far is kept`,
  );
}

/** Appends to the partial file what it lacks. @returns true when it did not begin at byte 0. */
async function download(
  url: URL,
  partial: string,
  file: RemoteFile,
  options: FetchOptions,
): Promise<boolean> {
  const silence = silenceTimer(options.silenceMs ?? SILENCE_MS, options.signal);
  try {
    const have = (await sizeOf(partial)) ?? 0;
    // Without `identity`, fetch would unpack the content and a range would mean other bytes.
    const headers: Record<string, string> = { 'accept-encoding': 'identity' };
    if (have > 0) headers.range = `bytes=${have}-`;
    const response = await fetch(url, { headers, signal: silence.signal });
    silence.reset();
    const range = /^bytes (\d+)-\d*\/(\d+|\*)$/.exec(response.headers.get('content-range') ?? '');
    const resumed = response.status === 206 && Number(range?.[1]) === have && have > 0;
    if (response.status === 416 && have > 0) {
      // Nothing is left to fetch: whole, or longer than the mirror's. The checksum will tell.
      await response.body?.cancel();
      return true;
    }
    if (!resumed && response.status !== 200) {
      await response.body?.cancel();
      throw new Error(`HTTP status ${response.status}`);
    }
    const length = Number(response.headers.get('content-length')) || null;
    await append(response, partial, resumed ? have : 0, { file, length, silence, options });
    return resumed;
  } finally {
    silence.stop();
  }
}

async function append(
  response: Response,
  partial: string,
  start: number,
  context: {
    readonly file: RemoteFile;
    readonly length: number | null;
    readonly silence: SilenceTimer;
    readonly options: FetchOptions;
  },
): Promise<void> {
  const { file, length, silence, options } = context;
  const bytesMax = file.bytes + PACKED_SLACK_BYTES;
  const bytesTotal = length === null ? null : start + length;
  const output = await open(partial, start > 0 ? 'a' : 'w').catch((error) => {
    throw diskError(partial, error);
  });
  try {
    let bytes = start;
    for await (const chunk of response.body ?? []) {
      silence.reset();
      bytes += chunk.length;
      if (bytes > bytesMax) {
        await rm(partial, { force: true });
        throw new Error(`it sends more than the ${bytesMax} bytes that the file can have`);
      }
      await output.writeFile(chunk).catch((error) => {
        throw diskError(partial, error);
      });
      options.onProgress?.({ file: `${file.name}.gz`, bytes, bytesTotal, state: 'fetching' });
    }
    if (bytesTotal !== null && bytes < bytesTotal) {
      throw new Error(`it broke off after ${bytes} of ${bytesTotal} bytes`);
    }
  } finally {
    await output.close();
  }
}

interface SilenceTimer {
  readonly signal: AbortSignal;
  /** Something was heard. */
  reset(): void;
  stop(): void;
}

function silenceTimer(silenceMs: number, outer: AbortSignal | undefined): SilenceTimer {
  const controller = new AbortController();
  const giveUp = () => controller.abort(new Error(`no answer for ${silenceMs / 1000} s`));
  let timer = setTimeout(giveUp, silenceMs);
  return {
    signal: outer ? AbortSignal.any([controller.signal, outer]) : controller.signal,
    reset() {
      clearTimeout(timer);
      timer = setTimeout(giveUp, silenceMs);
    },
    stop: () => clearTimeout(timer),
  };
}

/** Compares size and SHA-256 of what a file holds, decompressed, without keeping it in memory. */
async function hasContent(path: string, file: RemoteFile, signal?: AbortSignal): Promise<boolean> {
  const hash = createHash('sha256');
  let bytes = 0;
  const measure = async (source: AsyncIterable<Buffer>) => {
    for await (const chunk of source) {
      bytes += chunk.length;
      if (bytes > file.bytes) throw new Error('longer than the file');
      hash.update(chunk);
    }
  };
  const input = createReadStream(path);
  try {
    const options = signal ? { signal } : {};
    if (await isGzipFile(path)) await pipeline(input, createGunzip(), measure, options);
    else await pipeline(input, measure, options);
  } catch {
    // Damaged, truncated or too long: not the content either way.
    signal?.throwIfAborted();
    return false;
  } finally {
    input.destroy();
  }
  return bytes === file.bytes && hash.digest('hex') === file.sha256;
}

async function isGzipFile(path: string): Promise<boolean> {
  const file = await open(path);
  try {
    const { buffer } = await file.read(Buffer.alloc(2), 0, 2, 0);
    return isGzip(buffer);
  } finally {
    await file.close();
  }
}

/** Null when there is no such file. */
async function sizeOf(path: string): Promise<number | null> {
  return stat(path).then(
    (entry) => (entry.isFile() ? entry.size : null),
    () => null,
  );
}

function diskError(path: string, error: unknown): DownpourError {
  return new DownpourError(
    'DP_DISK',
    `${path} cannot be written: ${errorText(error)}; free some space or choose another folder with --to`,
    { cause: error },
  );
}

/** fetch says only "fetch failed"; why is in its cause. */
function reason(error: unknown): string {
  const cause = error instanceof Error ? error.cause : undefined;
  if (!(cause instanceof Error)) return errorText(error);
  return (cause as NodeJS.ErrnoException).code ?? cause.message;
}
