import { createHash, randomUUID } from 'node:crypto';
import { type FileHandle, mkdir, open, readdir, rename, rm } from 'node:fs/promises';
import { dirname, join, resolve } from 'node:path';
import { DownpourError } from '../shared/errors.ts';

/** The end of the name of a file that is being written. One that is found later is debris. */
export const TEMPORARY = '.tmp';

/**
 * Writes a file so that its name shows either all of the new content or what it showed before,
 * whenever the process or the machine dies: temporary name, fsync, rename, fsync of the folder.
 *
 * Throws DP_DISK with path and advice; the temporary file is then gone.
 */
export async function writeFileAtomic(
  path: string,
  write: (handle: FileHandle) => Promise<void>,
): Promise<void> {
  const temporary = `${path}.${randomUUID().slice(0, 8)}${TEMPORARY}`;
  try {
    const handle = await open(temporary, 'wx');
    try {
      await write(handle);
      await handle.sync();
    } finally {
      await handle.close();
    }
    await rename(temporary, path);
    await syncFolder(dirname(path));
  } catch (error) {
    // The first failure is what the caller must hear of, whatever becomes of the debris.
    await rm(temporary, { force: true }).catch(() => {});
    throw diskError(error, path, 'write');
  }
}

/** Writes all of `bytes` at the handle's position; the kernel may take them in parts. */
export async function writeAll(handle: FileHandle, bytes: Uint8Array): Promise<void> {
  let written = 0;
  while (written < bytes.length) {
    const { bytesWritten } = await handle.write(bytes, written, bytes.length - written, null);
    written += bytesWritten;
  }
}

/** Makes a folder and those above it; the new names survive a crash of the machine. */
export async function makeFolder(folder: string): Promise<void> {
  try {
    const first = await mkdir(folder, { recursive: true });
    if (first === undefined) return;
    const top = dirname(resolve(first));
    for (let path = dirname(resolve(folder)); ; path = dirname(path)) {
      await syncFolder(path);
      if (path === top || path === dirname(path)) return;
    }
  } catch (error) {
    throw diskError(error, folder, 'create');
  }
}

/** What is in a folder; nothing where there is none. Throws DP_DISK. */
export async function namesIn(folder: string): Promise<string[]> {
  try {
    return await readdir(folder);
  } catch (error) {
    if (errnoOf(error) === 'ENOENT') return [];
    throw diskError(error, folder, 'list');
  }
}

/** Makes names that were added to, or taken from, a folder durable. */
export async function syncFolder(folder: string): Promise<void> {
  const handle = await open(folder, 'r');
  try {
    await handle.sync();
  } catch (error) {
    // Some file systems (and Windows) know no fsync of a folder; there is nothing better to do.
    if (!['EINVAL', 'EPERM', 'EISDIR', 'ENOTSUP'].includes(errnoOf(error) ?? '')) throw error;
  } finally {
    await handle.close();
  }
}

const ADVICE: Readonly<Record<string, string>> = {
  ENOSPC: 'the disk is full: free some space or choose another folder',
  EDQUOT: 'the quota is used up: free some space or choose another folder',
  EFBIG: 'the file is larger than this file system or process may write: choose another folder',
  EROFS: 'the file system is read-only: choose another folder or mount it writable',
  EACCES: 'permission is denied: choose another folder or let this user write there',
  EPERM: 'permission is denied: choose another folder or let this user write there',
  ENOTDIR: 'a part of this path is a file: choose another folder',
  EIO: 'the disk reports an error: check it, and choose another folder',
  EMFILE: 'too many files are open: raise the limit (ulimit -n)',
};

/** What a failed system call means to the user: DP_DISK. Anything else is returned as it is. */
export function diskError(error: unknown, path: string, verb: string): unknown {
  const errno = errnoOf(error);
  if (errno === null) return error;
  const advice = ADVICE[errno] ?? 'check that the folder still exists and can be written';
  return new DownpourError('DP_DISK', `cannot ${verb} ${path} (${errno}): ${advice}`, {
    cause: error,
  });
}

/** The name of a failed system call's error, such as ENOSPC; null for anything else. */
export function errnoOf(error: unknown): string | null {
  if (!(error instanceof Error) || !('code' in error) || !('syscall' in error)) return null;
  return typeof error.code === 'string' ? error.code : null;
}

