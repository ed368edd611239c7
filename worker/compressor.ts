import { bytesOf } from '../shared/codec.ts';
import {
  decodeGradient,
  type Encoding,
  encodeBf16,
  encodedBytes,
  encodeInt8,
  encodeTopk,
} from '../shared/compression.ts';
import type { PushCompression, RunConfig } from '../shared/config.ts';
import type { Layout } from '../shared/layout.ts';
import type { Acknowledgement } from '../shared/protocol.ts';

/**
 * Writes gradients as the run wants them. `int8` and `topk` keep what they leave out and send it
 * later (error feedback: Seide et al. 2014; Karimireddy et al. 2019, arXiv:1901.09847), so that no
 * part of a gradient is lost, only late. What a rejected push took from there is put back: its
 * minibatch is computed again by somebody, and only that is.
 */
export interface Compressor {
  readonly encoding: Encoding;
  /** Bytes of the next payload. @param epoch of its minibatch: the density warms up by epochs. */
  payloadBytes(epoch: number): number;
  /**
   * Writes a payload.
   * @param gradient and statistics, shape [exchangedSize]; kept until the push is settled.
   * @param out exactly `payloadBytes` long, at a multiple of 4; not written to until then.
   * @returns to be called with what became of the push, before `out` is used again.
   */
  write(gradient: Float32Array, epoch: number, out: Uint8Array): Settle;
  /** The parameters are others now: what earlier gradients left behind belongs to them no more. */
  reset(): void;
}

export type Settle = (outcome: Acknowledgement['outcome']) => void;

type Sizes = Pick<Layout, 'trainableSize' | 'statisticsSize'>;

export function createCompressor(config: RunConfig['compression'], layout: Sizes): Compressor {
  const { push } = config;
  const { trainableSize: n, statisticsSize } = layout;
  const rule = createRule(push, n);
  const gradientBytes = (epoch: number) => encodedBytes(push.kind, n, rule.count(epoch));
  return {
    encoding: push.kind,
    payloadBytes: (epoch) => gradientBytes(epoch) + 4 * statisticsSize,
    write(gradient, epoch, out) {
      const bytes = gradientBytes(epoch);
      out.set(bytesOf(gradient.subarray(n)), bytes);
      return rule.encode(gradient.subarray(0, n), rule.count(epoch), out.subarray(0, bytes));
    },
    reset: rule.reset,
  };
}

interface Rule {
  /** k of `topk`. */
  count(epoch: number): number;
  encode(gradient: Float32Array, k: number, out: Uint8Array): Settle;
  reset(): void;
}

const nothingKept: Settle = () => {};

function createRule(push: PushCompression, n: number): Rule {
  const whole = (encode: (gradient: Float32Array, out: Uint8Array) => void): Rule => ({
    count: () => n,
    encode: (gradient, _, out) => {
      encode(gradient, out);
      return nothingKept;
    },
    reset: () => {},
  });
  switch (push.kind) {
    case 'f32':
      return whole((gradient, out) => out.set(bytesOf(gradient)));
    case 'bf16':
      // Off by a 256th at most, and rounding is not biased: no feedback is needed.
      return whole(encodeBf16);
    case 'int8':
      return int8(n);
    case 'topk':
      return topk(push, n);
  }
}

function int8(n: number): Rule {
  const residual = new Float32Array(n);
  const sent = new Float32Array(n);
  let generation = 0;
  return {
    count: () => n,
    encode(gradient, _, out) {
      encodeInt8(gradient, residual, out);
      const of = generation;
      return (outcome) => {
        if (outcome !== 'rejected' || of !== generation) return;
        decodeGradient('int8', out, sent);
        for (let i = 0; i < n; i++) {
          // Of a block that was not finite nothing was taken.
          if (!Number.isNaN(sent[i]!)) residual[i]! += sent[i]! - gradient[i]!;
        }
      };
    },
    reset() {
      generation++;
      residual.fill(0);
    },
  };
}

/**
 * Deep Gradient Compression (Lin et al. 2018, arXiv:1712.01887): velocity u ← α u + g and
 * accumulation v ← v + u stay on the worker; the k largest of v are sent, and there both begin anew
 * (momentum factor masking). With α = 0, v is plain error feedback.
 */
function topk(push: Extract<PushCompression, { kind: 'topk' }>, n: number): Rule {
  const { density, warmupEpochs, momentum: alpha } = push;
  const v = new Float32Array(n);
  const u = alpha > 0 ? new Float32Array(n) : null;
  const sent = new Float32Array(n);
  let generation = 0;
  return {
    count: (epoch) => Math.min(n, Math.max(1, Math.round(n * densityAt(epoch)))),
    encode(gradient, k, out) {
      // What is not finite must reach the server's eyes, and nothing of it stay here.
      if (!allFinite(gradient)) return nothingFinite(k, out);
      for (let i = 0; i < n; i++) {
        let change = gradient[i]!;
        if (u) change = u[i] = alpha * u[i]! + change;
        v[i]! += change;
      }
      if (!allFinite(v)) {
        reset();
        return nothingFinite(k, out);
      }
      encodeTopk(v, k, out);
      const indices = new Uint32Array(out.buffer, out.byteOffset + 4, k);
      for (let j = 0; j < k; j++) {
        const i = indices[j]!;
        v[i] = 0;
        if (u) u[i] = 0;
      }
      const of = generation;
      return (outcome) => {
        if (outcome !== 'rejected' || of !== generation) return;
        decodeGradient('topk', out, sent);
        for (let i = 0; i < n; i++) {
          v[i]! += sent[i]! - gradient[i]!;
          // Where it was sent, the velocity has begun anew since.
          if (u && sent[i] === 0) u[i]! -= gradient[i]!;
        }
      };
    },
    reset,
  };

  function reset(): void {
    generation++;
    v.fill(0);
    u?.fill(0);
  }

  /** From a quarter down to `density`, by the same factor each epoch. */
  function densityAt(epoch: number): number {
    if (epoch >= warmupEpochs || density >= 0.25) return density;
    return 0.25 * (density / 0.25) ** (epoch / warmupEpochs);
  }
}

function allFinite(values: Float32Array): boolean {
  let sum = 0;
  for (let i = 0; i < values.length; i++) sum += values[i]! - values[i]!;
  return sum === 0;
}

function nothingFinite(k: number, out: Uint8Array): Settle {
  const header = new Uint32Array(out.buffer, out.byteOffset, 1 + k);
  header[0] = k;
  for (let j = 0; j < k; j++) header[1 + j] = j;
  new Float32Array(out.buffer, out.byteOffset + 4 * (1 + k), k).fill(Number.NaN);
  return nothingKept;
}
