import { permutation, type Random, random, STREAMS } from '../shared/random.ts';
import { type Tensor, tf } from './tf.ts';

/** Seeded randomness of a model: its fresh parameters, its dropout and other noise. */

const { random: systemRandom } = Math;
let seeded = 0;
let drawn = 0;

/** How often seeded code has called `Math.random` in this process. */
export const seededDraws = (): number => drawn;

/**
 * Runs `f` with a seeded `Math.random`. All of tfjs's randomness comes from there unless it is given
 * a seed: initialisers, dropout (which with a fixed seed would repeat one mask for ever), Gaussian
 * noise, which takes none. So every layer of every model is reproducible without knowing it.
 */
export function withSeed<T>(seed: number, f: () => T, stream: number = STREAMS.minibatch): T {
  const release = seedRandom(seed, stream);
  try {
    return f();
  } finally {
    release();
  }
}

/** @returns what undoes it. */
export function seedRandom(seed: number, stream: number): () => void {
  const previous = Math.random;
  const draw = random(seed, stream);
  seeded++;
  // tfjs takes a seed of 0 for none.
  Math.random = () => {
    drawn++;
    return draw.uniform() || 2 ** -33;
  };
  return () => {
    seeded--;
    Math.random = seeded === 0 ? systemRandom : previous;
  };
}

/** What one layer draws in one step. Without a seed of its own, one is drawn from `Math.random`. */
export type NoiseRequest =
  | {
      readonly kind: 'dropout';
      readonly shape: readonly number[];
      readonly rate: number;
      readonly seed: number | undefined;
    }
  /** Standard normal numbers; uniform ones from 0, below 1; 0 … n − 1 in random order, shape [n]. */
  | {
      readonly kind: 'normal' | 'uniform' | 'permutation';
      readonly shape: readonly number[];
      readonly seed?: undefined;
    }
  /** Whole numbers from 0, below `bound`. */
  | {
      readonly kind: 'integers';
      readonly shape: readonly number[];
      readonly bound: number;
      readonly seed?: undefined;
    };

/** Where layers take their noise from: a recorded step is fed it. */
export type NoiseSource = (request: NoiseRequest) => Tensor;

/** Draws it as a tensor. */
export const drawNoise: NoiseSource = (request) => noiseTensor(noiseValues(request), request);

/** @param values of `noiseValues` */
export const noiseTensor = (values: Float32Array | Int32Array, { shape }: NoiseRequest): Tensor =>
  tf.tensor(values, [...shape], values instanceof Int32Array ? 'int32' : 'float32');

/** Draws it: exactly one number of `Math.random` for a request without a seed. */
export function noiseValues(request: NoiseRequest): Float32Array | Int32Array {
  if (request.kind === 'dropout') return dropoutMask(request);
  const seed = Math.floor(Math.random() * 2 ** 32);
  const size = request.shape.reduce((product, d) => product * d, 1);
  if (request.kind === 'permutation') return permutation(seed, STREAMS.minibatch, size);
  const draw = random(seed, STREAMS.minibatch);
  if (request.kind === 'integers') {
    return Int32Array.from({ length: size }, () => draw.below(request.bound));
  }
  const values = new Float32Array(size);
  const isNormal = request.kind === 'normal';
  for (let i = 0; i < size; i++) values[i] = isNormal ? draw.normal() : uniform24(draw);
  return values;
}

/** 24 bits fine: 32 would round to 1 as float32. */
const uniform24 = (draw: Random): number => (draw.bits() >>> 8) / 2 ** 24;

/**
 * What dropout multiplies its input with: 0, or 1 / (1 − rate) with probability 1 − rate. To the bit
 * what `tf.dropout` makes of the same seed, in one loop instead of a draw through six objects an
 * element and three operations: 0.1 ms instead of 1 for the 16,384 elements of the MLP.
 */
export function dropoutMask({
  shape,
  rate,
  seed,
}: Omit<NoiseRequest & { kind: 'dropout' }, 'kind'>): Float32Array {
  const values = new Float32Array(shape.reduce((product, d) => product * d, 1));
  const keep = Math.fround(1 - rate);
  const kept = Math.fround(1 / keep);
  // Alea (Johannes Baagøe 2010): a lagged Fibonacci generator, multiplied with carry.
  let [s0, s1, s2] = aleaState(String(seed ?? Math.random()));
  let carry = 1;
  for (let i = 0; i < values.length; i++) {
    const t = 2091639 * s0 + carry * 2 ** -32;
    carry = t | 0;
    s0 = s1;
    s1 = s2;
    s2 = t - carry;
    // Rounded as the sum of two f32 is; just below 1 that can give 2.
    const sum = Math.fround(Math.fround(s2) + keep);
    if (sum >= 1) values[i] = sum >= 2 ? 2 / keep : kept;
  }
  return values;
}

/** Alea's three numbers for a seed, each in [0, 1), by Baagøe's hash `Mash`. */
function aleaState(seed: string): [number, number, number] {
  let n = 0xefc8249d;
  const mash = (text: string): number => {
    for (let i = 0; i < text.length; i++) {
      n += text.charCodeAt(i);
      let h = 0.02519603282416938 * n;
      n = h >>> 0;
      h -= n;
      h *= n;
      n = h >>> 0;
      n += (h - n) * 2 ** 32;
    }
    return (n >>> 0) * 2 ** -32;
  };
  const state: [number, number, number] = [mash(' '), mash(' '), mash(' ')];
  for (let i = 0; i < 3; i++) {
    state[i]! -= mash(seed);
    if (state[i]! < 0) state[i]! += 1;
  }
  return state;
}
