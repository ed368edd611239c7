import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import type { CompensationUse } from '../../server/core/compensation.ts';
import { Parameters } from '../../server/core/parameters.ts';
import { vectorPlaces } from '../../server/core/vectors.ts';
import { bytesOf } from '../../shared/codec.ts';
import {
  decodeGradient,
  type Encoding,
  encodeBf16,
  encodedBytes,
  encodeInt8,
  encodeTopk,
} from '../../shared/compression.ts';
import { type PartialConfig, resolveConfig } from '../../shared/config.ts';
import { createLayout } from '../../shared/layout.ts';
import { LIMITS } from '../../shared/limits.ts';
import { random } from '../../shared/random.ts';

/** Steps of several pushes, and gradients that are put right, against the equations in plain arithmetic. */

const SIZES = [1, 5, 1_000, 8_200] as const;
const ENCODINGS = ['f32', 'bf16', 'int8', 'topk'] as const;
const STATISTICS = 3;

const layoutOf = (n: number) =>
  createLayout([
    { name: 'w', shape: [1, n], role: 'trainable' },
    { name: 'mean', shape: [STATISTICS], role: 'statistics', momentum: 0.9 },
  ]);

function normal(n: number, seed: number): Float32Array {
  const draw = random(seed, 3);
  return Float32Array.from({ length: n }, () => draw.normal());
}

/** A payload, the gradient as whoever decodes it has it, and the statistics. */
function pushOf(encoding: Encoding, n: number, seed: number) {
  const values = normal(n, seed);
  const k = encoding === 'topk' ? Math.max(1, Math.floor(n / 10)) : 0;
  const own = new Uint8Array(encodedBytes(encoding, n, k));
  if (encoding === 'f32') own.set(bytesOf(values));
  else if (encoding === 'bf16') encodeBf16(values, own);
  else if (encoding === 'int8') encodeInt8(values, null, own);
  else encodeTopk(values, k, own);
  const gradient = new Float32Array(n);
  decodeGradient(encoding, own, gradient);
  const statistics = normal(STATISTICS, seed + 1);
  const payload = new Uint8Array(own.length + 4 * STATISTICS);
  payload.set(own);
  payload.set(bytesOf(statistics), own.length);
  return { payload, gradient, statistics };
}

function create(n: number, config: PartialConfig, seed = 7) {
  const layout = layoutOf(n);
  const resolved = resolveConfig({ learningRate: 0.1 }, config);
  const parameters = new Parameters(layout, resolved, vectorPlaces(resolved, layout));
  parameters.initialise(normal(layout.size, seed));
  return parameters;
}

/** Three multiplications and a sum of a few numbers in float32. */
function near(seen: number, wanted: number): void {
  // Many times as fast as to expect it of each element.
  if (Math.abs(seen - wanted) < 1e-5 * Math.max(1, Math.abs(wanted))) return;
  expect(seen).toBe(wanted);
}

const NO_CLIP = { limit: Infinity, factor: 1 };
const OPTIONS = { step: 1, learningRate: 0.1 };

