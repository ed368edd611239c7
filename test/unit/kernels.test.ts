import { readFile } from 'node:fs/promises';
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
// @ts-expect-error: a script without types
import * as compiler from '../../scripts/kernels.js';
import { createAverage } from '../../server/core/averaging.ts';
import {
  createFusedOptimizer,
  optimizerBytes,
  type Staged,
  sumOfSquares,
} from '../../server/core/fused.ts';
import { createKernels } from '../../server/core/kernels.ts';
import type { StepOptions } from '../../server/core/step-options.ts';
import { bytesOf } from '../../shared/codec.ts';
import {
  BLOCK,
  decodeGradient,
  decodeTopk,
  encodeBf16,
  encodedBytes,
  encodeInt8,
  encodeTopk,
} from '../../shared/compression.ts';
import { createCompressionKernels } from '../../shared/compression-kernels.ts';
import { Memory, regionBytes } from '../../shared/memory.ts';
import {
  createOptimizer,
  normAndFinite,
  type VelocityUse,
  velocitySymbol,
} from '../../shared/optimizer.ts';
import { type OptimizerConfig, OptimizerSchema } from '../../shared/optimizer-config.ts';
import { random } from '../../shared/random.ts';

/** Sixty updates in float32 against float64; each rounds by 2⁻²⁴. */
const TOLERANCE = 2e-5;

const { compile, binaryPath, LAYERS } = compiler as {
  compile(layer: string): Promise<string>;
  binaryPath(layer: string): string;
  LAYERS: string[];
};

test.each(LAYERS)('the kernels that %s ships are those of its sources', async (layer) => {
  expect(await readFile(binaryPath(layer), 'utf8')).toBe(await compile(layer));
});

const ENCODINGS = ['f32', 'bf16', 'int8'] as const;
type Dense = (typeof ENCODINGS)[number];
const KINDS = OptimizerSchema.anyOf.map((schema) => schema.properties.kind.const);

function configOf(kind: OptimizerConfig['kind']): OptimizerConfig {
  const all = { momentum: 0.9, initialAccumulator: 0.1, epsilon: 1e-6, decay: 0.9 };
  const adam = { beta1: 0.9, beta2: 0.999, epsilon: 1e-8 };
  return { kind, ...(kind === 'adam' || kind === 'adamw' ? adam : all) } as OptimizerConfig;
}

function normal(n: number, seed: number): Float32Array {
  const draw = random(seed, 7);
  return Float32Array.from({ length: n }, () => draw.normal());
}

function encode(values: Float32Array, encoding: Dense): Uint8Array {
  const bytes = new Uint8Array(encodedBytes(encoding, values.length));
  if (encoding === 'f32') bytes.set(bytesOf(values));
  else if (encoding === 'bf16') encodeBf16(values, bytes);
  else encodeInt8(values, null, bytes);
  return bytes;
}

/** A fused optimizer over n parameters, with room for one gradient. */
function setUp(
  config: OptimizerConfig,
  n: number,
  decay: Parameters<typeof createOptimizer>[2],
  velocities = 0,
) {
  const memory = new Memory(2 * regionBytes(8 * n) + optimizerBytes(config, n, velocities));
  const kernels = createKernels(memory.memory);
  const theta = memory.take(4 * n);
  const fused = createFusedOptimizer(
    config,
    n,
    decay ?? [],
    { memory, kernels, theta },
    velocities,
  );
  const room = memory.take(8 * n);
  const stage = (encoding: Dense, bytes: Uint8Array): Staged => {
    memory.bytes(room, bytes.length).set(bytes);
    const scales = encoding === 'int8' ? room : 0;
    const address = encoding === 'int8' ? room + 4 * Math.ceil(n / BLOCK) : room;
    return { decoding: encoding, address, scales };
  };
  return { memory, kernels, parameters: memory.floats(theta, n), fused, stage };
}

function expectClose(seen: Float32Array, wanted: Float32Array, what: string): void {
  for (let i = 0; i < wanted.length; i++) {
    const distance = Math.abs(seen[i]! - wanted[i]!);
    if (!(distance <= TOLERANCE * (1 + Math.abs(wanted[i]!)))) {
      throw new Error(`${what}[${i}] is ${seen[i]}, not ${wanted[i]}`);
    }
  }
}

const lengths = fc.oneof(fc.integer({ min: 1, max: 40 }), fc.integer({ min: 250, max: 1100 }));

