import { createHash } from 'node:crypto';
import { bytesOf } from '../shared/codec.ts';
import { encodeSafetensorsHeader } from '../shared/safetensors.ts';
import { writeAll, writeFileAtomic } from './atomic-file.ts';
import { openCheckpointTensors, readCheckpoint, tensorMetadata } from './checkpoint.ts';
import type { CheckpointManifest } from './manifest.ts';
import type { OpenTensors } from './tensor-file.ts';

/**
 * A checkpoint as one file that is read alone, for those who take it elsewhere. One that continues others is put together
 * while it is read: nothing is held but the keys of its rows.
 */
export interface WholeCheckpoint {
  /** How long the file is. */
  readonly bytes: number;
  /** All of its bytes, in order. Throws DP_CHECKPOINT_CORRUPT, DP_DISK. */
  stream(): AsyncGenerator<Uint8Array>;
  close(): Promise<void>;
}

const PIECE_ELEMENTS = 2 ** 18;

/** Its files may be removed meanwhile. Throws what `readCheckpoint` throws: all of it is checked first. */
export async function openWhole(folder: string, file: string): Promise<WholeCheckpoint> {
  const { manifest } = await readCheckpoint(folder, file, false);
  const tensors = await openCheckpointTensors(folder, manifest);
  const places = tensors.tensors.map(({ name, shape }) => {
    return { name, shape, byteLength: 4 * tensors.size(name) };
  });
  const header = encodeSafetensorsHeader(places, tensorMetadata(manifest));
  const bytes = places.reduce((sum, { byteLength }) => sum + byteLength, header.length);
  return { bytes, stream: () => streamOf(header, tensors), close: tensors.close };
}

async function* streamOf(header: Uint8Array, file: OpenTensors) {
  yield header;
  for (const { name } of file.tensors) {
    const size = file.size(name);
    for (let start = 0; start < size; start += PIECE_ELEMENTS) {
      yield bytesOf(await file.read(name, start, Math.min(PIECE_ELEMENTS, size - start)));
    }
  }
}

/** The manifest of a whole file instead of one that continues others. */
export async function wholeManifest(
  { continues: _, ...manifest }: CheckpointManifest,
  whole: WholeCheckpoint,
): Promise<CheckpointManifest> {
  const hash = createHash('sha256');
  for await (const piece of whole.stream()) hash.update(piece);
  return { ...manifest, version: 1, bytes: whole.bytes, sha256: hash.digest('hex') };
}

/** Writes the tensors of a checkpoint as one file. Throws what `readCheckpoint` throws. */
export async function copyWhole(folder: string, file: string, to: string): Promise<void> {
  const whole = await openWhole(folder, file);
  try {
    await writeFileAtomic(to, async (handle) => {
      for await (const piece of whole.stream()) await writeAll(handle, piece);
    });
  } finally {
    await whole.close();
  }
}
