import { type FileHandle, open } from 'node:fs/promises';
import { LIMITS } from '../../shared/limits.ts';
import { ownEntry } from '../../shared/own-files.ts';
import { corrupt, isGzip, unreadable } from './files.ts';
import { ThreadPool } from './thread-pool.ts';

/**
 * A file that is read by position: of any size, a few bytes at a time. It is open only while it is read, so nothing needs
 * to be closed.
 */

export interface ByteRange {
  /** Byte of the file. */
  readonly start: number;
  /** Bytes; may be 0. */
  readonly length: number;
}

/** Ranges nearer to each other are read at once: a read costs as much as this many bytes more. */
const GAP_BYTES = 16 * 1024;

interface ReadTask {
  readonly path: string;
  /** As the file was when it was opened. */
  readonly version: string;
  /** The byte at which each range begins, and its length, one after the other. */
  readonly spans: Float64Array;
}

type ReadAnswer =
  /** The bytes of all ranges, one after the other. */
  | { readonly bytes: ArrayBuffer }
  /** The version that the file has now. */
  | { readonly changed: string }
  /** The byte at which it ends, before a range does. */
  | { readonly ended: number }
  | { readonly failed: NodeJS.ErrnoException };

/**
 * One thread reads for all sources of a process: 64 examples are 64 small reads, and each one that this thread awaited
 * would take 40 µs of it.
 */
const readers = new ThreadPool<ReadTask, ReadAnswer>({
  module: ownEntry('read-thread', new URL('./reads/thread.js', import.meta.url)),
  count: 1,
  work: 'reads files',
  execArgv: [],
});

export class PositionedFile {
  readonly path: string;
  readonly size: number;
  /** Differs where the file has been changed. */
  readonly version: string;

  private constructor(path: string, size: number, version: string) {
    this.path = path;
    this.size = size;
    this.version = version;
  }

  /**
   * @throws DownpourError DP_DATA_MISSING: it is not there, not a file, or not readable; DP_DATA_CORRUPT: it is compressed,
   * so that nothing in it has a position.
   */
  static async open(path: string): Promise<PositionedFile> {
    return opened(path, async (handle) => {
      const stats = await handle.stat();
      if (!stats.isFile()) {
        const what = stats.isDirectory() ? 'it is a folder; name a file in it' : 'it is not a file';
        throw unreadable(path, new Error(what));
      }
      const { buffer, bytesRead } = await handle.read(Buffer.alloc(2), 0, 2, 0);
      if (bytesRead === 2 && isGzip(buffer)) {
        throw corrupt(
          path,
          'it is compressed by gzip, so nothing in it can be found by position; unpack it with gunzip',
        );
      }
      return new PositionedFile(path, stats.size, versionOf(stats));
    });
  }

  /** Its first bytes, at most `length`. */
  async head(length: number): Promise<Buffer> {
    return this.read({ start: 0, length: Math.min(length, this.size) });
  }

  async read(range: ByteRange, signal?: AbortSignal): Promise<Buffer> {
    let read: Buffer | undefined;
    await this.readAll([range], (bytes) => (read = bytes), signal);
    return read!;
  }

  /**
   * Reads some ranges, in any order, neighbours at once.
   * @param take is given the bytes of range `i`, a view that is overwritten by nobody
   * @throws DownpourError DP_DATA_CORRUPT: the file has changed since it was opened, or ends before a range does;
   * DP_DATA_MISSING: it cannot be read any more. @throws what `signal` was aborted with
   */
  async readAll(
    ranges: readonly ByteRange[],
    take: (bytes: Buffer, i: number) => void,
    signal?: AbortSignal,
  ): Promise<void> {
    for (const spans of tasksOf(spansOf(ranges))) {
      signal?.throwIfAborted();
      const bytes = await this.#read(spans);
      let at = 0;
      for (const { start, length, parts } of spans) {
        for (const i of parts) {
          const from = at + ranges[i]!.start - start;
          take(bytes.subarray(from, from + ranges[i]!.length), i);
        }
        at += length;
      }
    }
    signal?.throwIfAborted();
  }

  /** The bytes of all spans, one after the other. */
  async #read(spans: readonly ByteRange[]): Promise<Buffer> {
    const { path, version } = this;
    const numbers = Float64Array.from(spans.flatMap(({ start, length }) => [start, length]));
    const answer = await readers.run({ path, version, spans: numbers }, [numbers.buffer]);
    if ('bytes' in answer) return Buffer.from(answer.bytes);
    if ('failed' in answer) throw unreadable(path, answer.failed);
    if ('ended' in answer) {
      throw corrupt(
        path,
        `it ends at byte ${answer.ended}, before a range of it does: it is truncated; fetch it again`,
      );
    }
    throw corrupt(
      path,
      `it has changed since it was opened (size and time of change: ${version} then, ${answer.changed} now). The examples of a run must stay the same: start the worker again when nothing writes to the file any more`,
    );
  }
}

const versionOf = ({ size, mtimeMs }: { size: number; mtimeMs: number }): string =>
  `${size} bytes, ${mtimeMs} ms`;

async function opened<T>(path: string, use: (handle: FileHandle) => Promise<T>): Promise<T> {
  let handle: FileHandle;
  try {
    handle = await open(path);
  } catch (error) {
    throw unreadable(path, error);
  }
  try {
    return await use(handle);
  } catch (error) {
    // What the system says of a read that failed, such as EIO and EISDIR.
    throw typeof (error as NodeJS.ErrnoException).errno === 'number'
      ? unreadable(path, error)
      : error;
  } finally {
    await handle.close();
  }
}

interface ReadSpan extends ByteRange {
  /** Indices of the ranges in it. */
  readonly parts: number[];
}

function spansOf(ranges: readonly ByteRange[]): ReadSpan[] {
  const order = ranges.map((_, i) => i).sort((a, b) => ranges[a]!.start - ranges[b]!.start);
  const spans: { start: number; length: number; parts: number[] }[] = [];
  for (const i of order) {
    const { start, length } = ranges[i]!;
    const last = spans.at(-1);
    const end = Math.max(last ? last.start + last.length : 0, start + length);
    if (
      last &&
      start - (last.start + last.length) <= GAP_BYTES &&
      end - last.start <= LIMITS.readBytesMax
    ) {
      last.length = end - last.start;
      last.parts.push(i);
    } else spans.push({ start, length, parts: [i] });
  }
  return spans;
}

/** Spans that are read together: memory for them is taken at once. */
function* tasksOf(spans: readonly ReadSpan[]): Generator<readonly ReadSpan[], void> {
  let from = 0;
  let bytes = 0;
  for (const [i, { length }] of spans.entries()) {
    if (i > from && bytes + length > LIMITS.readBytesMax) {
      yield spans.slice(from, i);
      from = i;
      bytes = 0;
    }
    bytes += length;
  }
  if (from < spans.length) yield spans.slice(from);
}
