import { describe, expect, test } from 'vitest';
import { Run } from '../../server/core/run.ts';
import { velocityCount } from '../../server/core/vectors.ts';
import { bytesOf, floatsOf } from '../../shared/codec.ts';
import { type PartialConfig, resolveConfig } from '../../shared/config.ts';
import { createLayout } from '../../shared/layout.ts';
import { LIMITS } from '../../shared/limits.ts';
import {
  createProblem,
  createRun,
  FEATURES,
  gradientOf,
  parametersOf,
  VirtualWorker,
} from '../support/regression.ts';

const problem = createProblem({ train: 400, validation: 10, test: 10 });
const LONG = { epochsMax: 50, evaluateEverySteps: 100_000 } as const;
const momentum = { optimizer: { kind: 'momentum', momentum: 0.9 } } as const;
const ahead = { consistency: { correction: 'lookahead' } } as const;
const auto = { consistency: { correction: 'auto' } } as const;

const workersOf = (run: Run, count: number) =>
  Array.from({ length: count }, (_, i) => new VirtualWorker(run, problem, `w${i}/1`));

/** Each pulls what the others' pushes have made of the parameters, and pushes when all of them have. */
function rounds(workers: readonly VirtualWorker[], count: number, now = 0): void {
  for (let round = 0; round < count; round++) {
    for (const worker of workers) worker.pull(now, 1);
    for (const worker of workers) worker.push(now);
  }
}

function begun(config: PartialConfig, count: number) {
  const run = createRun({ ...LONG, ...config });
  const workers = workersOf(run, count);
  workers[0]!.pull();
  return { run, workers };
}

const velocitiesIn = (run: Run) =>
  run
    .tensors()
    .map(({ name }) => name)
    .filter((name) => name.startsWith('@velocity.'));

function restored(run: Run): Run {
  return Run.restore(JSON.parse(JSON.stringify(run.state(0))), run.tensors());
}

describe('one worker', () => {
  test.each(['momentum', 'nesterov', 'adam', 'rmsprop', 'sgd'] as const)(
    'with %s trains by auto as without, to the bit',
    (kind) => {
      const config = { ...LONG, optimizer: { kind }, stepsMax: 60 } as PartialConfig;
      const none = createRun({ ...config, consistency: { correction: 'none' } });
      new VirtualWorker(none, problem).train();
      const run = createRun({ ...config, ...auto });
      new VirtualWorker(run, problem).train();
      expect(parametersOf(run)).toEqual(parametersOf(none));
    },
  );

  test('with look-ahead from the start trains as by nesterov, to the bit', () => {
    const nesterov = createRun({ ...LONG, optimizer: { kind: 'nesterov' }, stepsMax: 60 });
    new VirtualWorker(nesterov, problem).train();
    const run = createRun({ ...LONG, ...momentum, ...ahead, stepsMax: 60 });
    new VirtualWorker(run, problem).train();
    expect(parametersOf(run)).toEqual(parametersOf(nesterov));
  });
});

test('several workers are sent θ + α Σ v, each v being of one worker: DANA', () => {
  const { run, workers } = begun({ ...momentum, ...ahead, learningRate: 0.01 }, 4);
  const n = FEATURES + 1;
  const sent = () => parametersOf(run).subarray(0, n);
  // The equations as the paper has them, with the sum.
  const theta = Float64Array.from(sent());
  const own = workers.map(() => new Float64Array(n));
  const looked = () =>
    theta.map((t, i) => t + 0.9 * own.reduce((sum, velocity) => sum + velocity[i]!, 0));
  for (let round = 0; round < 12; round++) {
    const leases = workers.map((worker) => {
      const assignment = run.call({ call: 'assign', worker: worker.key, ahead: 1, now: 0 });
      if (assignment.kind !== 'work') throw new Error(assignment.kind);
      const parameters = floatsOf(assignment.payload!.bytes).slice();
      return { lease: assignment.leases[0]!, step: assignment.step, parameters };
    });
    // The later ones are the staler.
    for (const [k, { lease, step, parameters }] of leases.entries()) {
      const { payload, loss } = gradientOf(problem, run.config.seed, lease, parameters);
      const push = { type: 'push', run: 'r', sequence: round + 1, lease: lease.id, step } as const;
      const { outcome } = run.call(
        {
          call: 'push',
          worker: workers[k]!.key,
          push: { ...push, generation: run.generation, loss, computeMs: 1, encoding: 'f32' },
          now: 0,
        },
        bytesOf(payload),
      );
      expect(outcome).toBe('applied');
      for (let i = 0; i < n; i++) {
        own[k]![i] = 0.9 * own[k]![i]! - 0.01 * payload[i]!;
        theta[i]! += own[k]![i]!;
      }
    }
    // Forty-eight updates in float32.
    const seen = sent();
    for (const [i, wanted] of looked().entries()) expect(seen[i]!).toBeCloseTo(wanted, 4);
  }
});

