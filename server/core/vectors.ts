import type { RunConfig } from '../../shared/config.ts';
import { collects, keepsEach, keepsSent, pushesMin } from '../../shared/consistency.ts';
import { DownpourError } from '../../shared/errors.ts';
import { type Layout, STATE_PREFIX } from '../../shared/layout.ts';
import { LIMITS } from '../../shared/limits.ts';
import { localOf } from '../../shared/local-steps.ts';
import { MEMORY_BYTES_MAX, regionBytes } from '../../shared/memory.ts';
import { normAndFinite } from '../../shared/optimizer.ts';
import { averageBytes, averageSymbols } from './averaging.ts';
import { placesUsed, vectorsPerSlot } from './gathered.ts';
import { hasMomentum, rulesBytes, stateSymbols } from './group-rules.ts';
import { outerBytes, outerSymbols } from './outer.ts';

/** The vectors of a run: their names in a checkpoint, their sizes, and what they and payloads take. */

/** The parameters among the `vectors`. */
export const VECTOR = `${STATE_PREFIX}parameters`;

type Owner = 'optimizer' | 'outer' | 'velocity' | 'average' | 'collected' | 'squares' | 'sent';
export const stateName = (owner: Owner, symbol: string) => `${STATE_PREFIX}${owner}.${symbol}`;

/** One of those that only a standby must keep: what workers were sent. */
export const isSent = (name: string): boolean => name.startsWith(stateName('sent', ''));

export const named = (owner: Owner, slots: Readonly<Record<string, Float32Array>>) =>
  Object.entries(slots).map(([symbol, values]): [string, Float32Array] => [
    stateName(owner, symbol),
    values,
  ]);

/** What of a configuration says which vectors there are. */
type VectorConfig = Pick<
  RunConfig,
  'optimizer' | 'averaging' | 'consistency' | 'local' | 'outer' | 'groups'
>;

/** Vectors beside the parameters that a run needs room for. */
export interface VectorPlaces {
  /** Velocities of workers. */
  readonly velocities: number;
  /** Pushes that are collected: 1 for their sum. */
  readonly collected: number;
  /** Workers whose parameters are kept as they were sent. */
  readonly sent: number;
}
export const NO_PLACES: VectorPlaces = { velocities: 0, collected: 0, sent: 0 };

/**
 * The same on all shards of a run. @param layout of the whole model.
 * @throws DownpourError DP_LAYOUT_INVALID: it is too large for an aggregate that keeps each push.
 */
export function vectorPlaces(config: VectorConfig, layout: Layout): VectorPlaces {
  const { consistency } = config;
  const velocities = velocityCount(config, layout);
  const left = bytesLeft(config, layout);
  const slotBytes = vectorsPerSlot(consistency) * regionBytes(4 * layout.trainableSize);
  const sent = keepsSent(consistency)
    ? Math.min(
        LIMITS.sentCountMax,
        Math.floor(Math.min(LIMITS.sentBytesMax, left - slotBytes) / slotBytes),
      )
    : 0;
  if (!collects(consistency)) return { velocities, collected: 0, sent: Math.max(0, sent) };
  if (!keepsEach(consistency)) return { velocities, collected: 1, sent: Math.max(0, sent) };
  const pushBytes = regionBytes(4 * layout.exchangedSize);
  const bytes = Math.min(LIMITS.collectedBytesMax, left - sent * slotBytes);
  const collected = Math.min(LIMITS.collectedCountMax, Math.floor(bytes / pushBytes));
  const { mode, aggregate = 'mean', faultyMax = 1, bufferSize = 10, quorum } = consistency;
  const needed = Math.max(
    pushesMin(aggregate, faultyMax),
    mode === 'buffered' ? bufferSize : (quorum ?? 0),
  );
  if (collected < needed) {
    throw new DownpourError(
      'DP_LAYOUT_INVALID',
      `aggregate '${aggregate}' keeps each push of a step; there is room for ${Math.max(0, collected)} of this model's, and ${needed} are needed: use aggregate mean, a smaller step, or more shards`,
    );
  }
  return { velocities, collected, sent: Math.max(0, sent) };
}

/** For vectors beside those that every run has. */
function bytesLeft(config: VectorConfig, { size, trainableSize, exchangedSize }: Layout): number {
  const others =
    regionBytes(4 * size) +
    rulesBytes(config, trainableSize) +
    outerBytes(config, trainableSize) +
    averageBytes(config.averaging, exchangedSize) +
    // The payload, and room for a few pushes and answers.
    (1 + 2 * ROOMS_FEW) * regionBytes(4 * exchangedSize);
  return MEMORY_BYTES_MAX - others;
}

/**
 * For so many velocities of workers there is room, the same on all shards of a run.
 * @param layout of the whole model.
 */
export function velocityCount(config: VectorConfig, layout: Layout): number {
  const { correction } = config.consistency;
  const isUsed = correction === 'auto' || correction === 'lookahead';
  // With local steps momentum stays on the workers.
  if (!isUsed || localOf(config) || collects(config.consistency)) return 0;
  if (!hasMomentum(config)) return 0;
  const bytes = Math.min(LIMITS.velocityBytesMax, bytesLeft(config, layout));
  const count = Math.floor(bytes / regionBytes(4 * layout.trainableSize));
  // One for all would be no other than the common one.
  return count < 2 ? 0 : Math.min(LIMITS.velocityCountMax, count);
}

/** Which of the vectors that have numbers are in use. */
export interface VectorsInUse {
  /** Slots of velocities of workers; absent: none. */
  readonly velocities?: number[];
  /** Pushes that wait for their update; absent: none. */
  readonly collected?: number;
  /** Slots of workers' running means of squares; absent: none. */
  readonly squares?: number[];
}

/** The `vectors` of a run that is not here: their names and elements. @param state says which of them are in use. */
export function vectorSizes(
  config: VectorConfig,
  { size, trainableSize, exchangedSize }: Layout,
  { velocities = [], collected = 0, squares = [] }: VectorsInUse,
): Map<string, number> {
  const { averaging, consistency } = config;
  const sizes = new Map([[VECTOR, size]]);
  for (const symbol of stateSymbols(config)) {
    sizes.set(stateName('optimizer', symbol), trainableSize);
  }
  for (const symbol of outerSymbols(config)) sizes.set(stateName('outer', symbol), trainableSize);
  for (const slot of velocities) sizes.set(stateName('velocity', String(slot)), trainableSize);
  for (const symbol of averageSymbols(averaging)) {
    sizes.set(stateName('average', symbol), exchangedSize);
  }
  for (let i = 0; i < placesUsed(consistency.aggregate ?? 'mean', collected); i++) {
    sizes.set(stateName('collected', String(i)), exchangedSize);
  }
  for (const slot of squares) sizes.set(stateName('squares', String(slot)), trainableSize);
  return sizes;
}

/** Limits of a push's payload: what a room holds, any dense encoding, and what the largest of the encodings takes. */
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

/** Which tensor of a vector is not finite, for a message; null: all are. @param values shape [layout.size]. */
export function notFiniteIn({ tensors }: Layout, values: Float32Array): string | null {
  if (Number.isFinite(normAndFinite(values))) return null;
  const at = values.findIndex((value) => !Number.isFinite(value));
  const { name } = tensors.find(({ offset, size }) => at >= offset && at < offset + size)!;
  return `hold ${values[at]} in tensor '${name}'`;
}

/** Makes a private copy. */
export type CopyVector = (values: Float32Array) => Float32Array;
export const slice: CopyVector = (values) => values.slice();

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