// A sealed value is a JSON file that carries the SHA-256 of its own bytes: of exactly what stands
// between the fixed text around it, so that a flipped bit anywhere in the file shows.
const HEAD = '{"sha256":"';
const MIDDLE = '","content":';
const TAIL = '}\n';

/** JSON that carries its own checksum. Throws what `losslessJson` throws. */
export function seal(value: unknown, indent = 1): Buffer {
  const content = Buffer.from(losslessJson(value, indent));
  return Buffer.concat([
    Buffer.from(`${HEAD}${sha256Of(content)}${MIDDLE}`),
    content,
    Buffer.from(TAIL),
  ]);
}

/**
 * JSON text. Throws a TypeError on what JSON would change without a word: NaN, infinities, typed
 * arrays, maps, sets.
 */
export function losslessJson(value: unknown, indent = 0): string {
  return JSON.stringify(value, refuseLoss, indent);
}

function refuseLoss(key: string, value: unknown): unknown {
  const lost =
    typeof value === 'number'
      ? !Number.isFinite(value)
      : ArrayBuffer.isView(value) || value instanceof Map || value instanceof Set;
  if (lost) throw new TypeError(`JSON cannot keep '${key}': ${String(value).slice(0, 80)}`);
  return value;
}

/**
 * The same value with null for each number that JSON cannot keep, and where those were. A statistic that has
 * overflowed must not keep parameters from being written. What else JSON would change is a defect: `seal` throws.
 */
export function keepable(value: unknown): { readonly value: unknown; readonly leftOut: string[] } {
  const leftOut: string[] = [];
  const visit = (each: unknown, path: string): unknown => {
    if (typeof each === 'number' && !Number.isFinite(each)) {
      leftOut.push(`${path} (${each})`);
      return null;
    }
    if (typeof each !== 'object' || each === null || ArrayBuffer.isView(each)) return each;
    const isList = Array.isArray(each);
    let copy: Record<string, unknown> | unknown[] | null = null;
    for (const [key, inner] of Object.entries(each)) {
      const kept = visit(inner, path === '' ? key : `${path}.${key}`);
      if (kept === inner) continue;
      copy ??= isList ? [...each] : { ...each };
      (copy as Record<string, unknown>)[key] = kept;
    }
    return copy ?? each;
  };
  return { value: visit(value, ''), leftOut };
}

/** The value in a sealed file. Throws an Error that says in a few words what is wrong with it. */
export function unseal(bytes: Buffer): unknown {
  const start = HEAD.length + 64 + MIDDLE.length;
  const end = bytes.length - TAIL.length;
  if (end < start) throw new Error(`it is cut off after ${bytes.length} bytes`);
  const content = bytes.subarray(start, end);
  const sum = bytes.toString('latin1', HEAD.length, HEAD.length + 64);
  const around = bytes.toString('latin1', 0, start) + bytes.toString('latin1', end);
  if (around !== `${HEAD}${sum}${MIDDLE}${TAIL}` || sum !== sha256Of(content)) {
    throw new Error(`its ${bytes.length} bytes do not have the checksum that it carries`);
  }
  return JSON.parse(content.toString());
}

/** Hexadecimal SHA-256. */
export function sha256Of(bytes: Uint8Array): string {
  return createHash('sha256').update(bytes).digest('hex');
}

/**
 * Writes a sealed value atomically into a folder that exists.
 * @param bytesMax what is longer is not written.
 * Throws DP_DISK, DP_LIMIT.
 */
export async function writeSealed(
  folder: string,
  name: string,
  value: unknown,
  bytesMax = Number.POSITIVE_INFINITY,
): Promise<void> {
  const path = join(folder, name);
  const bytes = sealShort(value, Math.min(bytesMax, READABLE_BYTES)) ?? seal(value, 0);
  if (bytes.length > bytesMax) {
    throw new DownpourError(
      'DP_LIMIT',
      `${path} would have ${bytes.length} bytes; at most ${bytesMax} are read again`,
    );
  }
  await writeFileAtomic(path, (handle) => writeAll(handle, bytes));
}

/** Longer ones are for programs: without line breaks they take a third of the room. */
const READABLE_BYTES = 32 * 1024 * 1024;

/** Null: it is longer. */
function sealShort(value: unknown, bytesMax: number): Buffer | null {
  try {
    const bytes = seal(value);
    return bytes.length > bytesMax ? null : bytes;
  } catch (error) {
    // The text is longer than V8 can hold.
    if (error instanceof RangeError) return null;
    throw error;
  }
}
