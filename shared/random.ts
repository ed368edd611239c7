/**
 * Seeded randomness in pure 32-bit integer arithmetic, so that every machine and every language
 * draws the same numbers. Streams keep the draws of one purpose apart from those of another.
 */

/** What a stream of a run's seed is for. One number per purpose: draws never overlap. */
export const STREAMS = {
  parameters: 1,
  split: 2,
  minibatch: 3,
  bootstrap: 4,
  test: 5,
  batch: 6,
  carried: 7,
  rows: 8,
  /** Plus the epoch: the order of the examples in that epoch. */
  epoch: 0x1000_0000,
} as const;

/** Mixes two 32-bit numbers into one (the finaliser of MurmurHash3, applied twice). */
export function mix(a: number, b: number): number {
  let h = (a ^ Math.imul(b, 0x9e3779b1)) >>> 0;
  h = Math.imul(h ^ (h >>> 16), 0x85ebca6b);
  h = Math.imul(h ^ (h >>> 13), 0xc2b2ae35);
  h = (h ^ (h >>> 16)) >>> 0;
  h = Math.imul(h ^ (h >>> 15), 0x2c1b3c6d);
  h = Math.imul(h ^ (h >>> 12), 0x297a2d39);
  return (h ^ (h >>> 15)) >>> 0;
}

/** A generator of one stream. */
export interface Random {
  /** A uniform integer in [0, 2³²). */
  bits(): number;
  /** A uniform number in [0, 1), 32 bits fine. */
  uniform(): number;
  /** A uniform integer in [0, bound), without the bias of a remainder. `bound` in [1, 2³²]. */
  below(bound: number): number;
  /** A standard normal number (Box–Muller). */
  normal(): number;
}

/**
 * The generator of `stream` of `seed`: xoshiro128** (Blackman and Vigna 2018, arXiv:1805.01407).
 * @param seed any integer; @param stream see `STREAMS`.
 */
export function random(seed: number, stream: number): Random {
  const base = mix(seed >>> 0, mix(Math.floor(seed / 2 ** 32) >>> 0, stream >>> 0));
  let s0 = mix(base, 1);
  let s1 = mix(base, 2);
  let s2 = mix(base, 3);
  let s3 = mix(base, 4) | 1;
  const bits = (): number => {
    const product = Math.imul(s1, 5);
    const result = Math.imul((product << 7) | (product >>> 25), 9) >>> 0;
    const t = s1 << 9;
    s2 ^= s0;
    s3 ^= s1;
    s1 ^= s2;
    s0 ^= s3;
    s2 ^= t;
    s3 = (s3 << 11) | (s3 >>> 21);
    return result;
  };
  const uniform = (): number => bits() / 2 ** 32;
  return {
    bits,
    uniform,
    below(bound) {
      const limit = 2 ** 32 - (2 ** 32 % bound);
      let draw = bits();
      while (draw >= limit) draw = bits();
      return draw % bound;
    },
    normal() {
      const radius = Math.sqrt(-2 * Math.log(1 - uniform()));
      return radius * Math.cos(2 * Math.PI * uniform());
    },
  };
}

/**
 * A uniformly random order of 0 … n−1 (Fisher–Yates): the same on every machine for the same
 * (seed, stream, n). @returns shape [n].
 */
export function permutation(seed: number, stream: number, n: number): Int32Array {
  const order = new Int32Array(n);
  for (let i = 0; i < n; i++) order[i] = i;
  const draw = random(seed, stream);
  for (let i = n - 1; i > 0; i--) {
    const j = draw.below(i + 1);
    const swap = order[i]!;
    order[i] = order[j]!;
    order[j] = swap;
  }
  return order;
}
