import { type FileHandle, open } from 'node:fs/promises';
import { pipeline, Readable } from 'node:stream';
import { createGunzip } from 'node:zlib';
import { DownpourError, errorText } from '../../shared/errors.ts';

/** Reading whole files of data, gzip or not, with the errors that a user can act on. */

/** The most bytes of a data file, decompressed; more than Node holds in one buffer safely is never useful. */
const DATA_FILE_BYTES_MAX = 4 * 2 ** 30 - 1;

/** Read at once. */
export const PIECE_BYTES = 4 * 2 ** 20;
/** One read of Node's gives at most 2 GiB. */
const READ_BYTES_MAX = 2 ** 30;

export interface FileReadOptions {
  /** After decompression. */
  readonly bytesMax?: number;
}

interface PieceOptions extends FileReadOptions {
  /** Is given the bytes as they are in the file, before decompression, each once and in order. */
  readonly raw?: (bytes: Uint8Array) => void;
}

/**
 * The bytes of a file, decompressed when they begin like gzip, whatever its name.
 * @throws DownpourError DP_DATA_MISSING when it is not there or not readable, DP_DATA_CORRUPT for a
 * truncated gzip, a wrong checksum or more than `bytesMax`.
 */
export async function readDataFile(path: string, options: FileReadOptions = {}): Promise<Buffer> {
  const bytesMax = options.bytesMax ?? DATA_FILE_BYTES_MAX;
  const file = await openFile(path);
  try {
    const { size } = await file.stat();
    if (size > bytesMax) throw tooLarge(path, bytesMax);
    // The size of a pipe is not known: it is read in pieces, as what is decompressed.
    const head = await readInto(file, Buffer.alloc(Math.min(size, 2)));
    if (size > 0 && !isGzip(head)) {
      const bytes = Buffer.allocUnsafeSlow(size);
      head.copy(bytes);
      const rest = await readInto(file, bytes.subarray(head.length));
      if (rest.length === size - head.length) return bytes;
      throw corrupt(
        path,
        `it became shorter while it was read (${size} bytes at first); try again`,
      );
    }
  } catch (error) {
    throw error instanceof DownpourError ? error : unreadable(path, error);
  } finally {
    await file.close();
  }
  const pieces: Buffer[] = [];
  for await (const piece of filePieces(path, { bytesMax })) pieces.push(piece);
  return Buffer.concat(pieces);
}

/**
 * As `readDataFile`, in pieces, each with memory of its own: for files of any size.
 * @param options `bytesMax`: default none
 */
export async function* filePieces(
  path: string,
  options: PieceOptions = {},
): AsyncGenerator<Buffer, void> {
  const { bytesMax = Number.POSITIVE_INFINITY } = options;
  const file = await openFile(path);
  try {
    const raw = rawPieces(file, path, options.raw);
    const first = await raw.next();
    if (first.done) return;
    const all = async function* () {
      yield first.value;
      yield* raw;
    };
    let bytes = 0;
    for await (const piece of isGzip(first.value) ? unzipped(all(), path) : all()) {
      bytes += piece.length;
      if (bytes > bytesMax) throw tooLarge(path, bytesMax);
      yield piece;
    }
  } finally {
    await file.close();
  }
}

async function openFile(path: string): Promise<FileHandle> {
  try {
    return await open(path);
  } catch (error) {
    throw unreadable(path, error);
  }
}

async function* rawPieces(
  file: FileHandle,
  path: string,
  seen: PieceOptions['raw'],
): AsyncGenerator<Buffer, void> {
  for (;;) {
    let piece: Buffer;
    try {
      piece = await readInto(file, Buffer.allocUnsafeSlow(PIECE_BYTES));
    } catch (error) {
      throw unreadable(path, error);
    }
    seen?.(piece);
    if (piece.length > 0) yield piece;
    if (piece.length < PIECE_BYTES) return;
  }
}

/** Fills a buffer from where the file stands. @returns what came of it, less at the end of the file */
async function readInto(file: FileHandle, buffer: Buffer): Promise<Buffer> {
  let at = 0;
  while (at < buffer.length) {
    const length = Math.min(buffer.length - at, READ_BYTES_MAX);
    const { bytesRead } = await file.read(buffer, at, length, null);
    if (bytesRead === 0) break;
    at += bytesRead;
  }
  return buffer.subarray(0, at);
}

async function* unzipped(
  pieces: AsyncGenerator<Buffer, void>,
  path: string,
): AsyncGenerator<Buffer, void> {
  let bytes = 0;
  let readError: unknown;
  const counted = async function* () {
    try {
      for await (const piece of pieces) {
        bytes += piece.length;
        yield piece;
      }
    } catch (error) {
      readError = error;
      throw error;
    }
  };
  try {
    // Larger pieces than zlib's 16 KiB: a third of the time on 47 MB. Several members are read as one.
    const gunzip = createGunzip({ chunkSize: 1 << 20 });
    // What fails is thrown to who reads of gunzip.
    pipeline(Readable.from(counted()), gunzip, () => {});
    yield* gunzip as AsyncIterable<Buffer>;
  } catch (error) {
    if (readError !== undefined) throw readError;
    const { code } = error as NodeJS.ErrnoException;
    const what =
      code === 'Z_BUF_ERROR'
        ? `the gzip data end too early, after ${bytes} bytes: the file is truncated`
        : `the gzip data are damaged (${errorText(error)})`;
    throw corrupt(path, `${what}; fetch the file again`, error);
  }
}

export function isGzip(bytes: Uint8Array): boolean {
  return bytes.length >= 2 && bytes[0] === 0x1f && bytes[1] === 0x8b;
}

/** DP_DATA_CORRUPT for a file. @param what is wrong, and what to do if that is known */
export function corrupt(path: string, what: string, cause?: unknown): DownpourError {
  return new DownpourError('DP_DATA_CORRUPT', `${path}: ${what}`, { cause });
}

/** DP_DATA_MISSING, or what else kept a file or folder from being read. */
export function unreadable(path: string, cause: unknown): DownpourError {
  const code = (cause as NodeJS.ErrnoException).code;
  const message =
    code === 'ENOENT' || code === 'ENOTDIR'
      ? `${path} does not exist; check the path, or set DOWNPOUR_DATA to the folder of your data`
      : code === 'EISDIR'
        ? `${path} is a folder; name a file in it`
        : code === 'EACCES' || code === 'EPERM'
          ? `${path} may not be read by this user; change its permissions`
          : `${path} cannot be read: ${errorText(cause)}`;
  return new DownpourError('DP_DATA_MISSING', message, { cause });
}

function tooLarge(path: string, bytesMax: number): DownpourError {
  return corrupt(path, `it holds more than the ${bytesMax} bytes allowed; split it`);
}
