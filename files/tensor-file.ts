import { createHash } from 'node:crypto';
import { type FileHandle, open } from 'node:fs/promises';
import { bytesOf } from '../shared/codec.ts';
import { DownpourError } from '../shared/errors.ts';
import {
  decodeSafetensorsHeader,
  encodeSafetensorsHeader,
  PREFIX_BYTES,
  type SafetensorsHeader,
  safetensorsHeaderLength,
} from '../shared/safetensors.ts';
import { writeAll, writeFileAtomic } from './atomic-file.ts';
import { checkpointDamage, readError } from './damage.ts';
import type { TensorSource } from './joined-rows.ts';

/** Tensor files: safetensors of F32 alone, written and read in pieces and hashed on the way. */

export interface CheckpointTensor {
  readonly name: string;
  readonly shape: readonly number[];
  /** Row-major. Must not change until the write has ended: give copies of live parameters. */
  readonly values: Float32Array;
}

/** A tensor too large to be held at once, or that lies elsewhere. */
export interface StreamedTensor {
  readonly name: string;
  readonly shape: readonly number[];
  /** All of its bytes, row-major, little-endian. Called once. */
  pieces(): AsyncIterable<Uint8Array>;
}

/** Written, hashed and read at once: small enough that other work is never held up for long. */
const CHUNK_BYTES = 1024 * 1024;
/**
 * Writes a safetensors file of F32 tensors atomically, straight from the given arrays.
 * Throws DP_DISK, DP_LAYOUT_INVALID.
 */
export async function writeTensors(
  path: string,
  tensors: readonly (CheckpointTensor | StreamedTensor)[],
  metadata: Readonly<Record<string, string>> = {},
): Promise<{ readonly bytes: number; readonly sha256: string }> {
  const header = encodeSafetensorsHeader(
    tensors.map((tensor) => {
      const { name, shape } = tensor;
      const size = shape.reduce((product, d) => product * d, 1);
      return {
        name,
        shape,
        byteLength: 'values' in tensor ? tensor.values.byteLength : 4 * size,
      };
    }),
    metadata,
  );
  const hash = createHash('sha256');
  let bytes = 0;
  await writeFileAtomic(path, async (handle) => {
    const write = async (part: Uint8Array) => {
      for (let start = 0; start < part.length; start += CHUNK_BYTES) {
        const chunk = part.subarray(start, start + CHUNK_BYTES);
        hash.update(chunk);
        await writeAll(handle, chunk);
        bytes += chunk.length;
      }
    };
    await write(header);
    for (const tensor of tensors) {
      if ('values' in tensor) await write(bytesOf(tensor.values));
      else for await (const piece of tensor.pieces()) await write(piece);
    }
  });
  return { bytes, sha256: hash.digest('hex') };
}

/**
 * Reads pieces of the tensors of a checkpoint, one after the other, for those who cannot hold it whole.
 * Check the file first: `newestValidCheckpoint` with `load: false`.
 */
export async function openTensors(path: string): Promise<OpenTensors> {
  try {
    const handle = await open(path, 'r');
    try {
      const { size } = await handle.stat();
      const header = await readHeader(handle, path, size, { update: () => {} });
      const places = new Map(header.tensors.map((tensor) => [tensor.name, tensor]));
      return {
        tensors: header.tensors,
        size(name) {
          const place = places.get(name);
          return place ? (place.end - place.begin) / 4 : 0;
        },
        async read(name, start, count) {
          const place = places.get(name);
          if (count === 0) return new Float32Array();
          if (!place || 4 * (start + count) > place.end - place.begin) {
            throw checkpointDamage(path, `it has no tensor '${name}' of ${start + count} elements`);
          }
          const values = new Float32Array(count);
          const bytes = bytesOf(values);
          for (let at = 0; at < bytes.length; ) {
            const from = header.dataStart + place.begin + 4 * start + at;
            const length = Math.min(bytes.length - at, 16 * CHUNK_BYTES);
            const { bytesRead } = await handle.read(bytes, at, length, from);
            if (bytesRead === 0)
              throw checkpointDamage(path, 'it became shorter while it was read');
            at += bytesRead;
          }
          return values;
        },
        close: () => handle.close(),
      };
    } catch (error) {
      await handle.close();
      throw error;
    }
  } catch (error) {
    throw readError(error, path);
  }
}

