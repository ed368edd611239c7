import { bytesOf } from '../shared/codec.ts';
import { decodeGradient, type Encoding, encodedBytes } from '../shared/compression.ts';
import { createCompressionKernels } from '../shared/compression-kernels.ts';
import { type PushCompression, type RunConfig, residualDecayOf } from '../shared/config.ts';
import { type FragmentPiece, fragmentPieces, WHOLE } from '../shared/fragments.ts';
import type { Layout } from '../shared/layout.ts';
import { Memory, regionBytes } from '../shared/memory.ts';
import type { Range } from '../shared/partition.ts';
import type { Acknowledgement } from '../shared/protocol.ts';
import type { Landing } from '../wire/connection.ts';

/**
 * Writes gradients as the run wants them. `int8` and `topk` keep what they leave out and send it
 * later (error feedback: Seide et al. 2014; Karimireddy et al. 2019, arXiv:1901.09847), so that no
 * part of a gradient is lost, only late. What a rejected push took from there is put back: its
 * minibatch is computed again by somebody, and only that is.
 */
export interface Compressor {
  readonly encoding: Encoding;
  /**
   * Bytes of the next payload, by parts.
   * @param epoch of its minibatch: the density warms up by epochs. @param fragment that it is to hold; absent: all.
   */
  payloadBytes(epoch: number, fragment?: number): readonly number[];
  /** The gradient's own memory, where that is the one payload as it stands; else null, and `write` makes it. */
  asItStands(gradient: Float32Array): Uint8Array | null;
  /**
   * Writes a payload.
   * @param gradient and statistics, shape [exchangedSize]; kept until the push is settled.
   * @param outs exactly `payloadBytes` long, at multiples of 4; not written to until then. @param fragment as there.
   * @returns to be called with what became of the push, before `outs` are used again.
   */
  write(
    gradient: Float32Array,
    epoch: number,
    outs: readonly Uint8Array[],
    fragment?: number,
  ): Settle;
  /** The parameters are others now: what earlier gradients left behind belongs to them no more. */
  reset(): void;
}

export type Settle = (outcome: Acknowledgement['outcome']) => void;

type VectorSizes = Pick<Layout, 'trainableSize' | 'exchangedSize'>;

/**
 * @param ranges of the shards that get the parts; absent: one gets all.
 * @param fragments that pushes may hold instead of all parameters.
 */
export function createCompressor(
  config: RunConfig['compression'],
  layout: VectorSizes,
  ranges: readonly Range[] = [{ start: 0, end: layout.exchangedSize }],
  fragments = 1,
): Compressor {
  // By fragments, with `undefined` for all: each keeps what it leaves out.
  const made = new Map<number | undefined, readonly ReturnType<typeof createPart>[]>();
  const partsOf = (index: number | undefined) => {
    let parts = made.get(index);
    if (!parts) {
      const fragment = index === undefined ? WHOLE : { index, count: fragments };
      const pieces = fragmentPieces(layout, ranges, fragment);
      parts = pieces.map((piece) => createPart(config.push, piece));
      made.set(index, parts);
    }
    return parts;
  };
  return {
    encoding: config.push.kind,
    payloadBytes: (epoch, fragment) => partsOf(fragment).map((part) => part.bytes(epoch)),
    asItStands: (gradient) =>
      config.push.kind === 'f32' && ranges.length === 1 ? bytesOf(gradient) : null,
    write(gradient, epoch, outs, fragment) {
      const settles = partsOf(fragment).map((part, k) => part.write(gradient, epoch, outs[k]!));
      if (settles.length === 1) return settles[0]!;
      return (outcome) => {
        for (const settle of settles) settle(outcome);
      };
    },
    reset() {
      for (const parts of made.values()) for (const part of parts) part.reset();
    },
  };
}

/** Encodes what of a gradient lies in one piece, and keeps what that leaves out. */
function createPart(push: PushCompression, { gradient: part, statistics }: FragmentPiece) {
  const n = part.end - part.start;
  const rule = n === 0 ? nothingToSend : createRule(push, n);
  const gradientBytes = (epoch: number) => encodedBytes(push.kind, n, rule.count(epoch));
  return {
    bytes: (epoch: number) => gradientBytes(epoch) + 4 * (statistics.end - statistics.start),
    write(gradient: Float32Array, epoch: number, out: Uint8Array): Settle {
      const bytes = gradientBytes(epoch);
      out.set(bytesOf(gradient.subarray(statistics.start, statistics.end)), bytes);
      return rule.encode(
        gradient.subarray(part.start, part.end),
        rule.count(epoch),
        out.subarray(0, bytes),
      );
    },
    reset: rule.reset,
  };
}