describe.each(KINDS)('%s', (kind) => {
  test.each(ENCODINGS)('agrees with its twin, gradients in %s', (encoding) => {
    fc.assert(
      fc.property(
        lengths,
        fc.array(fc.integer({ min: 0, max: 1100 }), { minLength: 2, maxLength: 6 }),
        fc.integer({ min: 0, max: 2 ** 31 }),
        fc.boolean(),
        (n, cuts, seed, clips) => {
          const config = configOf(kind);
          const edges = [...new Set(cuts.map((cut) => cut % (n + 1)))].sort((a, b) => a - b);
          const decay = edges.slice(1).map((end, i) => ({
            ...{ start: edges[i]!, end, rate: i % 2 === 0 ? 0.1 : 0.01 },
            ...(i % 3 === 0 ? {} : { l1: 0.02 * (i % 3) }),
          }));
          const twin = createOptimizer(config, n, decay);
          const { parameters, fused, stage } = setUp(config, n, decay);
          const theta = normal(n, seed);
          parameters.set(theta);
          const decoded = new Float32Array(n);
          const clip = clips ? { limit: 0.7, factor: 0.5 } : { limit: Infinity, factor: 1 };
          for (let step = 1; step <= 6; step++) {
            const bytes = encode(normal(n, seed + step), encoding);
            decodeGradient(encoding, bytes, decoded);
            for (let i = 0; i < n; i++) {
              const cut = Math.max(-clip.limit, Math.min(clip.limit, decoded[i]!));
              decoded[i] = cut * clip.factor;
            }
            const options: StepOptions = {
              ...{ step, learningRate: 0.05 / step },
              ...(step > 3 && { momentum: 0.95 }),
            };
            twin.apply(theta, decoded, options);
            expect(fused.apply(stage(encoding, bytes), clip, options)).toBe(true);
          }
          expectClose(parameters, theta, 'parameters');
          for (const [symbol, slot] of Object.entries(twin.slots)) {
            expectClose(fused.slots[symbol]!, slot, symbol);
          }
          expect(Object.keys(fused.slots)).toEqual(Object.keys(twin.slots));
        },
      ),
      { numRuns: 60 },
    );
  });

  test.each(ENCODINGS)('with look-ahead agrees with its twin, gradients in %s', (encoding) => {
    // Come, stay, share, go, and come back in another's place.
    const uses: readonly VelocityUse[] = [
      { slot: 1, from: 0 },
      { slot: 2, from: -1 },
      { slot: 1 },
      { slot: 2 },
      { slot: 3, from: 2, freed: [1] },
      { slot: 1, from: -1 },
      { slot: 0, from: 3, freed: [1, 2, 3] },
    ];
    fc.assert(
      fc.property(
        lengths,
        fc.integer({ min: 0, max: 2 ** 31 }),
        fc.boolean(),
        (n, seed, decays) => {
          const config = configOf(kind);
          const decay = decays ? [{ start: 0, end: Math.ceil(n / 2), rate: 0.1, l1: 0.01 }] : [];
          const twin = createOptimizer(config, n, decay);
          const { parameters, fused, stage } = setUp(config, n, decay, 3);
          const theta = normal(n, seed);
          parameters.set(theta);
          const decoded = new Float32Array(n);
          const clip = { limit: Infinity, factor: 0.5 };
          for (let step = 1; step <= uses.length + 2; step++) {
            const bytes = encode(normal(n, seed + step), encoding);
            decodeGradient(encoding, bytes, decoded);
            for (let i = 0; i < n; i++) decoded[i] = decoded[i]! * clip.factor;
            const velocity = uses[step - 3];
            const able = velocity && velocitySymbol(kind) !== null;
            const options = { step, learningRate: 0.05 / step, ...(able && { velocity }) };
            twin.apply(theta, decoded, options);
            expect(fused.apply(stage(encoding, bytes), clip, options)).toBe(true);
            expectClose(parameters, theta, 'parameters');
            const slots = [...twin.velocities.keys()].sort();
            expect([...fused.velocities.keys()].sort()).toEqual(slots);
            for (const slot of slots) {
              expectClose(
                fused.velocities.get(slot)!,
                twin.velocities.get(slot)!,
                `velocity ${slot}`,
              );
            }
          }
          for (const [symbol, slot] of Object.entries(twin.slots)) {
            expectClose(fused.slots[symbol]!, slot, symbol);
          }
        },
      ),
      { numRuns: 40 },
    );
  });

  test('sees a parameter that overflows, wherever it lies, and nothing beside a span', () => {
    const config = configOf(kind);
    for (const at of [0, 3, 4, 8, 12, 20, 22]) {
      const n = 23;
      const { memory, parameters, fused, stage } = setUp(config, n, []);
      // Behind the parameters lies what is not theirs.
      memory.floats(parameters.byteOffset + 4 * n, 1)[0] = Infinity;
      const gradient = new Float32Array(n).fill(1);
      const options = { step: 1, learningRate: 0.01 };
      const clip = { limit: Infinity, factor: 1 };
      expect(fused.apply(stage('f32', bytesOf(gradient)), clip, options)).toBe(true);
      parameters[at] = 3.4e38;
      gradient[at] = -1;
      const rate = 3e38;
      expect(
        fused.apply(stage('f32', bytesOf(gradient)), clip, { step: 2, learningRate: rate }),
      ).toBe(false);
    }
  });

  test('takes large parameters for what they are, though their sum overflows', () => {
    const n = 40;
    for (const signs of [[1], [1, -1]]) {
      const { parameters, fused, stage } = setUp(configOf(kind), n, []);
      parameters.forEach((_, i) => {
        parameters[i] = signs[(i >> 2) % signs.length]! * 3e38;
      });
      const clip = { limit: Infinity, factor: 1 };
      const staged = stage('f32', bytesOf(new Float32Array(n).fill(1)));
      expect(fused.apply(staged, clip, { step: 1, learningRate: 0.01 })).toBe(true);
      expect([...parameters].every(Number.isFinite)).toBe(true);
    }
  });
});

