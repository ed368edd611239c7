import { type Fragment, fragmentOf } from '../../shared/fragments.ts';
import type { Layout } from '../../shared/layout.ts';

/**
 * Parameters as they were at one step, encoded once and sent to all who ask. Memory is used again
 * when nobody holds a snapshot and there is a newer one: fresh pages cost more than the copy.
 */
export class Snapshot {
  readonly bytes: Uint8Array;
  readonly encoding: 'f32' | 'bf16';
  /** It lies in the memory of its run, and takes no other. */
  readonly lent: boolean;
  readonly #recycle: ((bytes: Uint8Array) => void) | null;
  #holders = 1;

  /** Held once, by whoever makes it. @param recycle gets the memory; null: it is the garbage's. */
  constructor(
    bytes: Uint8Array,
    encoding: 'f32' | 'bf16',
    recycle: ((bytes: Uint8Array) => void) | null = null,
    lent = false,
  ) {
    this.lent = lent;
    this.bytes = bytes;
    this.encoding = encoding;
    this.#recycle = recycle;
  }

  /** Its bytes stay as they are until `release`. */
  hold(): void {
    this.#holders++;
  }

  release(): void {
    if (--this.#holders === 0) this.#recycle?.(this.bytes);
  }
}

/** Buffers of one size that wait to be used again. */
const IDLE_MAX = 4;

export class SnapshotPool {
  readonly #idle = new Map<number, Uint8Array[]>();

  /** @param fill writes all of the bytes. */
  make(byteLength: number, encoding: 'f32' | 'bf16', fill: (bytes: Uint8Array) => void): Snapshot {
    const idle = this.#idle.get(byteLength) ?? [];
    this.#idle.set(byteLength, idle);
    const bytes = idle.pop() ?? new Uint8Array(byteLength);
    fill(bytes);
    return new Snapshot(bytes, encoding, (freed) => {
      if (idle.length < IDLE_MAX) idle.push(freed);
    });
  }
}

/**
 * What of a snapshot is sent where a fragment is enough: the fragment and the statistics, filled up to a multiple of 4 bytes.
 * @param layout that of the snapshot, a shard's or of all.
 */
export function fragmentBytes(
  { bytes, encoding }: Pick<Snapshot, 'bytes' | 'encoding'>,
  { trainableSize, exchangedSize }: Pick<Layout, 'trainableSize' | 'exchangedSize'>,
  fragment: Fragment,
): Uint8Array[] {
  const width = encoding === 'f32' ? 4 : 2;
  const { start, end } = fragmentOf(trainableSize, fragment);
  const parts = [
    bytes.subarray(width * start, width * end),
    bytes.subarray(width * trainableSize, width * exchangedSize),
  ];
  const length = parts.reduce((sum, part) => sum + part.length, 0);
  return length % 4 === 0 ? parts : [...parts, FILL];
}

/** Two bytes, the most that are missing: an element has two or four. */
const FILL = new Uint8Array(2);