describe('a step of several pushes', () => {
  test('is made by the mean over examples, whatever the pushes are written in, and a stale one counts for less', () => {
    fc.assert(
      fc.property(
        fc.constantFrom(...SIZES),
        fc.array(
          fc.record({
            encoding: fc.constantFrom(...ENCODINGS),
            share: fc.constantFrom(1, 1, 0.25),
            scale: fc.constantFrom(1, 0.5),
          }),
          { minLength: 1, maxLength: 6 },
        ),
        fc.integer({ min: 0, max: 2 ** 30 }),
        (n, pushes, seed) => {
          const parameters = create(n, { consistency: { mode: 'synchronous' } });
          const before = parameters.exchanged();
          const gradient = new Float64Array(n);
          const statistics = new Float64Array(STATISTICS);
          for (const [k, weight] of pushes.entries()) {
            const push = pushOf(weight.encoding, n, seed + 10 * k);
            parameters.collect(parameters.stage(push.payload, weight.encoding), weight, null);
            push.gradient.forEach((g, i) => {
              gradient[i]! += weight.share * weight.scale * g;
            });
            push.statistics.forEach((s, i) => {
              statistics[i]! += weight.share * s;
            });
          }
          const shares = pushes.reduce((sum, { share }) => sum + share, 0);
          expect(parameters.kept.state().collected).toBe(pushes.length);
          const combined = parameters.combine(shares, 1);
          const norm = Math.sqrt(parameters.squares(combined, Infinity));
          near(norm, Math.hypot(...gradient.map((g) => g / shares)));
          expect(parameters.update(combined, NO_CLIP, OPTIONS)).toBe(true);
          expect(parameters.kept.state().collected).toBeUndefined();
          const after = parameters.exchanged();
          for (let i = 0; i < n; i++) near(after[i]!, before[i]! - (0.1 * gradient[i]!) / shares);
          // The first merge keeps a tenth of the arbitrary initial values.
          for (let i = 0; i < STATISTICS; i++) {
            near(after[n + i]!, 0.1 * before[n + i]! + (0.9 * statistics[i]!) / shares);
          }
        },
      ),
      { numRuns: 60 },
    );
  });

  test('by the median holds out against a push of anything', () => {
    const n = 50;
    const parameters = create(n, {
      consistency: { mode: 'synchronous', aggregate: 'median' },
      optimizer: { kind: 'sgd' },
    });
    const before = parameters.exchanged();
    const honest = pushOf('f32', n, 1);
    const wild = { ...honest, payload: honest.payload.slice() };
    new Float32Array(wild.payload.buffer).fill(1e30);
    for (const { payload } of [wild, honest, honest]) {
      parameters.collect(parameters.stage(payload, 'f32'), { scale: 1, share: 1 }, null);
    }
    parameters.update(parameters.combine(3, 1), NO_CLIP, OPTIONS);
    const after = parameters.exchanged();
    for (const [i, g] of honest.gradient.entries()) near(after[i]!, before[i]! - 0.1 * g);
    for (const [i, s] of honest.statistics.entries()) {
      near(after[n + i]!, 0.1 * before[n + i]! + 0.9 * s);
    }
  });

  test('what was thrown away is not in the next one', () => {
    const [a, b] = [
      create(5, { consistency: { mode: 'buffered' } }),
      create(5, { consistency: { mode: 'buffered' } }),
    ];
    const weight = { scale: 1, share: 1 };
    a.collect(a.stage(pushOf('f32', 5, 1).payload, 'f32'), weight, null);
    a.discard();
    for (const parameters of [a, b]) {
      parameters.collect(parameters.stage(pushOf('f32', 5, 2).payload, 'f32'), weight, null);
      parameters.update(parameters.combine(1, 1), NO_CLIP, OPTIONS);
    }
    expect(a.exchanged()).toEqual(b.exchanged());
  });

  test.each([
    ['mean', 1],
    ['trimmedMean', 3],
  ] as const)('that is half made is in a checkpoint, by %s', (aggregate, vectors) => {
    const config = { consistency: { mode: 'synchronous', aggregate } } as const;
    const [straight, first, second] = [
      create(40, config),
      create(40, config),
      create(40, config, 8),
    ];
    const take = (parameters: Parameters, seed: number) =>
      parameters.collect(
        parameters.stage(pushOf('int8', 40, seed).payload, 'int8'),
        { scale: 1, share: 1 },
        null,
      );
    for (const parameters of [straight, first])
      for (const seed of [1, 2, 3]) take(parameters, seed);
    const names = first.kept.tensors().map(({ name }) => name);
    expect(names.filter((name) => name.startsWith('@collected.')).length).toBe(vectors);
    second.kept.restore(JSON.parse(JSON.stringify(first.kept.state())), first.kept.tensors());
    for (const parameters of [straight, second]) {
      take(parameters, 4);
      expect(parameters.update(parameters.combine(4, 1), NO_CLIP, OPTIONS)).toBe(true);
    }
    expect(second.exchanged()).toEqual(straight.exchanged());
  });
});

