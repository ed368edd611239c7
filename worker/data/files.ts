import { open, readFile } from 'node:fs/promises';
import { promisify } from 'node:util';
import { gunzip } from 'node:zlib';
import { DownpourError, errorText } from '../../shared/errors.ts';

/** Reading whole files of data, gzip or not, with the errors that a user can act on. */

/** Of a data file, decompressed; more than Node holds in one buffer safely is never useful. */
export const DATA_FILE_BYTES_MAX = 4 * 2 ** 30 - 1;

const gunzipAsync = promisify(gunzip);

export interface ReadOptions {
  /** After decompression. */
  readonly bytesMax?: number;
}

/**
 * The bytes of a file, decompressed when they begin like gzip, whatever its name.
 * @throws DownpourError DP_DATA_MISSING when it is not there or not readable, DP_DATA_CORRUPT for a
 * truncated gzip, a wrong checksum or more than `bytesMax`.
 */
export async function readDataFile(path: string, options: ReadOptions = {}): Promise<Buffer> {
  const bytesMax = options.bytesMax ?? DATA_FILE_BYTES_MAX;
  let bytes: Buffer;
  try {
    const file = await open(path);
    try {
      const { size } = await file.stat();
      if (size > bytesMax) throw tooLarge(path, bytesMax);
      bytes = await readFile(file);
    } finally {
      await file.close();
    }
  } catch (error) {
    throw error instanceof DownpourError ? error : unreadable(path, error);
  }
  return isGzip(bytes) ? decompress(path, bytes, bytesMax) : bytes;
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

async function decompress(path: string, bytes: Buffer, bytesMax: number): Promise<Buffer> {
  try {
    // Larger pieces than zlib's 16 KiB: a third of the time on 47 MB.
    return await gunzipAsync(bytes, {
      maxOutputLength: bytesMax,
      chunkSize: 1 << 20,
    });
  } catch (error) {
    const code = (error as NodeJS.ErrnoException).code;
    if (code === 'ERR_BUFFER_TOO_LARGE') throw tooLarge(path, bytesMax);
    const what =
      code === 'Z_BUF_ERROR'
        ? `the gzip data end too early, after ${bytes.length} bytes: the file is truncated`
        : `the gzip data are damaged (${errorText(error)})`;
    throw corrupt(path, `${what}; fetch the file again`, error);
  }
}

function tooLarge(path: string, bytesMax: number): DownpourError {
  return corrupt(path, `it holds more than the ${bytesMax} bytes allowed; split it`);
}