interface CompressionRule {
  /** k of `topk`. */
  count(epoch: number): number;
  encode(gradient: Float32Array, k: number, out: Uint8Array): Settle;
  reset(): void;
}

const nothingKept: Settle = () => {};
const nothing = () => {};

/** What a range without trainable elements sends: no bytes, or a count of none. */
const nothingToSend: CompressionRule = {
  count: () => 0,
  encode(_, __, out) {
    out.fill(0);
    return nothingKept;
  },
  reset: nothing,
};

function createRule(push: PushCompression, n: number): CompressionRule {
  switch (push.kind) {
    case 'f32':
      return {
        count: () => n,
        encode(gradient, _, out) {
          out.set(bytesOf(gradient));
          return nothingKept;
        },
        reset: nothing,
      };
    case 'bf16':
      return bf16(n);
    case 'int8':
      return int8(n, residualDecayOf(push));
    case 'topk':
      return topk(push, n);
  }
}

/** Vectors and buffers in one memory, with the kernels that work on them. */
function createRoom(vectors: number, n: number, outBytes: number, extraBytes = 0) {
  const bytes = vectors * regionBytes(4 * n) + regionBytes(outBytes) + regionBytes(extraBytes);
  const memory = new Memory(bytes);
  const vector = () => {
    const address = memory.take(4 * n);
    return { address, values: memory.floats(address, n) };
  };
  return { memory, kernels: createCompressionKernels(memory.memory), vector };
}

/** Off by a 256th at most, and rounding is not biased: no feedback is needed. */
function bf16(n: number): CompressionRule {
  const { memory, kernels, vector } = createRoom(1, n, 2 * n);
  const g = vector();
  const encoded = memory.take(2 * n);
  return {
    count: () => n,
    encode(gradient, _, out) {
      g.values.set(gradient);
      kernels.encode_bf16(g.address, n, encoded);
      out.fill(0, 2 * n);
      out.set(memory.bytes(encoded, 2 * n));
      return nothingKept;
    },
    reset: nothing,
  };
}

/** @param decay of the residual. */
function int8(n: number, decay: number): CompressionRule {
  const outBytes = encodedBytes('int8', n);
  const { memory, kernels, vector } = createRoom(2, n, outBytes);
  const g = vector();
  const residual = vector();
  const encoded = memory.take(outBytes);
  const fading = createFading(residual.values, decay);
  let generation = 0;
  return {
    count: () => n,
    encode(gradient, _, out) {
      const turn = fading.next();
      g.values.set(gradient);
      kernels.encode_int8(g.address, residual.address, n, encoded);
      out.set(memory.bytes(encoded, outBytes));
      const of = generation;
      return (outcome) => {
        if (outcome !== 'rejected' || of !== generation) return;
        const sent = new Float32Array(n);
        decodeGradient('int8', out, sent);
        const weight = fading.weight(turn);
        for (let i = 0; i < n; i++) {
          // Nothing was taken of a block that was not finite.
          if (!Number.isNaN(sent[i]!)) residual.values[i]! += weight * (sent[i]! - gradient[i]!);
        }
        fading.undo(turn);
      };
    },
    reset() {
      generation++;
      residual.values.fill(0);
    },
  };
}

/** A residual that fades by a factor before each push, e ← β e. */
function createFading(residual: Float32Array, decay: number) {
  let turns = 0;
  const scale = (factor: number) => {
    for (let i = 0; i < residual.length; i++) residual[i]! *= factor;
  };
  return {
    /** @returns the number of this push. */
    next(): number {
      if (decay < 1) scale(decay);
      return ++turns;
    },
    /** How much of what a push left has not faded yet. */
    weight: (turn: number): number => decay ** (turns - turn),
    /** A push that was rejected makes nothing fade, unless others have followed it. */
    undo(turn: number): void {
      if (decay < 1 && turn === turns) scale(1 / decay);
    },
  };
}

/** The kernel counts sizes by 16 of their bits. */
const COUNT_BYTES = 4 * 2 ** 16;

/**
 * Deep Gradient Compression (Lin et al. 2018, arXiv:1712.01887): velocity u ← α u + g and
 * accumulation v ← v + u stay on the worker; the k largest of v are sent, and there both begin anew
 * (momentum factor masking). With α = 0, v is plain error feedback; with v ← β v + g that of SparseLoCo (Sarfi et al. 2025,
 * arXiv:2508.15706).
 */
