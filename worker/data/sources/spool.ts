import { createHash, randomUUID } from 'node:crypto';
import { type FileHandle, mkdir, open, readdir, rename, rm, stat } from 'node:fs/promises';
import { endianness, hostname } from 'node:os';
import { basename, dirname, join } from 'node:path';
import { DownpourError, errorText } from '../../../shared/errors.ts';
import { LIMITS } from '../../../shared/limits.ts';
import { ARRAYS, type Column, sizeOf } from '../columns.ts';
import { isRecord } from '../described.ts';
import { corrupt } from '../files.ts';
import { PositionedFile } from '../positioned-file.ts';
import type { ExampleSource, SourceField, SourceRows } from '../source.ts';
import { ReadProgress } from './read-progress.ts';

/**
 * Examples that are written once to a file and then read by position: a row for each example, all of the same length; then a
 * description as JSON, its length as 32 bits, and a magic. The file has its name only once it is whole.
 */

const MAGIC = 'DPROWS1\n';
const TAIL_BYTES = 4 + MAGIC.length;
/** The most bytes of a description: names of inputs are in it. */
const DESCRIPTION_BYTES_MAX = 64 * 2 ** 20;
/** Names of temporary files end so. */
const PART = '.part';

/** What the file says of itself. */
interface Description {
  readonly count: number;
  readonly fields: Readonly<Record<string, SourceField>>;
  /** What was written: a key of the source, or nothing. */
  readonly of: string | null;
  /** SHA-256 of all rows. */
  readonly sha256: string;
  readonly endianness: string;
}

export interface SpoolFile {
  /** Folder of the file; made if it is not there. */
  readonly folder: string;
  /** Its name, without an ending: letters, digits, `-`, `_` and `.`. */
  readonly name: string;
  readonly log?: ((line: string) => void) | undefined;
}

const spoolPath = ({ folder, name }: SpoolFile): string => join(folder, `${name}.rows`);

/**
 * Writes examples to a file, and gives it its name when all are written.
 * @param batches of consecutive examples; asked for one at a time
 * @param total for the progress; null: it is not known
 * @throws DownpourError DP_DISK: the disk is full, or the folder cannot be written; DP_DATA_CORRUPT: there are no examples.
 * What was written is then gone. @throws what `batches` throws
 */
export async function writeSpool(
  file: SpoolFile,
  of: string | null,
  batches: AsyncIterable<SpoolBatch>,
  total: number | null,
): Promise<void> {
  const path = spoolPath(file);
  await onDisk(path, () => mkdir(dirname(path), { recursive: true }));
  await removeLeftovers(path);
  const temporary = `${path}.${hostname()}.${process.pid}.${randomUUID().slice(0, 8)}${PART}`;
  try {
    const handle = await onDisk(path, () => open(temporary, 'wx'));
    try {
      await writeRows(
        handle,
        path,
        of,
        batches,
        new ReadProgress(file.log, path, 'examples', total),
      );
      await onDisk(path, () => handle.sync());
    } finally {
      await handle.close();
    }
    await onDisk(path, () => rename(temporary, path));
  } catch (error) {
    await rm(temporary, { force: true }).catch(() => {});
    throw error;
  }
}

/** Some examples, one after the other; fields are the same in every batch. */
export interface SpoolBatch {
  readonly count: number;
  readonly fields: Readonly<Record<string, SourceField>>;
  readonly rows: SourceRows;
}

async function writeRows(
  handle: FileHandle,
  path: string,
  of: string | null,
  batches: AsyncIterable<SpoolBatch>,
  progress: ReadProgress,
): Promise<void> {
  const hash = createHash('sha256');
  let count = 0;
  let fields: Description['fields'] | null = null;
  for await (const batch of batches) {
    fields ??= batch.fields;
    const bytes = interleaved(batch, layoutOf(fields));
    hash.update(bytes);
    await onDisk(path, () => writeWhole(handle, bytes));
    count += batch.count;
    progress.tell(count);
  }
  if (fields === null || count === 0) throw corrupt(path, 'there are no examples to write');
  const description: Description = {
    ...{ count, fields, of, sha256: hash.digest('hex'), endianness: endianness() },
  };
  const json = Buffer.from(JSON.stringify(description));
  const length = Buffer.alloc(4);
  length.writeUInt32LE(json.length);
  const tail = Buffer.concat([json, length, Buffer.from(MAGIC)]);
  await onDisk(path, () => writeWhole(handle, tail));
}

async function writeWhole(handle: FileHandle, bytes: Uint8Array): Promise<void> {
  for (let at = 0; at < bytes.length; ) {
    at += (await handle.write(bytes, at, bytes.length - at)).bytesWritten;
  }
}

interface RowLayout {
  readonly rowBytes: number;
  readonly fields: readonly { name: string; at: number; bytes: number; size: number }[];
}

function layoutOf(fields: Description['fields']): RowLayout {
  let at = 0;
  const placed = Object.entries(fields).map(([name, { shape, type }]) => {
    const size = sizeOf(shape);
    const bytes = size * ARRAYS[type].BYTES_PER_ELEMENT;
    const field = { name, at, bytes, size };
    at += bytes;
    return field;
  });
  return { rowBytes: at, fields: placed };
}