export interface OpenTensors extends TensorSource {
  close(): Promise<void>;
}

/**
 * Reads a safetensors file whose tensors are all F32.
 *
 * @param bytesExpected the size it must have, when that is known.
 * @param load false: for its checksum alone.
 *
 * Throws DP_CHECKPOINT_CORRUPT, DP_CHECKPOINT_MISSING, DP_DISK.
 */
export async function readTensors(
  path: string,
  bytesExpected?: number,
  load = true,
): Promise<{
  readonly tensors: readonly CheckpointTensor[];
  readonly metadata: Readonly<Record<string, string>>;
  readonly sha256: string;
}> {
  try {
    const handle = await open(path, 'r');
    try {
      const { size } = await handle.stat();
      if (bytesExpected !== undefined && size !== bytesExpected) {
        throw checkpointDamage(path, `it has ${size} bytes, the manifest says ${bytesExpected}`);
      }
      const hash = createHash('sha256');
      const header = await readHeader(handle, path, size, hash);
      const tensors: CheckpointTensor[] = [];
      for (const { name, dtype, shape, begin, end } of header.tensors) {
        if (dtype !== 'F32') {
          throw checkpointDamage(
            path,
            `tensor ${JSON.stringify(name)} is ${dtype}; only F32 is used`,
          );
        }
        if (!load) continue;
        const values = new Float32Array((end - begin) / 4);
        await readAll(handle, path, bytesOf(values), hash);
        tensors.push({ name, shape, values });
      }
      if (!load) await hashRest(handle, path, size - header.dataStart, hash);
      return { tensors, metadata: header.metadata, sha256: hash.digest('hex') };
    } finally {
      await handle.close();
    }
  } catch (error) {
    throw readError(error, path);
  }
}

interface Hash {
  update(bytes: Uint8Array): unknown;
}

async function readHeader(
  handle: FileHandle,
  path: string,
  fileBytes: number,
  hash: Hash,
): Promise<SafetensorsHeader> {
  const prefix = new Uint8Array(PREFIX_BYTES);
  try {
    if (fileBytes >= PREFIX_BYTES) await readAll(handle, path, prefix, hash);
    const bytes = new Uint8Array(PREFIX_BYTES + safetensorsHeaderLength(prefix, fileBytes));
    bytes.set(prefix);
    await readAll(handle, path, bytes.subarray(PREFIX_BYTES), hash);
    return decodeSafetensorsHeader(bytes, fileBytes);
  } catch (error) {
    if (!(error instanceof DownpourError)) throw error;
    throw new DownpourError(error.code, `${path}: ${error.message}`, { cause: error });
  }
}

async function readAll(
  handle: FileHandle,
  path: string,
  into: Uint8Array,
  hash: Hash,
): Promise<void> {
  for (let start = 0; start < into.length; ) {
    const length = Math.min(CHUNK_BYTES, into.length - start);
    const { bytesRead } = await handle.read(into, start, length, null);
    if (bytesRead === 0) throw checkpointDamage(path, 'it became shorter while it was read');
    hash.update(into.subarray(start, start + bytesRead));
    start += bytesRead;
  }
}

async function hashRest(
  handle: FileHandle,
  path: string,
  bytes: number,
  hash: Hash,
): Promise<void> {
  const chunk = new Uint8Array(Math.min(CHUNK_BYTES, bytes));
  for (let left = bytes; left > 0; left -= chunk.length) {
    await readAll(handle, path, chunk.subarray(0, left), hash);
  }
}
