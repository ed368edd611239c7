import fc from 'fast-check';
import { afterEach, beforeAll, describe, expect, test } from 'vitest';
import { resolveConfig } from '../../shared/config.ts';
import { matchesPattern } from '../../shared/name-pattern.ts';
import {
  clipByNorm,
  clipByValue,
  createOptimizer,
  type DecayRange,
  decayRanges,
  normAndFinite,
} from '../../shared/optimizer.ts';
import type { OptimizerConfig } from '../../shared/optimizer-config.ts';
import { random } from '../../shared/random.ts';
import { openEngine } from '../../worker/engine.ts';
import { tf } from '../../worker/tf.ts';

const normals = (seed: number, n: number) => {
  const draw = random(seed, 0);
  return Float32Array.from({ length: n }, () => draw.normal());
};

/** Every kind with the defaults of the configuration, and RMSProp with momentum. */
const kinds: [string, OptimizerConfig][] = [
  ...(['sgd', 'momentum', 'nesterov', 'adagrad', 'rmsprop', 'adadelta', 'adam', 'adamw'] as const),
].map((kind) => [kind, resolveConfig({ optimizer: { kind } }).optimizer]);
kinds.push([
  'rmsprop with momentum',
  { kind: 'rmsprop', decay: 0.9, momentum: 0.9, epsilon: 1e-7 },
]);