describe('auto', () => {
  test('begins with the third worker, ends when one is left, and says so once each time', () => {
    const { run, workers } = begun({ ...momentum, ...auto }, 2);
    rounds(workers, 5);
    expect(run.summary(0).correction).toMatchObject({ lookahead: false, text: null });
    const before = run.takeEvents().filter(({ kind }) => kind === 'correction');
    expect(before).toEqual([]);
    const third = new VirtualWorker(run, problem, 'third/1');
    rounds([...workers, third], 5);
    const text = '3 workers: look-ahead on';
    expect(run.summary(0).correction).toMatchObject({ lookahead: true, velocities: 3, text });
    expect(run.takeEvents().filter(({ kind }) => kind === 'correction')).toEqual([
      { kind: 'correction', text },
    ]);
    run.call({ call: 'leave', worker: 'third/1' });
    run.call({ call: 'leave', worker: workers[1]!.key });
    rounds([workers[0]!], 5);
    expect(run.summary(0).correction).toMatchObject({ lookahead: false, text: null, workers: 1 });
    expect(run.takeEvents().filter(({ kind }) => kind === 'correction')).toEqual([
      { kind: 'correction', text: 'as with one worker: look-ahead off' },
    ]);
    expect(velocitiesIn(run)).toEqual([]);
  });

  test('the velocity goes on: of one worker as that of the first who pushes, and back', () => {
    const velocityOf = (run: Run, name: string) =>
      run.tensors().find((tensor) => tensor.name === name)!.values;
    const { run, workers } = begun({ ...momentum, ...auto }, 1);
    rounds(workers, 5);
    const common = velocityOf(run, '@optimizer.v');
    for (const key of ['b/1', 'c/1']) workers.push(new VirtualWorker(run, problem, key));
    const [first, second] = workers;
    first!.pull();
    second!.pull();
    first!.push(0, (payload) => payload.fill(0));
    second!.push(0, (payload) => payload.fill(0));
    expect(velocityOf(run, '@velocity.1')).toEqual(common.map((v) => Math.fround(0.9) * v));
    expect(velocityOf(run, '@velocity.2').every((v) => v === 0)).toBe(true);
    run.call({ call: 'leave', worker: 'b/1' });
    run.call({ call: 'leave', worker: 'c/1' });
    first!.pull();
    first!.push(0, (payload) => payload.fill(0));
    const wanted = common.map((v) => Math.fround(0.9) * Math.fround(Math.fround(0.9) * v));
    expect(velocityOf(run, '@optimizer.v')).toEqual(wanted);
  });

  test.each<[string, PartialConfig]>([
    ['damping', { consistency: { correction: 'auto', damping: 'inverse' } }],
    ['a bound', { consistency: { correction: 'auto', stalenessMax: 100 } }],
    ['none', { consistency: { correction: 'none' } }],
    ['no momentum', { ...auto, optimizer: { kind: 'sgd' } }],
  ])('leaves a run with %s alone', (_, config) => {
    const { run, workers } = begun({ ...momentum, ...config }, 20);
    rounds(workers, 4);
    expect(run.summary(0).correction).toMatchObject({ kind: 'none', text: null, normMax: null });
    const plain = begun(
      { ...momentum, ...config, consistency: { ...config.consistency, correction: 'none' } },
      20,
    );
    rounds(plain.workers, 4);
    expect(parametersOf(run)).toEqual(parametersOf(plain.run));
  });

  test('inverse is damping by another name', () => {
    const trained = (consistency: PartialConfig['consistency']) => {
      const { run, workers } = begun({ ...momentum, ...(consistency && { consistency }) }, 6);
      rounds(workers, 4);
      expect(run.summary(0).pushes.damped).toBeGreaterThan(0);
      return parametersOf(run);
    };
    expect(trained({ correction: 'inverse' })).toEqual(trained({ damping: 'inverse' }));
  });

  test('with a clip of its own is not limited by another', () => {
    const { run, workers } = begun({ ...momentum, ...auto, clip: { norm: 50 } }, 20);
    rounds(workers, 4);
    expect(run.summary(0).correction).toMatchObject({ lookahead: true, normMax: null });
  });

  test('limits gradients from eight workers on, by the first ones, and the more so beyond 16', () => {
    for (const [count, share] of [
      [7, null],
      [8, 1],
      [16, 1],
      [32, 0.5],
    ] as const) {
      const { run, workers } = begun({ ...momentum, ...auto, learningRate: 1e-6 }, count);
      const push = (size: number) => {
        for (const worker of workers) worker.pull();
        for (const worker of workers) worker.push(0, (payload) => payload.fill(size));
      };
      // The norm of the gradient alone: statistics are no part of it.
      const norm = Math.sqrt(FEATURES + 1);
      push(1);
      push(1);
      push(1);
      const { normMax } = run.summary(0).correction!;
      if (share === null) {
        expect(normMax).toBeNull();
        continue;
      }
      // To 1 in 16 … 32, and 1.25 times what was applied of late.
      expect(normMax! / norm).toBeGreaterThan(0.93 * share);
      expect(normMax! / norm).toBeLessThan(1.3 * share);
      push(100);
      expect(run.summary(0).gradientNorm!).toBeLessThan(1.1 * normMax!);
    }
  });
});