function topk(push: Extract<PushCompression, { kind: 'topk' }>, n: number): CompressionRule {
  const { density, warmupEpochs, momentum: alpha } = push;
  const decay = residualDecayOf(push);
  const outBytes = encodedBytes('topk', n, countAt(0));
  const { memory, kernels, vector } = createRoom(3, n, outBytes, COUNT_BYTES);
  const g = vector();
  const v = vector();
  const u = alpha > 0 ? vector() : null;
  const encoded = memory.take(outBytes);
  const counts = memory.take(COUNT_BYTES);
  const fading = createFading(v.values, decay);
  let generation = 0;
  return {
    count: countAt,
    encode(gradient, k, out) {
      g.values.set(gradient);
      // What is not finite must reach the server's eyes, and nothing of it stay here.
      if (!kernels.all_finite(g.address, n)) return nothingFinite(k, out);
      const turn = fading.next();
      kernels.accumulate(g.address, u?.address ?? 0, v.address, n, alpha);
      if (!kernels.all_finite(v.address, n)) {
        reset();
        return nothingFinite(k, out);
      }
      kernels.encode_topk(v.address, u?.address ?? 0, n, k, counts, encoded);
      out.set(memory.bytes(encoded, out.length));
      const of = generation;
      return (outcome) => {
        if (outcome !== 'rejected' || of !== generation) return;
        const sent = new Float32Array(n);
        decodeGradient('topk', out, sent);
        const weight = fading.weight(turn);
        for (let i = 0; i < n; i++) {
          v.values[i]! += weight * (sent[i]! - gradient[i]!);
          // Where it was sent, the velocity has begun anew since.
          if (u && sent[i] === 0) u.values[i]! -= gradient[i]!;
        }
        fading.undo(turn);
      };
    },
    reset,
  };

  function reset(): void {
    generation++;
    v.values.fill(0);
    u?.values.fill(0);
  }

  /** From a quarter of the elements down to `density`, by the same factor each epoch. */
  function countAt(epoch: number): number {
    const falling = epoch < warmupEpochs && density < 0.25;
    const share = falling ? 0.25 * (density / 0.25) ** (epoch / warmupEpochs) : density;
    return Math.min(n, Math.max(1, Math.round(n * share)));
  }
}

function nothingFinite(k: number, out: Uint8Array): Settle {
  const header = new Uint32Array(out.buffer, out.byteOffset, 1 + k);
  header[0] = k;
  for (let j = 0; j < k; j++) header[1 + j] = j;
  new Float32Array(out.buffer, out.byteOffset + 4 * (1 + k), k).fill(Number.NaN);
  return nothingKept;
}

/** Parameters in bf16 as f32 again. */
export interface Decoder {
  /** Where a payload can be received so that it need not be copied; null: taken, or too small. */
  land(byteLength: number): Landing | null;
  /**
   * Decodes into memory of the decoder, which is the caller's until `release`.
   * @returns null: all of it is in use; `decode` it.
   */
  take(bytes: Uint8Array): { readonly values: Float32Array; release(): void } | null;
  /** @param out as many elements as `bytes` has numbers, or fewer. */
  decode(bytes: Uint8Array, out: Float32Array): void;
}

/** Vectors in use at once: one is decoded, one is read from, one is on the device. */
const DECODED = 3;

/** Keeps memory for the largest payload seen. */
export function createDecoder(): Decoder {
  let room = open(0);
  function open(n: number) {
    const bytes = regionBytes(2 * n) + DECODED * regionBytes(4 * n);
    const memory = new Memory(bytes);
    return {
      n,
      memory,
      kernels: createCompressionKernels(memory.memory),
      from: memory.take(2 * n),
      landed: false,
      free: Array.from({ length: DECODED }, () => memory.take(4 * n)),
    };
  }
  /** Where the bytes are in the room: there already, or copied. */
  function place(bytes: Uint8Array): void {
    const { memory, from } = room;
    if (bytes.buffer === memory.memory.buffer && bytes.byteOffset === from) return;
    memory.bytes(from, bytes.length).set(bytes);
  }
  return {
    land(byteLength) {
      const mine = room;
      if (mine.landed || 2 * mine.n < byteLength) return null;
      mine.landed = true;
      return {
        bytes: mine.memory.bytes(mine.from, byteLength),
        release: () => {
          mine.landed = false;
        },
      };
    },
    take(bytes) {
      const n = bytes.length / 2;
      if (room.n < n) room = open(n);
      const mine = room;
      const to = mine.free.pop();
      if (to === undefined) return null;
      place(bytes);
      mine.kernels.decode_bf16(mine.from, n, to);
      return {
        values: mine.memory.floats(to, n),
        release: () => {
          mine.free.push(to);
        },
      };
    },
    decode(bytes, out) {
      const n = Math.min(out.length, bytes.length / 2);
      if (n === 0) return;
      if (room.n < n || room.free.length === 0) room = open(n);
      const [to] = room.free;
      place(bytes.subarray(0, 2 * n));
      room.kernels.decode_bf16(room.from, n, to!);
      out.set(room.memory.floats(to!, n));
    },
  };
}