describe('steps worked by hand, from θ = 1', () => {
  interface Hand {
    readonly name: string;
    readonly config: OptimizerConfig;
    /** On all parameters. */
    readonly decay?: number;
    /** Gradient, θ after it, and ε where it is not 0.1. */
    readonly steps: readonly (readonly [g: number, theta: number, epsilon?: number])[];
  }
  // Too small to show in four digits, so that it may be left out by hand.
  const tiny = 1e-12;
  const hands: Hand[] = [
    {
      name: 'SGD, Algorithm 8.1: 1 − 0.1·2; 0.8 + 0.1·1',
      config: { kind: 'sgd' },
      steps: [
        [2, 0.8],
        [-1, 0.9],
      ],
    },
    {
      name: 'SGD with L2 decay 0.5: g = 1 + 0.5·1, θ = 1 − 0.1·1.5; g = 0 + 0.5·0.85',
      config: { kind: 'sgd' },
      decay: 0.5,
      steps: [
        [1, 0.85],
        [0, 0.8075],
      ],
    },
    {
      // v = −0.1; v = −0.05 − 0.1; and when ε falls, the velocity stays: v = −0.075.
      name: 'momentum 0.5, eq. 8.15 and 8.16',
      config: { kind: 'momentum', momentum: 0.5 },
      steps: [
        [1, 0.9],
        [1, 0.75],
        [0, 0.675, 0.001],
      ],
    },
    {
      // v = −0.1, θ += 0.5·(−0.1) − 0.1; v = −0.15, θ += −0.075 − 0.1.
      name: 'Nesterov momentum 0.5, at the looked-ahead point',
      config: { kind: 'nesterov', momentum: 0.5 },
      steps: [
        [1, 0.85],
        [1, 0.675],
      ],
    },
    {
      // r = 9, then 25: 1 − 0.1·3/3; 0.9 − 0.1·4/5.
      name: 'Adagrad, Algorithm 8.4',
      config: { kind: 'adagrad', initialAccumulator: 0, epsilon: tiny },
      steps: [
        [3, 0.9],
        [4, 0.82],
      ],
    },
    {
      // r = 7, then 16: 1 − 0.1·3/(1 + 4).
      name: 'Adagrad from r = 7 with δ = 1, outside the root',
      config: { kind: 'adagrad', initialAccumulator: 7, epsilon: 1 },
      steps: [[3, 0.94]],
    },
    {
      // r = 0.25·4 = 1; r = 0.75 + 0.25 = 1.
      name: 'RMSProp ρ = 0.75, Algorithm 8.5',
      config: { kind: 'rmsprop', decay: 0.75, momentum: 0, epsilon: tiny },
      steps: [
        [2, 0.8],
        [1, 0.7],
      ],
    },
    {
      // r = 1, √(3 + 1) = 2.
      name: 'RMSProp with δ = 3, inside the root',
      config: { kind: 'rmsprop', decay: 0.75, momentum: 0, epsilon: 3 },
      steps: [[2, 0.9]],
    },
    {
      // v = −0.2; v = −0.1 − 0.1.
      name: 'RMSProp with momentum 0.5, Algorithm 8.6',
      config: { kind: 'rmsprop', decay: 0.75, momentum: 0.5, epsilon: tiny },
      steps: [
        [2, 0.8],
        [1, 0.6],
      ],
    },
    {
      // r = 8, Δ = √1/√9·4 = 4/3, u = 8/9; r = 4, Δ = 0, u = 4/9;
      // r = 4, Δ = √(13/9)/√5·2 = 1.074968.
      name: 'AdaDelta ρ = 0.5, δ = 1, Zeiler 2012',
      config: { kind: 'adadelta', decay: 0.5, epsilon: 1 },
      steps: [
        [4, 1 - 4 / 3, 1],
        [0, 1 - 4 / 3, 1],
        [2, 1 - 4 / 3 - 1.074968, 1],
      ],
    },
    {
      // The first step is ε·sign(g). Then m = 0.5, m̂ = 0.5/0.75; v = 0.75, v̂ = 0.75/0.4375:
      // 0.9 − 0.1·(2/3)/√(12/7).
      name: 'Adam β₁ = 0.5, β₂ = 0.75, Algorithm 8.7',
      config: { kind: 'adam', beta1: 0.5, beta2: 0.75, epsilon: tiny },
      steps: [
        [2, 0.9],
        [0, 0.8490825],
      ],
    },
    {
      // √v̂ = 2: 1 − 0.1·2/(2 + 2).
      name: 'Adam with δ = 2, outside the root',
      config: { kind: 'adam', beta1: 0.5, beta2: 0.75, epsilon: 2 },
      steps: [[2, 0.95]],
    },
    {
      name: 'Adam with L2 decay: lost in the first step, whose size is always ε',
      config: { kind: 'adam', beta1: 0.5, beta2: 0.75, epsilon: tiny },
      decay: 0.1,
      steps: [[2, 0.9]],
    },
    {
      // As Adam, and each time 1 − 0.1·0.1 of θ is kept: 0.99 − 0.1; 0.89·0.99 − 0.0509175.
      name: 'AdamW: decay beside the update, not in the gradient',
      config: { kind: 'adamw', beta1: 0.5, beta2: 0.75, epsilon: tiny },
      decay: 0.1,
      steps: [
        [2, 0.89],
        [0, 0.8301825],
      ],
    },
    {
      // 1·(1 − 0.01·0.5) − 0.01: decay follows the scheduled rate.
      name: 'AdamW decays at the rate of the schedule',
      config: { kind: 'adamw', beta1: 0.5, beta2: 0.75, epsilon: tiny },
      decay: 0.5,
      steps: [[2, 0.985, 0.01]],
    },
  ];
  test.each(hands.map((hand) => [hand.name, hand] as const))('%s', (_, hand) => {
    const ranges = hand.decay ? [{ start: 0, end: 1, rate: hand.decay }] : [];
    const optimizer = createOptimizer(hand.config, 1, ranges);
    const theta = Float32Array.of(1);
    hand.steps.forEach(([g, expected, learningRate = 0.1], index) => {
      optimizer.apply(theta, Float32Array.of(g), { step: index + 1, learningRate });
      expect(theta[0]).toBeCloseTo(expected, 6);
    });
  });

  test('the momentum of a step overrides the configured one', () => {
    for (const kind of ['momentum', 'nesterov', 'rmsprop'] as const) {
      const { optimizer: config } = resolveConfig({ optimizer: { kind, momentum: 0.3 } });
      const { optimizer: configHigh } = resolveConfig({ optimizer: { kind, momentum: 0.9 } });
      const [low, high] = [createOptimizer(config, 1), createOptimizer(configHigh, 1)];
      const [a, b] = [Float32Array.of(1), Float32Array.of(1)];
      for (let step = 1; step <= 3; step++) {
        low.apply(a, Float32Array.of(1), { step, learningRate: 0.1, momentum: 0.9 });
        high.apply(b, Float32Array.of(1), { step, learningRate: 0.1 });
      }
      expect(a).toEqual(b);
    }
  });
});