describe('workers that go', () => {
  test('leave no velocity: neither in what comes nor in checkpoints', () => {
    const { run, workers } = begun({ ...momentum, ...ahead }, 3);
    rounds(workers, 3);
    expect(velocitiesIn(run)).toEqual(['@velocity.1', '@velocity.2', '@velocity.3']);
    run.call({ call: 'leave', worker: workers[1]!.key });
    const before = parametersOf(run);
    // What is not pushed on stands still: the others' velocities are theirs.
    rounds([workers[0]!], 1);
    expect(velocitiesIn(run)).toEqual(['@velocity.1', '@velocity.3']);
    expect(parametersOf(run)).not.toEqual(before);
    rounds([new VirtualWorker(run, problem, 'new/1')], 1);
    expect(velocitiesIn(run)).toEqual(['@velocity.1', '@velocity.2', '@velocity.3']);
  });

  test('by a lost connection may come back for five seconds', () => {
    const { run, workers } = begun({ ...momentum, ...ahead }, 3);
    rounds(workers, 3);
    run.call({ call: 'detach', worker: workers[1]!.key, now: 1_000 });
    run.call({ call: 'tick', now: 5_999 });
    rounds([workers[0]!], 1, 5_999);
    expect(velocitiesIn(run).length).toBe(3);
    run.call({ call: 'tick', now: 6_000 });
    rounds([workers[0]!], 1, 6_000);
    expect(velocitiesIn(run)).toEqual(['@velocity.1', '@velocity.3']);
  });

  test('and come a thousand times take no more room', () => {
    const { run, workers } = begun({ ...momentum, ...auto }, 3);
    for (let i = 0; i < 1_000; i++) {
      const guest = new VirtualWorker(run, problem, `guest${i}/1`);
      rounds([...workers, guest], 1);
      run.call({ call: 'leave', worker: guest.key });
    }
    expect(velocitiesIn(run).length).toBeLessThanOrEqual(4);
    expect(JSON.stringify(run.state(0).correction).length).toBeLessThan(400);
  });
});

