import { BLOCK } from '../../shared/compression.ts';
import type { Layout } from '../../shared/layout.ts';
import type { Memory } from '../../shared/memory.ts';
import type { Range } from '../../shared/partition.ts';
import type { Staged } from './fused.ts';
import type { Decoding, Kernels } from './kernels.ts';

/** The places of a run's memory: where pushes land, and where the run's vector is or is made next. */

/** Where the payload of a push is read into; used again for the next push. */
export class LandingRoom {
  readonly #came: (scan: GradientScan, bytes: number) => void;
  readonly #left: (room: LandingRoom) => void;
  bytes: Uint8Array = new Uint8Array();
  /** Null: the run's vector is there now. */
  place: VectorPlace | null = null;
  /** Null: nothing is known of the gradient before all of it is there. */
  scan: GradientScan | null = null;

  constructor(
    came: (scan: GradientScan, bytes: number) => void,
    left: (room: LandingRoom) => void,
  ) {
    this.#came = came;
    this.#left = left;
  }

  /** @param bytes of the payload that are there. */
  came(bytes: number): void {
    if (this.scan) this.#came(this.scan, bytes);
  }

  release(): void {
    this.#left(this);
  }
}

/** A push's payload in the run's memory. */
export interface StagedPush {
  readonly scan: GradientScan;
  /** Statistics of the minibatch, shape [statisticsSize]. */
  readonly statistics: Float32Array;
  /** Where the payload lies; null: not where it came in. */
  readonly room: LandingRoom | null;
  /** Elements of the run's vector that its gradient is of: all trainable ones, or a fragment. */
  readonly part: Range;
}

/** The run's vector, or where the next one is made. */
export interface VectorPlace {
  readonly address: number;
  /** Shape [layout.size]: trainable, statistics, frozen. */
  readonly values: Float32Array;
  readonly statistics: Float32Array;
  /** Bytes of trainable and statistics. */
  readonly bytes: Uint8Array;
  /** The last payload that landed there. */
  payload: Uint8Array;
}

/** @param size elements, without frozen ones where it is only for payloads. */
export function vectorAt(
  memory: Memory,
  address: number,
  { trainableSize, exchangedSize }: Layout,
  size: number,
): VectorPlace {
  const values = memory.floats(address, size);
  const statistics = values.subarray(trainableSize, exchangedSize);
  const bytes = memory.bytes(address, 4 * exchangedSize);
  return { address, values, statistics, bytes, payload: bytes };
}

/** How far a gradient has been looked at. */
export class GradientScan {
  readonly gradient: Staged;
  /** So many elements at its beginning were. */
  #elements = 0;
  /** Sum of their squares, as they were added up in f32. */
  sum = 0;

  constructor(gradient: Staged) {
    this.gradient = gradient;
  }

  /** @param end a multiple of the kernels' blocks, or all of them. */
  go(kernels: Kernels, end: number): void {
    const { decoding, address, scales } = this.gradient;
    if (end <= this.#elements) return;
    this.sum = kernels[`squares_${decoding}`](address, scales, this.#elements, end, this.sum);
    this.#elements = end;
  }
}

export const BYTES: Readonly<Record<Decoding, number>> = { f32: 4, bf16: 2, int8: 1 };

/** The scales of a gradient in int8 come first. */
export const scaleBytes = (decoding: Decoding, n: number) =>
  decoding === 'int8' ? 4 * Math.ceil(n / BLOCK) : 0;

export function gradientAt(decoding: Decoding, address: number, n: number): Staged {
  return { decoding, address: address + scaleBytes(decoding, n), scales: address };
}

/**
 * A gradient as the kernels take it: they look for element i of the vector at i, and it has those from `start` on.
 * @param start a multiple of `BLOCK`. What would lie before it is never looked at.
 */
export function placedAt(gradient: Staged, start: number): Staged {
  if (start === 0) return gradient;
  const { decoding, address, scales } = gradient;
  return {
    decoding,
    address: address - BYTES[decoding] * start,
    scales: decoding === 'int8' ? scales - 4 * (start / BLOCK) : scales,
  };
}