describe('the norm', () => {
  test.each(ENCODINGS)('of a gradient in %s', (encoding) => {
    fc.assert(
      fc.property(lengths, fc.integer({ min: 0, max: 2 ** 31 }), (n, seed) => {
        const { kernels, stage } = setUp({ kind: 'sgd' }, n, []);
        const bytes = encode(normal(n, seed), encoding);
        const decoded = new Float32Array(n);
        decodeGradient(encoding, bytes, decoded);
        const staged = stage(encoding, bytes);
        for (const limit of [Infinity, 0.5]) {
          const cut = decoded.map((x) => Math.max(-limit, Math.min(limit, x)));
          const norm = Math.sqrt(sumOfSquares(kernels, staged, n, limit));
          // Squares are added up in f32 by runs of 64, unless they are cut.
          const off = limit === Infinity ? 2e-6 : 1e-9;
          expect(Math.abs(norm - normAndFinite(cut))).toBeLessThanOrEqual(off * (1 + norm));
        }
      }),
    );
  });

  test.each([1e-30, 1e-22, 1e18, 1e19, 3e38])(
    'of elements whose squares f32 cannot hold: %s',
    (size) => {
      for (const encoding of ENCODINGS) {
        const n = 3_000;
        const { kernels, stage } = setUp({ kind: 'sgd' }, n, []);
        const bytes = encode(new Float32Array(n).fill(size), encoding);
        const norm = Math.sqrt(sumOfSquares(kernels, stage(encoding, bytes), n, Infinity));
        expect(norm / (size * Math.sqrt(n))).toBeCloseTo(1, 2);
      }
    },
  );

  test.each([Number.NaN, Infinity, -Infinity])('is not a number when one element is %s', (bad) => {
    for (const n of [1, 5, 8, 257]) {
      for (const at of [0, n - 1]) {
        for (const encoding of ENCODINGS) {
          const { kernels, stage } = setUp({ kind: 'sgd' }, n, []);
          const values = normal(n, 1);
          values[at] = bad;
          const staged = stage(encoding, encode(values, encoding));
          for (const limit of [1, Infinity]) {
            expect(sumOfSquares(kernels, staged, n, limit)).toBeNaN();
          }
        }
      }
    }
  });

  test('does not overflow where squares of float32 would', () => {
    const { kernels, stage } = setUp({ kind: 'sgd' }, 5, []);
    const staged = stage('f32', bytesOf(new Float32Array(5).fill(1e30)));
    const norm = Math.sqrt(sumOfSquares(kernels, staged, 5, Infinity));
    expect(norm / 1e30).toBeCloseTo(5 ** 0.5, 6);
  });
});

test.each([
  { kind: 'ema', decay: 0.99, startStep: 0 },
  { kind: 'polyak', decay: 0, startStep: 3 },
] as const)('the average $kind agrees with its twin', (config) => {
  for (const n of [1, 7, 64, 1001]) {
    const memory = new Memory(3 * regionBytes(4 * n));
    const theta = memory.take(4 * n);
    const fused = createAverage(config, n, { memory, kernels: createKernels(memory.memory) })!;
    const twin = createAverage(config, n)!;
    const values = memory.floats(theta, n);
    for (let step = 1; step <= 60; step++) {
      values.set(normal(n, step));
      // In pieces, as an update gives them.
      const cut = ((16 * step) % (n + 1)) & ~15;
      if (fused.begin(step)) {
        fused.take(values, 0, cut);
        fused.take(values, cut, n);
      }
      if (twin.begin(step)) twin.take(values, 0, n);
    }
    expect(fused.state()).toEqual(twin.state());
    expectClose(fused.values, twin.values, 'average');
  }
});