describe('room', () => {
  const layout = (size: number) => createLayout([{ name: 'w', shape: [size], role: 'trainable' }]);
  const config = (more: PartialConfig = {}) => resolveConfig({ ...momentum, ...auto, ...more });

  test('is for a velocity of each worker up to a number and to bytes; then workers share', () => {
    const { velocityCountMax: count, velocityBytesMax: bytes } = LIMITS;
    expect(velocityCount(config(), layout(1_000))).toBe(count);
    const largest = bytes / count / 4 - 32;
    expect(velocityCount(config(), layout(largest))).toBe(count);
    expect(velocityCount(config(), layout(largest + 64))).toBe(count - 1);
    // One memory holds all: parameters, velocities and room for a few pushes and answers.
    expect(velocityCount(config(), layout(80_000_000))).toBe(2);
    expect(velocityCount(config(), layout(90_000_000))).toBe(0);
    expect(velocityCount(config({ consistency: { correction: 'none' } }), layout(9))).toBe(0);
    expect(velocityCount(config({ optimizer: { kind: 'sgd' } }), layout(9))).toBe(0);
  });

  test('for fewer velocities than workers: each is of several, evenly, and it is said', () => {
    const { run, workers } = begun({ ...momentum, ...auto }, LIMITS.velocityCountMax + 6);
    rounds(workers, 2);
    const { velocities, text } = run.summary(0).correction!;
    expect(velocities).toBe(LIMITS.velocityCountMax);
    expect(text).toBe('70 workers: look-ahead on by 64 velocities, large gradients scaled down');
    const shares = run.state(0).correction!.velocities.map(([, owners]) => owners.length);
    expect(shares.length).toBe(64);
    expect(Math.max(...shares)).toBe(2);
  });
});

describe('a restart', () => {
  test.each(['momentum', 'nesterov', 'adam', 'rmsprop'] as const)(
    'between two rounds of five workers changes nothing with %s, to the bit',
    (kind) => {
      const config = { ...auto, optimizer: { kind } } as PartialConfig;
      const straight = begun(config, 5);
      rounds(straight.workers, 6);
      const { run, workers } = begun(config, 5);
      rounds(workers, 3);
      const later = restored(run);
      expect(later.summary(0).correction).toMatchObject({ lookahead: true, workers: 5 });
      rounds(workersFrom(later, 3), 3);
      expect(parametersOf(later)).toEqual(parametersOf(straight.run));
      expect(velocitiesIn(later)).toEqual(velocitiesIn(straight.run));
    },
  );

  /** The same five, after so many pushes each. */
  function workersFrom(run: Run, pushes: number): VirtualWorker[] {
    return workersOf(run, 5).map((worker) => {
      for (let i = 0; i < pushes; i++) worker.skip();
      return worker;
    });
  }

  test('forgets those that do not come back', () => {
    const { run, workers } = begun({ ...momentum, ...auto }, 5);
    rounds(workers, 3);
    const later = restored(run);
    later.call({ call: 'tick', now: 100_000 });
    const one = new VirtualWorker(later, problem, 'w0/1');
    for (let i = 0; i < 3; i++) one.skip();
    rounds([one], 1, 100_000);
    expect(velocitiesIn(later).length).toBe(5);
    later.call({ call: 'tick', now: 105_000 });
    rounds([one], 1, 105_000);
    expect(velocitiesIn(later)).toEqual([]);
    expect(later.summary(0).correction).toMatchObject({ workers: 1, lookahead: false });
  });

  test('opens what an older release wrote, and goes on as that did', () => {
    const { run, workers } = begun({ ...momentum, consistency: { correction: 'none' } }, 5);
    rounds(workers, 3);
    const state = JSON.parse(JSON.stringify(run.state(0)));
    delete state.correction;
    delete state.options.config.consistency.correction;
    const later = Run.restore(state, run.tensors());
    rounds(workersFrom(later, 3), 3);
    expect(later.summary(0).correction).toMatchObject({ kind: 'none', text: null });
    rounds(workers, 3);
    expect(parametersOf(later)).toEqual(parametersOf(run));
  });
});

test('what forgets the optimizer forgets the velocities: a rollback', () => {
  const diverging = { divergence: { rollbacksMax: 3 }, nonFiniteMax: 1 };
  const { run, workers } = begun({ ...momentum, ...ahead, ...diverging }, 3);
  rounds(workers, 3);
  expect(velocitiesIn(run).length).toBe(3);
  workers[0]!.pull();
  workers[0]!.push(0, (payload) => payload.fill(Number.NaN));
  expect(run.summary(0).rollbacks.length).toBe(1);
  workers[0]!.pull();
  expect(velocitiesIn(run)).toEqual([]);
  rounds(workers, 2);
  expect(velocitiesIn(run).length).toBe(3);
});
