import type { RunConfig } from '../../shared/config.ts';
import { DownpourError } from '../../shared/errors.ts';
import { type Layout, STATE_PREFIX } from '../../shared/layout.ts';
import { LIMITS } from '../../shared/limits.ts';
import { MEMORY_BYTES_MAX, regionBytes } from '../../shared/memory.ts';
import { averageBytes, averageSymbols } from './averaging.ts';
import { optimizerBytes, optimizerSymbols } from './fused.ts';
import { velocitySymbol } from './optimizer.ts';

/** The vectors of a run: their names in a checkpoint, their sizes, and what they and payloads take. */

/** The parameters among the `vectors`. */
export const VECTOR = `${STATE_PREFIX}parameters`;

export type Owner = 'optimizer' | 'velocity' | 'average';
export const stateName = (owner: Owner, symbol: string) => `${STATE_PREFIX}${owner}.${symbol}`;
/** Before the slot in the name of a worker's velocity. */
export const VELOCITY = stateName('velocity', '');

/**
 * For so many velocities of workers there is room, the same on all shards of a run.
 * @param layout of the whole model.
 */
export function velocityCount(
  { optimizer, averaging, consistency }: Pick<RunConfig, 'optimizer' | 'averaging' | 'consistency'>,
  { size, trainableSize, exchangedSize }: Layout,
): number {
  const { correction } = consistency;
  const wanted = correction === 'auto' || correction === 'lookahead';
  if (!wanted || velocitySymbol(optimizer.kind) === null) return 0;
  const others =
    regionBytes(4 * size) +
    optimizerBytes(optimizer, trainableSize) +
    averageBytes(averaging, exchangedSize) +
    // The payload, and room for a few pushes and answers.
    (1 + 2 * ROOMS_FEW) * regionBytes(4 * exchangedSize);
  const bytes = Math.min(LIMITS.velocityBytesMax, MEMORY_BYTES_MAX - others);
  const count = Math.floor(bytes / regionBytes(4 * trainableSize));
  // One for all would be no other than the common one.
  return count < 2 ? 0 : Math.min(LIMITS.velocityCountMax, count);
}

/** The `vectors` of a run that is not here: their names and elements. @param velocities in use. */
export function vectorSizes(
  { optimizer, averaging }: Pick<RunConfig, 'optimizer' | 'averaging'>,
  { size, trainableSize, exchangedSize }: Layout,
  velocities: readonly number[] = [],
): Map<string, number> {
  const sizes = new Map([[VECTOR, size]]);
  for (const symbol of optimizerSymbols(optimizer)) {
    sizes.set(stateName('optimizer', symbol), trainableSize);
  }
  for (const slot of velocities) sizes.set(stateName('velocity', String(slot)), trainableSize);
  for (const symbol of averageSymbols(averaging)) {
    sizes.set(stateName('average', symbol), exchangedSize);
  }
  return sizes;
}

/** Of a push: what a room holds, any dense encoding, and what the largest of the encodings takes. */
export function payloadLimits({
  exchangedSize,
  trainableSize,
}: Pick<Layout, 'exchangedSize' | 'trainableSize'>): { roomBytes: number; bytesMax: number } {
  return { roomBytes: 4 * exchangedSize, bytesMax: 4 * (exchangedSize + trainableSize + 1) };
}

export const LANDINGS_MIN = 2;
const ROOMS_MAX = 64;
/** Rooms take no more, unless `ROOMS_FEW` of them do. */
const ROOM_BYTES = 2 ** 28;
const ROOMS_FEW = 4;

/** As many as pushes may arrive, or answers be under way, at once; the others wait, or are copied. */
export function roomCount(bytes: number, bytesLeft: number): number {
  const wanted = Math.max(ROOMS_FEW, Math.floor(ROOM_BYTES / bytes));
  return Math.min(ROOMS_MAX, wanted, Math.floor(bytesLeft / bytes));
}

export interface NamedTensor {
  readonly name: string;
  readonly shape: readonly number[];
  readonly values: Float32Array;
}

/** A vector under a name. */
export function flatTensor(name: string, values: Float32Array): NamedTensor {
  return { name, shape: [values.length], values };
}

/** Makes a private copy. */
export type Copy = (values: Float32Array) => Float32Array;
export const slice: Copy = (values) => values.slice();

/** @throws DownpourError DP_CHECKPOINT_CORRUPT when it is missing or has another size. */
export function takeTensor(
  tensors: readonly NamedTensor[],
  name: string,
  size: number,
): Float32Array {
  const values = tensors.find((tensor) => tensor.name === name)?.values;
  if (values?.length === size) return values;
  const seen = values ? `has ${values.length} elements, not ${size}` : 'is missing';
  throw new DownpourError('DP_CHECKPOINT_CORRUPT', `checkpoint tensor '${name}' ${seen}`);
}