test('Nesterov at the looked-ahead point is the method of Algorithm 8.3 itself', () => {
  // f(θ) = ½ Σ cᵢ θᵢ², ill conditioned. The book's form asks for the gradient at θ + α v.
  const curvature = [1, 10, 100];
  const [alpha, epsilon] = [0.9, 0.005];
  const theta = [1, 1, 1];
  const v = [0, 0, 0];
  const optimizer = createOptimizer({ kind: 'nesterov', momentum: alpha }, 3);
  const ahead = Float32Array.of(1, 1, 1);
  for (let step = 1; step <= 50; step++) {
    for (let i = 0; i < 3; i++) {
      v[i] = alpha * v[i]! - epsilon * curvature[i]! * (theta[i]! + alpha * v[i]!);
      theta[i]! += v[i]!;
    }
    const g = ahead.map((value, i) => curvature[i]! * value);
    optimizer.apply(ahead, g, { step, learningRate: epsilon });
    for (let i = 0; i < 3; i++) expect(ahead[i]).toBeCloseTo(theta[i]! + alpha * v[i]!, 5);
  }
});

describe('50 random steps', () => {
  const STEPS = 50;
  const n = 37;
  const rateAt = (step: number) => 0.05 / step ** 0.5;

  /** All in float64, one number at a time, straight from the formulas. */
  function reference(config: OptimizerConfig, lambda: number, seed: number): number[] {
    return Array.from(normals(seed, n), (first, i) => {
      let theta = first;
      let [a, b] = [config.kind === 'adagrad' ? config.initialAccumulator : 0, 0];
      for (let step = 1; step <= STEPS; step++) {
        const e = rateAt(step);
        let g = normals(seed + step, n)[i]!;
        if (config.kind !== 'adamw') g += lambda * theta;
        switch (config.kind) {
          case 'sgd':
            theta -= e * g;
            break;
          case 'momentum':
            a = config.momentum * a - e * g;
            theta += a;
            break;
          case 'nesterov': {
            // Back from the looked-ahead point, one step of the book, and ahead again.
            const base = theta - config.momentum * a;
            a = config.momentum * a - e * g;
            theta = base + a + config.momentum * a;
            break;
          }
          case 'adagrad':
            a += g ** 2;
            theta -= (e / (config.epsilon + a ** 0.5)) * g;
            break;
          case 'rmsprop':
            a = config.decay * a + (1 - config.decay) * g ** 2;
            b = config.momentum * b - (e / (config.epsilon + a) ** 0.5) * g;
            theta += b;
            break;
          case 'adadelta': {
            a = config.decay * a + (1 - config.decay) * g ** 2;
            const change = -((b + config.epsilon) ** 0.5 / (a + config.epsilon) ** 0.5) * g;
            b = config.decay * b + (1 - config.decay) * change ** 2;
            theta += e * change;
            break;
          }
          case 'adam':
          case 'adamw': {
            a = config.beta1 * a + (1 - config.beta1) * g;
            b = config.beta2 * b + (1 - config.beta2) * g ** 2;
            const first = a / (1 - config.beta1 ** step);
            const second = b / (1 - config.beta2 ** step);
            const decay = config.kind === 'adamw' ? lambda * theta : 0;
            theta -= e * (first / (second ** 0.5 + config.epsilon) + decay);
            break;
          }
        }
      }
      return theta;
    });
  }

  function run(config: OptimizerConfig, lambda: number, seed: number, rate = rateAt) {
    const optimizer = createOptimizer(config, n, [{ start: 0, end: n, rate: lambda }]);
    const theta = normals(seed, n);
    for (let step = 1; step <= STEPS; step++) {
      optimizer.apply(theta, normals(seed + step, n), { step, learningRate: rate(step) });
    }
    return theta;
  }

  // float32 storage rounds by 6e-8 of a number near 1, 50 times in parameters and in state.
  const TOLERANCE = 1e-5;

  test.each(kinds)('%s agrees with a slow float64 reference, falling ε', (_, config) => {
    for (const lambda of [0, 0.1]) {
      const expected = reference(config, lambda, 100);
      run(config, lambda, 100).forEach((value, i) => {
        expect(Math.abs(value - expected[i]!)).toBeLessThan(TOLERANCE);
      });
    }
  });

  describe("tfjs's own", () => {
    const e = 0.05;
    const byKind = Object.fromEntries(kinds);
    // tfjs keeps ε outside the velocity and δ of Adagrad (1e-7) inside the root: no difference for
    // a constant ε and r ≥ 0.1. Its AdaDelta divides by the r of the step before, unlike Zeiler's
    // Algorithm 1, and AdamW it lacks: those two have only the reference above.
    const theirs: [string, () => import('@tensorflow/tfjs-core').Optimizer][] = [
      ['sgd', () => tf.train.sgd(e)],
      ['momentum', () => tf.train.momentum(e, 0.9)],
      ['nesterov', () => tf.train.momentum(e, 0.9, true)],
      ['adagrad', () => tf.train.adagrad(e, 0.1)],
      ['rmsprop', () => tf.train.rmsprop(e, 0.9, 0, 1e-7)],
      ['rmsprop with momentum', () => tf.train.rmsprop(e, 0.9, 0.9, 1e-7)],
      ['adam', () => tf.train.adam(e, 0.9, 0.999, 1e-8)],
    ];
    beforeAll(async () => {
      await openEngine({ engine: 'cpu' });
    });
    afterEach(() => tf.disposeVariables());

    test.each(theirs)('%s agrees, constant ε', (name, create) => {
      const seed = 300;
      const variable = tf.variable(tf.tensor1d(normals(seed, n).slice()));
      const optimizer = create();
      for (let step = 1; step <= STEPS; step++) {
        const gradient = tf.tensor1d(normals(seed + step, n));
        optimizer.applyGradients({ [variable.name]: gradient });
        gradient.dispose();
      }
      const expected = variable.dataSync();
      run(byKind[name]!, 0, seed, () => e).forEach((value, i) => {
        // tfjs rounds every operation, some ten a step, and β₂ᵗ itself, to float32.
        expect(Math.abs(value - expected[i]!)).toBeLessThan(3e-5);
      });
      optimizer.dispose();
    });
  });
});