describe('encoders', () => {
  const room = (n: number) => {
    const memory = new Memory(5 * regionBytes(8 * n + 64) + regionBytes(4 * 2 ** 16));
    const kernels = createCompressionKernels(memory.memory);
    const take = (values: Float32Array) => {
      const address = memory.take(4 * n);
      memory.floats(address, n).set(values);
      return address;
    };
    return { memory, kernels, take };
  };
  const property = (check: (n: number, seed: number, values: Float32Array) => void) =>
    fc.assert(
      fc.property(
        lengths,
        fc.integer({ min: 0, max: 2 ** 31 }),
        fc.boolean(),
        (n, seed, coarse) => {
          const values = normal(n, seed);
          if (coarse) for (let i = 0; i < n; i++) values[i] = Math.round(values[i]!);
          if (seed % 5 === 0) values[seed % n] = [Number.NaN, Infinity, 1e-44][seed % 3]!;
          check(n, seed, values);
        },
      ),
    );

  test('bf16 agrees with its twin to the bit, both ways', () => {
    property((n, _, values) => {
      const { memory, kernels, take } = room(n);
      const out = memory.take(2 * n + 16);
      kernels.encode_bf16(take(values), n, out);
      const wanted = encode(values, 'bf16').subarray(0, 2 * n);
      expect(memory.bytes(out, 2 * n)).toEqual(wanted);
      const back = memory.take(4 * n + 16);
      kernels.decode_bf16(out, n, back);
      const decoded = new Float32Array(n);
      decodeGradient('bf16', encode(values, 'bf16'), decoded);
      expect(memory.floats(back, n)).toEqual(decoded);
    });
  });

  test('int8 with its residual agrees with its twin to the bit', () => {
    property((n, seed, values) => {
      const { memory, kernels, take } = room(n);
      const residual = normal(n, seed + 1).map((x) => x / 100);
      const [from, rest, out] = [take(values), take(residual), memory.take(8 * n + 16)];
      const wanted = new Uint8Array(encodedBytes('int8', n));
      for (let round = 0; round < 3; round++) {
        kernels.encode_int8(from, rest, n, out);
        encodeInt8(values, residual, wanted);
        const used = 4 * Math.ceil(n / BLOCK) + n;
        expect(memory.bytes(out, used)).toEqual(wanted.subarray(0, used));
        expect(memory.floats(rest, n)).toEqual(residual);
      }
    });
  });

  test('topk agrees with its twin, and takes what it sends', () => {
    property((n, seed, values) => {
      if (!values.every(Number.isFinite)) return;
      const { memory, kernels, take } = room(n);
      const k = 1 + (seed % n);
      const [v, u] = [take(values), take(values)];
      const out = memory.take(encodedBytes('topk', n, k));
      kernels.encode_topk(v, u, n, k, memory.take(4 * 2 ** 16), out);
      const wanted = new Uint8Array(encodedBytes('topk', n, k));
      encodeTopk(values, k, wanted);
      expect(memory.bytes(out, wanted.length)).toEqual(wanted);
      const sent = new Float32Array(n);
      decodeTopk(wanted, sent);
      // Adding 0 makes −0 the same as 0.
      const left = [...values.map((x, i) => (sent[i] === 0 ? x + 0 : 0))];
      expect([...memory.floats(v, n)].map((x) => x + 0)).toEqual(left);
      expect([...memory.floats(u, n)].map((x) => x + 0)).toEqual(left);
    });
  });

  test('accumulation and the look for what is not finite', () => {
    property((n, seed, values) => {
      const { memory, kernels, take } = room(n);
      const g = take(values);
      expect(kernels.all_finite(g, n)).toBe(values.every(Number.isFinite) ? 1 : 0);
      const [u, v] = [normal(n, seed + 1), normal(n, seed + 2)];
      const [uAt, vAt] = [take(u), take(v)];
      kernels.accumulate(g, uAt, vAt, n, 0.5);
      const f = Math.fround;
      const velocity = u.map((x, i) => f(f(x * 0.5) + values[i]!));
      expect(memory.floats(uAt, n)).toEqual(velocity);
      expect(memory.floats(vAt, n)).toEqual(v.map((x, i) => f(x + velocity[i]!)));
      kernels.accumulate(g, 0, vAt, n, 0);
    });
  });
});
