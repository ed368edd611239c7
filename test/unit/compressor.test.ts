import { describe, expect, test } from 'vitest';
import { abilitiesOf, lackOf } from '../../server/fleet/suitability.ts';
import { decodeGradient, gradientBytes } from '../../shared/compression.ts';
import {
  type PartialConfig,
  type PushCompression,
  RESIDUAL_DECAY_HEADER,
  residualDecayOf,
  resolveConfig,
  workerConfig,
} from '../../shared/config.ts';
import { random } from '../../shared/random.ts';
import { type Compressor, createCompressor, type Settle } from '../../worker/compressor.ts';

const N = 600;
const STATISTICS = 3;

function compressor(push: PushCompression): Compressor {
  const sizes = { trainableSize: N, exchangedSize: N + STATISTICS };
  return createCompressor({ push, pull: 'f32' }, sizes);
}

function gradientOf(seed: number): Float32Array {
  const draw = random(seed, 1);
  return Float32Array.from({ length: N + STATISTICS }, () => draw.normal());
}

/** What the server makes of one push. */
function send(
  { encoding, payloadBytes, write }: Compressor,
  gradient: Float32Array,
  epoch = 100,
): { gradient: Float32Array; statistics: number[]; bytes: number; settle: Settle } {
  const out = new Uint8Array(payloadBytes(epoch)[0]!).fill(0xa5);
  const settle = write(gradient, epoch, [out]);
  const bytes = gradientBytes(encoding, out, N, 4 * STATISTICS);
  const decoded = new Float32Array(N);
  decodeGradient(encoding, out.subarray(0, bytes), decoded);
  const statistics = [...new Float32Array(out.slice(bytes).buffer)];
  return { gradient: decoded, statistics, bytes: out.length, settle };
}

const KINDS: PushCompression[] = [
  { kind: 'f32' },
  { kind: 'bf16' },
  { kind: 'int8' },
  { kind: 'topk', density: 0.05, warmupEpochs: 0, momentum: 0 },
];
const LATER = KINDS.slice(2);

test.each(KINDS)('$kind leaves statistics alone', (push) => {
  const gradient = gradientOf(1);
  expect(send(compressor(push), gradient).statistics).toEqual([...gradient.subarray(N)]);
});

test('bytes of 600 elements and 3 statistics', () => {
  expect(KINDS.flatMap((push) => compressor(push).payloadBytes(9))).toEqual([
    2412,
    1212,
    12 + 600 + 12,
    4 + 30 * 8 + 12,
  ]);
});

describe('error feedback that fades', () => {
  const fading = (residualDecay: number): PushCompression[] => [
    { kind: 'int8', residualDecay },
    { kind: 'topk', density: 0.05, warmupEpochs: 0, momentum: 0, residualDecay },
  ];

  /** e ← β e + g; what is sent is taken off. */
  test.each(fading(0.9))('$kind keeps a share of what earlier pushes left', (push) => {
    const subject = compressor(push);
    const residual = new Float64Array(N);
    for (let t = 0; t < 30; t++) {
      const gradient = gradientOf(t);
      const { gradient: sent } = send(subject, gradient);
      for (let i = 0; i < N; i++) residual[i] = 0.9 * residual[i]! + gradient[i]! - sent[i]!;
    }
    // Pushes without a gradient bring what is left, and ever less of it.
    const left = residual.slice();
    for (let t = 0; t < 400; t++) {
      const { gradient: sent } = send(subject, new Float32Array(N + STATISTICS));
      for (let i = 0; i < N; i++) left[i] = 0.9 * left[i]! - sent[i]!;
    }
    expect(Math.max(...left.map(Math.abs))).toBeLessThan(1e-3);
    expect(Math.max(...residual.map(Math.abs))).toBeGreaterThan(push.kind === 'int8' ? 1e-3 : 1);
  });

  test.each(fading(0.9))('$kind gives back what a rejected push took, to rounding', (push) => {
    const [kept, tried] = [compressor(push), compressor(push)];
    for (let t = 0; t < 5; t++) {
      send(kept, gradientOf(t));
      send(tried, gradientOf(t));
    }
    send(tried, gradientOf(77)).settle('rejected');
    const after = send(tried, gradientOf(9)).gradient;
    const wanted = send(kept, gradientOf(9)).gradient;
    for (let i = 0; i < N; i++) expect(Math.abs(after[i]! - wanted[i]!)).toBeLessThan(0.05);
  });

  test.each([0, 1])('%i: a factor of 1 forgets nothing, to the bit', (index) => {
    const { residualDecay: _, ...plain } = fading(1)[index] as { residualDecay: number };
    const [usual, one] = [compressor(plain as PushCompression), compressor(fading(1)[index]!)];
    for (let t = 0; t < 10; t++) {
      expect(send(one, gradientOf(t)).gradient).toEqual(send(usual, gradientOf(t)).gradient);
    }
  });

  test('is within its limits, not with momentum, and only for workers that know it', () => {
    const of = (push: object) => resolveConfig({ compression: { push } } as PartialConfig);
    expect(residualDecayOf(of({ kind: 'int8' }).compression.push)).toBe(1);
    for (const residualDecay of [0, 1.01]) {
      expect(() => of({ kind: 'topk', residualDecay })).toThrow('residualDecay');
    }
    const momentum = { kind: 'topk', momentum: 0.5, residualDecay: 0.9 };
    const sgd = { optimizer: { kind: 'sgd' } } as const;
    expect(() =>
      resolveConfig({ ...sgd, compression: { push: momentum } } as PartialConfig),
    ).toThrow('compression.push.residualDecay is 0.9 and momentum is 0.5');
    const config = of({ kind: 'topk', residualDecay: 0.9 });
    expect(workerConfig(config).compression.push).toMatchObject({ residualDecay: 0.9 });
    const usual = of({ kind: 'topk', residualDecay: 1 });
    expect(workerConfig(usual).compression.push).not.toHaveProperty('residualDecay');
    expect(lackOf(abilitiesOf({}), { id: 'r', config: usual })).toBeNull();
    expect(lackOf(abilitiesOf({ [RESIDUAL_DECAY_HEADER]: 'yes' }), { id: 'r', config })).toBeNull();
    expect(lackOf(abilitiesOf({}), { id: 'r', config })).toMatchObject({
      code: 'DP_PROTOCOL_VERSION',
      message: expect.stringContaining('residualDecay 0.9, and this worker keeps all'),
    });
  });
});