describe('a gradient that is put right', () => {
  const uses: readonly (readonly [NonNullable<PartialConfig['consistency']>, CompensationUse])[] = [
    [
      { correction: 'compensated', compensation: { adaptive: false } },
      { kind: 'constant', slot: 2, lambda: 0.04 },
    ],
    [{ correction: 'compensated' }, { kind: 'adaptive', slot: 2, lambda: 2, decay: 0.95 }],
    [{ correction: 'gap' }, { kind: 'gap', slot: 2, typical: 0.1 }],
  ];

  /** The equations, in float64. */
  function wanted(use: CompensationUse, g: number, way: number, square: number): [number, number] {
    if (use.kind === 'constant') return [g + use.lambda * g * g * way, square];
    if (use.kind === 'gap') return [g / (1 + Math.abs(way) / use.typical), square];
    const ms = use.decay * square + (1 - use.decay) * g * g;
    return [g + (use.lambda * g * g * way) / Math.sqrt(ms + 1e-7), ms];
  }

  test.each(uses)('by %j is that of the equations, after clipping', (consistency, use) => {
    fc.assert(
      fc.property(
        fc.constantFrom(...SIZES),
        fc.constantFrom(...ENCODINGS),
        fc.constantFrom(NO_CLIP, { limit: 0.5, factor: 1 }, { limit: Infinity, factor: 0.3 }),
        fc.integer({ min: 0, max: 2 ** 30 }),
        (n, encoding, clip, seed) => {
          const parameters = create(n, { consistency });
          const sent = parameters.exchanged();
          parameters.remember(use.slot, true);
          const moved = pushOf('f32', n, seed + 5);
          parameters.update(parameters.stage(moved.payload, 'f32'), NO_CLIP, OPTIONS);
          const squares = new Float64Array(n);
          for (let push = 0; push < 3; push++) {
            const { payload, gradient } = pushOf(encoding, n, seed + 100 * push);
            const before = parameters.exchanged();
            const options = { ...OPTIONS, compensation: use };
            expect(parameters.update(parameters.stage(payload, encoding), clip, options)).toBe(
              true,
            );
            const after = parameters.exchanged();
            for (let i = 0; i < n; i++) {
              const cut = Math.max(-clip.limit, Math.min(clip.limit, gradient[i]!)) * clip.factor;
              const [g, square] = wanted(use, cut, before[i]! - sent[i]!, squares[i]!);
              squares[i] = square;
              near(after[i]!, before[i]! - 0.1 * g);
            }
          }
        },
      ),
      { numRuns: 30 },
    );
  });

  test('in a step of several is put right before it is added', () => {
    const n = 12;
    const parameters = create(n, { consistency: { mode: 'buffered', correction: 'gap' } });
    const sent = parameters.exchanged();
    parameters.remember(1, true);
    const weight = { scale: 0.5, share: 1 };
    parameters.collect(
      parameters.stage(pushOf('f32', n, 1).payload, 'f32'),
      { scale: 1, share: 1 },
      null,
    );
    parameters.update(parameters.combine(1, 1), NO_CLIP, OPTIONS);
    const before = parameters.exchanged();
    const { payload, gradient } = pushOf('bf16', n, 2);
    const use = { kind: 'gap', slot: 1, typical: 0.2 } as const;
    parameters.collect(parameters.stage(payload, 'bf16'), weight, use);
    parameters.update(parameters.combine(1, 1), NO_CLIP, OPTIONS);
    const after = parameters.exchanged();
    for (let i = 0; i < n; i++) {
      const g = gradient[i]! / (1 + Math.abs(before[i]! - sent[i]!) / 0.2);
      near(after[i]!, before[i]! - 0.1 * 0.5 * g);
    }
  });

  test("of another worker in the same slot begins with no squares, and a checkpoint keeps a worker's", () => {
    const config = { consistency: { correction: 'compensated' } } as const;
    const use = { kind: 'adaptive', slot: 1, lambda: 2, decay: 0.95 } as const;
    const push = (parameters: Parameters) =>
      parameters.update(parameters.stage(pushOf('f32', 9, 4).payload, 'f32'), NO_CLIP, {
        ...OPTIONS,
        compensation: use,
      });
    const parameters = create(9, config);
    parameters.remember(1, true);
    push(parameters);
    const squares = () =>
      parameters.kept.tensors().find(({ name }) => name === '@squares.1')!.values;
    expect(squares().every((value) => value > 0)).toBe(true);
    const later = create(9, config, 3);
    later.kept.restore(
      JSON.parse(JSON.stringify(parameters.kept.state())),
      parameters.kept.tensors(),
    );
    for (const each of [parameters, later]) {
      each.remember(1, false);
      push(each);
    }
    expect(later.exchanged()).toEqual(parameters.exchanged());
    parameters.remember(1, true);
    expect(squares().every((value) => value === 0)).toBe(true);
  });
});

describe('room', () => {
  const places = (consistency: NonNullable<PartialConfig['consistency']>, n: number) =>
    vectorPlaces(
      resolveConfig({ consistency }),
      createLayout([{ name: 'w', shape: [n], role: 'trainable' }]),
    );

  test('is for no more than what is used', () => {
    expect(places({}, 9)).toEqual({ velocities: 0, collected: 0, sent: 0 });
    expect(places({ mode: 'synchronous' }, 9).collected).toBe(1);
    expect(places({ mode: 'buffered' }, 9).collected).toBe(1);
    expect(places({ correction: 'gap' }, 9)).toMatchObject({
      collected: 0,
      sent: LIMITS.sentCountMax,
    });
  });

  test('for each push of a step is limited by their number, and by bytes', () => {
    const median = { mode: 'synchronous', aggregate: 'median' } as const;
    const { collectedCountMax: count, collectedBytesMax: bytes } = LIMITS;
    expect(places(median, 9).collected).toBe(count);
    const largest = bytes / count / 4 - 16;
    expect(places(median, largest).collected).toBe(count);
    expect(places(median, largest + 64).collected).toBe(count - 1);
  });

  test('for what workers were sent is limited alike', () => {
    const { sentCountMax: count, sentBytesMax: bytes } = LIMITS;
    const largest = bytes / count / 4 - 16;
    expect(places({ correction: 'gap' }, largest).sent).toBe(count);
    expect(places({ correction: 'gap' }, largest + 64).sent).toBe(count - 1);
    expect(places({ correction: 'compensated' }, largest + 64).sent).toBe(count / 2 - 1);
  });

  test('that is too small for a step is said', () => {
    const krum = { mode: 'buffered', aggregate: 'krum', bufferSize: 64 } as const;
    expect(places(krum, 4_000_000).collected).toBe(64);
    expect(() => places(krum, 8_000_000)).toThrow(/there is room for 33 .* and 64 are needed/);
  });
});