describe.each(kinds)('every optimizer: %s', (_, config) => {
  const sizes = [0, 1, 2, 7, 1023];
  const step = (optimizer: ReturnType<typeof createOptimizer>, theta: Float32Array, k: number) =>
    optimizer.apply(theta, normals(k, theta.length), { step: k, learningRate: 0.01 });

  test('continues bit for bit from restored slots', () => {
    for (const n of sizes) {
      const ranges = [{ start: 0, end: n >> 1, rate: 0.1 }];
      const whole = createOptimizer(config, n, ranges);
      const theta = normals(0, n);
      for (let k = 1; k <= 5; k++) step(whole, theta, k);
      const kept = structuredClone(whole.slots);
      const restored = createOptimizer(config, n, ranges);
      const continued = theta.slice();
      for (const [symbol, slot] of Object.entries(restored.slots)) {
        expect(slot).toHaveLength(n);
        slot.set(kept[symbol]!);
      }
      for (let k = 6; k <= 10; k++) {
        step(whole, theta, k);
        step(restored, continued, k);
      }
      expect(continued).toEqual(theta);
      expect(restored.slots).toEqual(whole.slots);
    }
  });

  test('is like new after reset', () => {
    const [used, fresh] = [createOptimizer(config, 9), createOptimizer(config, 9)];
    for (let k = 1; k <= 3; k++) step(used, normals(0, 9), k);
    used.reset();
    expect(used.slots).toEqual(fresh.slots);
    const [a, b] = [normals(0, 9), normals(0, 9)];
    step(used, a, 1);
    step(fresh, b, 1);
    expect(a).toEqual(b);
  });

  test('a rate of 0 is no decay, and how ranges are cut makes no difference, to the bit', () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 1, max: 40 }),
        fc.array(fc.nat(40), { maxLength: 4 }),
        fc.constantFrom(0, 0.1),
        (n, cuts, rate) => {
          const edges = [0, ...cuts.filter((at) => at < n).sort((a, b) => a - b), n];
          const cut = edges.slice(1).map((end, i) => ({ start: edges[i]!, end, rate }));
          const whole: DecayRange[] = rate === 0 ? [] : [{ start: 0, end: n, rate }];
          const [a, b] = [normals(1, n), normals(1, n)];
          const [one, many] = [createOptimizer(config, n, whole), createOptimizer(config, n, cut)];
          for (let k = 1; k <= 3; k++) {
            step(one, a, k);
            step(many, b, k);
          }
          expect(b).toEqual(a);
        },
      ),
      { numRuns: 30 },
    );
  });

  test('decays inside its ranges and nowhere else', () => {
    const decayed = createOptimizer(config, 10, [
      { start: 2, end: 5, rate: 0.5 },
      { start: 7, end: 8, rate: 0.5 },
    ]);
    const plain = createOptimizer(config, 10);
    const [a, b] = [normals(1, 10), normals(1, 10)];
    for (let k = 1; k <= 3; k++) {
      step(decayed, a, k);
      step(plain, b, k);
    }
    const differs = Array.from(a, (value, i) => (value === b[i] ? '.' : 'x')).join('');
    expect(differs).toBe('..xxx..x..');
  });

  test('goes down a bowl', () => {
    // ½ |θ|²: the gradient is θ itself. AdaDelta starts slowly, its ε is 1.
    const theta = normals(5, 20);
    const before = normAndFinite(theta);
    const optimizer = createOptimizer(config, 20);
    const learningRate = config.kind === 'adadelta' ? 1 : 0.02;
    for (let k = 1; k <= 300; k++) optimizer.apply(theta, theta.slice(), { step: k, learningRate });
    expect(normAndFinite(theta)).toBeLessThan(before * 0.8);
    expect(theta.every(Number.isFinite)).toBe(true);
  });
});