describe('error feedback', () => {
  test.each(LATER)('$kind sends in the end all that there was', (push) => {
    const subject = compressor(push);
    const due = new Float64Array(N);
    const sent = new Float64Array(N);
    for (let step = 0; step < 40; step++) {
      const gradient = gradientOf(step);
      const result = send(subject, gradient);
      result.settle('applied');
      for (let i = 0; i < N; i++) {
        due[i]! += gradient[i]!;
        sent[i]! += result.gradient[i]!;
      }
    }
    // Zeros from now on: what was left behind goes out.
    for (let step = 0; step < 40; step++) {
      const { gradient } = send(subject, new Float32Array(N + STATISTICS));
      for (let i = 0; i < N; i++) sent[i]! += gradient[i]!;
    }
    // Rounding of f32 sums over 80 steps.
    for (let i = 0; i < N; i++) expect(Math.abs(due[i]! - sent[i]!)).toBeLessThan(1e-4);
  });

  test.each(LATER)('$kind counts the minibatch of a rejected push once', (push) => {
    const accepted = compressor(push);
    const retried = compressor(push);
    for (const seed of [1, 2, 3]) {
      send(accepted, gradientOf(seed)).settle('applied');
      send(retried, gradientOf(seed)).settle('applied');
    }
    // Another minibatch is lost on the way; what earlier ones left behind is not.
    send(retried, gradientOf(77)).settle('rejected');
    const next = send(accepted, gradientOf(4)).gradient;
    const again = send(retried, gradientOf(4)).gradient;
    next.forEach((x, i) => {
      expect(again[i]).toBeCloseTo(x, 5);
    });
  });

  test.each(LATER)('$kind forgets it when the parameters are others', (push) => {
    const subject = compressor(push);
    const { settle } = send(subject, gradientOf(1));
    subject.reset();
    // Late news of a push of that time change nothing.
    settle('rejected');
    expect(send(subject, gradientOf(2)).gradient).toEqual(
      send(compressor(push), gradientOf(2)).gradient,
    );
  });

  test.each([...KINDS, { kind: 'topk', density: 0.05, warmupEpochs: 0, momentum: 0.9 } as const])(
    '$kind shows the server what is not finite, and keeps nothing of it',
    (push) => {
      const subject = compressor(push);
      const twin = compressor(push);
      send(subject, gradientOf(1)).settle('applied');
      send(twin, gradientOf(1)).settle('applied');
      for (const bad of [Number.NaN, Infinity]) {
        const gradient = gradientOf(2);
        gradient[300] = bad;
        const result = send(subject, gradient);
        expect(result.gradient.every(Number.isFinite)).toBe(false);
        result.settle('rejected');
      }
      const after = send(subject, gradientOf(3)).gradient;
      send(twin, gradientOf(3)).gradient.forEach((x, i) => {
        expect(after[i]).toBeCloseTo(x, 5);
      });
    },
  );
});

describe('Deep Gradient Compression', () => {
  test('the density falls from a quarter by the same factor each epoch', () => {
    const subject = compressor({ kind: 'topk', density: 0.01, warmupEpochs: 4, momentum: 0 });
    const counts = [0, 1, 2, 3, 4, 50].map(
      (epoch) => (subject.payloadBytes(epoch)[0]! - 4 - 12) / 8,
    );
    // 0.25 · 25^(−epoch / 4) of 600
    expect(counts).toEqual([150, 67, 30, 13, 6, 6]);
  });

  test('momentum correction: what is sent late has the velocity of every step', () => {
    const alpha = 0.5;
    const subject = compressor({ kind: 'topk', density: 1 / N, warmupEpochs: 0, momentum: alpha });
    const gradient = new Float32Array(N + STATISTICS);
    // Element 7 is large at once and goes out each time; element 9 grows until it is larger.
    gradient[7] = 10;
    gradient[9] = 4;
    const first = send(subject, gradient);
    expect(first.gradient[7]).toBe(10);
    const second = send(subject, gradient);
    // 10 again, not 15: its velocity was masked. Element 9 holds 4 + (0.5 · 4 + 4) = 10, a tie: first wins.
    expect(second.gradient[7]).toBe(10);
    const third = send(subject, gradient);
    // u = 0.5 · 6 + 4 = 7, v = 17.
    expect(third.gradient[9]).toBe(17);
  });
});