function interleaved({ count, rows }: SpoolBatch, { rowBytes, fields }: RowLayout): Uint8Array {
  const bytes = new Uint8Array(count * rowBytes);
  for (const { name, at, bytes: size } of fields) {
    const values = rows[name]!;
    const own = new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
    for (let i = 0; i < count; i++) {
      bytes.set(own.subarray(i * size, (i + 1) * size), i * rowBytes + at);
    }
  }
  return bytes;
}

/**
 * The examples of a file that was written before.
 * @param of what they must be; undefined: anything
 * @returns null: there is no such file, or it has something else
 * @throws DownpourError DP_DATA_CORRUPT: it is cut off or damaged.
 */
export async function readSpool(
  file: SpoolFile,
  of?: string | null,
): Promise<ExampleSource | null> {
  const path = spoolPath(file);
  const isThere = await stat(path).then(
    () => true,
    (error: NodeJS.ErrnoException) => {
      if (error.code === 'ENOENT') return false;
      throw diskError(path, error);
    },
  );
  if (!isThere) return null;
  const opened = await PositionedFile.open(path);
  const { description, rowsBytes } = await descriptionOf(opened);
  const { count, fields, sha256 } = description;
  const layout = layoutOf(fields);
  if (count * layout.rowBytes !== rowsBytes || description.endianness !== endianness()) {
    throw damaged(
      path,
      `it has ${rowsBytes} bytes for ${count} examples of ${layout.rowBytes} bytes`,
    );
  }
  if (of !== undefined && description.of !== of) return null;
  return {
    ...{ count, fields, name: path, key: `rows ${sha256}` },
    async read(indices, { signal }) {
      const found = Object.entries(fields).map(([name, { type, shape }]) => {
        const values = new ARRAYS[type](indices.length * sizeOf(shape));
        return [name, values, new Uint8Array(values.buffer)] as const;
      });
      const { rowBytes } = layout;
      const ranges = Array.from(indices, (index) => ({
        start: index * rowBytes,
        length: rowBytes,
      }));
      const take = (row: Buffer, i: number) => {
        layout.fields.forEach(({ at, bytes }, f) => {
          found[f]![2].set(row.subarray(at, at + bytes), i * bytes);
        });
      };
      await opened.readAll(ranges, take, signal);
      return Object.fromEntries(found) as Record<string, Column['values']>;
    },
  };
}

async function descriptionOf(file: PositionedFile) {
  const { path, size } = file;
  const tail = await file.read({
    start: Math.max(0, size - TAIL_BYTES),
    length: Math.min(TAIL_BYTES, size),
  });
  if (tail.length < TAIL_BYTES || tail.toString('latin1', 4) !== MAGIC) {
    throw damaged(path, 'it does not end as such a file does');
  }
  const length = tail.readUInt32LE(0);
  const rowsBytes = size - TAIL_BYTES - length;
  if (rowsBytes < 0 || length > DESCRIPTION_BYTES_MAX) {
    throw damaged(path, `its description is said to take ${length} bytes`);
  }
  const text = (await file.read({ start: rowsBytes, length })).toString();
  try {
    const description: unknown = JSON.parse(text);
    if (isRecord(description) && isRecord(description.fields)) {
      return { description: description as unknown as Description, rowsBytes };
    }
  } catch {
    // Said below.
  }
  throw damaged(path, 'its description cannot be read');
}

const damaged = (path: string, what: string): DownpourError =>
  corrupt(path, `${what}: the file is damaged; delete it, and it is written again`);

/** Files of processes of this machine that ended while they wrote. */
async function removeLeftovers(path: string): Promise<void> {
  const begin = `${basename(path)}.${hostname()}.`;
  const names = await onDisk(path, () => readdir(dirname(path)));
  for (const name of names) {
    if (!name.startsWith(begin) || !name.endsWith(PART)) continue;
    const pid = Number(name.slice(begin.length).split('.')[0]);
    if (pid === process.pid || isAlive(pid)) continue;
    await rm(join(dirname(path), name), { force: true }).catch(() => {});
  }
}

function isAlive(pid: number): boolean {
  try {
    return process.kill(pid, 0);
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'EPERM';
  }
}

async function onDisk<T>(path: string, act: () => Promise<T>): Promise<T> {
  try {
    return await act();
  } catch (error) {
    throw diskError(path, error);
  }
}

function diskError(path: string, error: unknown): DownpourError {
  const isFull = ['ENOSPC', 'EDQUOT', 'EFBIG'].includes(
    (error as NodeJS.ErrnoException).code ?? '',
  );
  const advice = isFull
    ? 'free space there, or choose a folder on another disk'
    : 'choose a folder that this user may write';
  return new DownpourError('DP_DISK', `${path} cannot be written: ${errorText(error)}; ${advice}`, {
    cause: error,
  });
}

/** Examples that are written at once, of so many bytes. */
export function rowsAtOnce(fields: Readonly<Record<string, SourceField>>): number {
  return Math.max(1, Math.min(4096, Math.floor(LIMITS.readBytesMax / layoutOf(fields).rowBytes)));
}