describe('where weight decay acts', () => {
  const tensors = [
    { name: 'dense/kernel', role: 'trainable', shape: [3, 4], offset: 0, size: 12 },
    { name: 'dense/bias', role: 'trainable', shape: [4], offset: 12, size: 4 },
    { name: 'head/kernel', role: 'trainable', shape: [4, 2], offset: 16, size: 8 },
    { name: 'norm/mean', role: 'statistics', shape: [2, 2], offset: 24, size: 4 },
    { name: 'embedding', role: 'frozen', shape: [5, 2], offset: 28, size: 10 },
  ];

  test('by default on weights, not on biases, never on what the optimizer does not move', () => {
    expect(decayRanges({ rate: 0.1, l1: 0, rules: [] }, tensors)).toEqual([
      { start: 0, end: 12, rate: 0.1 },
      { start: 16, end: 24, rate: 0.1 },
    ]);
    expect(decayRanges({ rate: 0, l1: 0, rules: [] }, tensors)).toEqual([]);
  });

  test('the first rule that matches wins; one of rate 0 exempts', () => {
    const rules = [
      { pattern: 'head/*', rate: 0 },
      { pattern: '*bias', rate: 0.2 },
      { pattern: '*', rate: 0.3 },
    ];
    expect(decayRanges({ rate: 0.1, l1: 0, rules }, tensors)).toEqual([
      { start: 0, end: 12, rate: 0.3 },
      { start: 12, end: 16, rate: 0.2 },
    ]);
  });

  test('L1 stands beside it: for all, or by a rule, which then says both', () => {
    expect(decayRanges({ rate: 0.1, l1: 0.01, rules: [] }, tensors)).toEqual([
      { start: 0, end: 12, rate: 0.1, l1: 0.01 },
      { start: 16, end: 24, rate: 0.1, l1: 0.01 },
    ]);
    const rules = [
      { pattern: 'head/*', rate: 0.2 },
      { pattern: 'dense/*', rate: 0, l1: 0.3 },
    ];
    expect(decayRanges({ rate: 0.1, l1: 0.01, rules }, tensors)).toEqual([
      { start: 0, end: 12, rate: 0, l1: 0.3 },
      { start: 12, end: 16, rate: 0, l1: 0.3 },
      { start: 16, end: 24, rate: 0.2 },
    ]);
  });

  test('L1 pulls every weight equally towards 0, whatever its size, and leaves 0 alone (§7.1.2)', () => {
    const optimizer = createOptimizer({ kind: 'sgd' }, 4, [{ start: 0, end: 4, rate: 0, l1: 0.5 }]);
    const theta = Float32Array.of(2, -2, 0.25, 0);
    optimizer.apply(theta, new Float32Array(4), { step: 1, learningRate: 0.125 });
    expect(Array.from(theta)).toEqual([1.9375, -1.9375, 0.1875, 0]);
  });

  test.each([
    ['dense/kernel', 'dense/kernel', true],
    ['dense/kernel', 'dense', false],
    ['dense/kernel', 'kernel', false],
    ['dense/kernel', '*kernel', true],
    ['dense/kernel', 'd*/k*l', true],
    ['dense/kernel', 'd*x*l', false],
    ['abcbc', 'a*bc', true],
    ['aab', 'a*ab', true],
    ['ab', 'a**b', true],
    ['', '*', true],
    ['', 'a', false],
    ['a.b', 'a?b', false],
    ['axb', 'a.b', false],
    ['a\nb', 'a*b', true],
    ['(a', '(*', true],
  ])('%j matches %j: %s', (name, pattern, expected) => {
    expect(matchesPattern(name, pattern)).toBe(expected);
  });

  test('a pattern agrees with its regular expression', () => {
    const text = fc.array(fc.constantFrom('a', 'b', '*'), { maxLength: 8 });
    fc.assert(
      fc.property(text, text, (name, pattern) => {
        const word = name.join('').replaceAll('*', 'c');
        const expression = new RegExp(`^${pattern.join('').replaceAll('*', '.*')}$`);
        expect(matchesPattern(word, pattern.join(''))).toBe(expression.test(word));
      }),
      { numRuns: 500 },
    );
  });

  test('a pattern made to backtrack ends: the same as an expression would take years', () => {
    expect(matchesPattern('a'.repeat(200), `${'*a'.repeat(99)}b`)).toBe(false);
  });
});

describe('clipping', () => {
  test('by norm, by hand: (3, 4) has norm 5; to 1 it is (0.6, 0.8)', () => {
    const g = Float32Array.of(3, 4);
    expect(normAndFinite(g)).toBe(5);
    expect(clipByNorm(g, 5, 5)).toBe(5);
    expect(Array.from(g)).toEqual([3, 4]);
    expect(clipByNorm(g, 1, 5)).toBe(1);
    expect(g[0]).toBeCloseTo(0.6, 7);
    expect(g[1]).toBeCloseTo(0.8, 7);
  });

  test('by value, by hand', () => {
    const g = Float32Array.of(-3, -0.5, 0, 0.5, 7);
    clipByValue(g, 0.5);
    expect(Array.from(g)).toEqual([-0.5, -0.5, 0, 0.5, 0.5]);
  });

  const anyGradient = fc.float32Array({ noNaN: true, noDefaultInfinity: true, maxLength: 50 });

  test('by norm keeps the direction and brings the norm below the limit', () => {
    fc.assert(
      fc.property(
        anyGradient,
        fc.double({ min: 1e-3, max: 1e6, noNaN: true }),
        (original, normMax) => {
          const g = original.slice();
          const norm = normAndFinite(g);
          const after = clipByNorm(g, normMax, norm);
          if (norm <= normMax) {
            expect(g).toEqual(original);
            expect(after).toBe(norm);
            return;
          }
          // Each element is rounded to float32 once.
          expect(normAndFinite(g)).toBeLessThanOrEqual(normMax * (1 + 2 ** -23));
          expect(Math.abs(normAndFinite(g) - after)).toBeLessThan(normMax * 1e-6);
          g.forEach((value, i) => {
            const expected = (original[i]! / norm) * normMax;
            expect(Math.abs(value - expected)).toBeLessThanOrEqual(
              Math.abs(expected) * 1e-7 + 1e-44,
            );
          });
        },
      ),
    );
  });

  test('by value leaves no element beyond the limit and touches no other', () => {
    fc.assert(
      fc.property(
        anyGradient,
        fc.float({ min: Math.fround(1e-3), max: 1e6, noNaN: true }),
        (original, max) => {
          const g = original.slice();
          clipByValue(g, max);
          g.forEach((value, i) => {
            expect(Math.abs(value)).toBeLessThanOrEqual(max);
            if (Math.abs(original[i]!) <= max) expect(value).toBe(original[i]);
            else expect(value).toBe(Math.sign(original[i]!) * max);
          });
        },
      ),
    );
  });

  test('the norm is not finite exactly when an element is not', () => {
    const largest = 3.4028234663852886e38;
    expect(normAndFinite(new Float32Array(1000).fill(largest))).toBeCloseTo(
      largest * 1000 ** 0.5,
      -30,
    );
    expect(normAndFinite(new Float32Array(0))).toBe(0);
    for (const bad of [NaN, Infinity, -Infinity]) {
      for (const at of [0, 3, 6]) {
        const g = normals(1, 7);
        g[at] = bad;
        expect(Number.isFinite(normAndFinite(g))).toBe(false);
      }
    }
    const both = Float32Array.of(Infinity, -Infinity);
    expect(Number.isFinite(normAndFinite(both))).toBe(false);
  });
});
