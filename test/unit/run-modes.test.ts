import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { Run } from '../../server/core/run.ts';
import { bytesOf } from '../../shared/codec.ts';
import type { PartialConfig } from '../../shared/config.ts';
import { random } from '../../shared/random.ts';
import { createProblem, createRun, parametersOf, VirtualWorker } from '../support/regression.ts';

/** Runs whose workers wait for each other, or whose steps are of several pushes. */

const problem = createProblem({ train: 400, validation: 10, test: 10 });
const LONG = { evaluateEverySteps: 100_000, earlyStopping: { enabled: false } } as const;

function begun(config: PartialConfig, count: number) {
  const run = createRun({ ...LONG, epochsMax: 5, ...config });
  const workers = Array.from(
    { length: count },
    (_, i) => new VirtualWorker(run, problem, `w${i}/1`),
  );
  workers[0]!.pull();
  run.takeEvents();
  return { run, workers };
}

const saved = (run: Run, now = 0) => ({
  state: JSON.parse(JSON.stringify(run.state(now))),
  tensors: run.tensors(),
});
const isWoken = (run: Run) => run.takeEvents().some(({ kind }) => kind === 'wake');

describe('synchronous', () => {
  test.each(['sgd', 'momentum', 'adam'] as const)(
    'a step is that of the large minibatch, to rounding, with %s',
    (kind) => {
      const config = { optimizer: { kind }, stepsMax: 60, clip: { norm: 2 } } as PartialConfig;
      const { run, workers } = begun({ ...config, consistency: { mode: 'synchronous' } }, 4);
      while (run.phase === 'training' && run.step < 60) {
        for (const worker of workers) worker.pull(0, 1);
        for (const worker of workers) worker.push();
      }
      const one = createRun({ ...LONG, ...config, epochsMax: 5, minibatchSize: 16 });
      const single = new VirtualWorker(one, problem);
      single.train(() => one.step === 60);
      expect(run.step).toBe(60);
      const wanted = parametersOf(one);
      const largest = Math.max(...wanted.map(Math.abs));
      const seen = parametersOf(run);
      // Sixty updates in float32, each a sum of four gradients instead of one.
      for (const [i, w] of wanted.entries()) {
        expect(Math.abs(seen[i]! - w)).toBeLessThan(2e-5 * largest);
      }
      const { training } = run.metrics();
      expect(training.staleness.every((staleness) => staleness === 0)).toBe(true);
      expect(training.examples.at(-1)).toBe(16 * 60);
      const [norm, large] = [training, one.metrics().training].map((t) => t.gradientNorm.at(-1)!);
      expect(norm).toBeCloseTo(large!, 4);
    },
  );

  test('who has pushed waits until the step is made, and is woken then', () => {
    const { run, workers } = begun({ consistency: { mode: 'synchronous' } }, 2);
    const [a, b] = workers;
    a!.pull();
    b!.pull();
    expect(a!.push()).toMatchObject({ outcome: 'applied', staleness: 0 });
    expect(run.step).toBe(0);
    expect(a!.pull()).toBe(false);
    expect(isWoken(run)).toBe(false);
    b!.push();
    expect(run.step).toBe(1);
    expect(isWoken(run)).toBe(true);
    expect(a!.pull()).toBe(true);
  });

  test('what waits for the next update is told, and one of its compute times is kept', () => {
    const { run, workers } = begun({ consistency: { mode: 'synchronous' } }, 3);
    expect(run.summary(0).collecting).toEqual({ pushes: 0, of: 3, secondsLeft: null });
    for (const worker of workers) worker.pull();
    workers[0]!.push();
    workers[1]!.push();
    expect(run.summary(0).collecting).toEqual({ pushes: 2, of: 3, secondsLeft: null });
    workers[2]!.push();
    expect(run.summary(0).collecting).toMatchObject({ pushes: 0 });
    expect(run.metrics().training.computeMs).toEqual([expect.any(Number)]);
    expect(begun({}, 1).run.summary(0).collecting).toBeNull();
  });

  test.each([
    ['leaves', (run: Run) => run.call({ call: 'leave', worker: 'w1/1' })],
    [
      'is away for long',
      (run: Run) => {
        run.call({ call: 'detach', worker: 'w1/1', now: 1_000 });
        run.call({ call: 'tick', now: 5_999 });
        expect(run.step).toBe(0);
        run.call({ call: 'tick', now: 6_000 });
      },
    ],
    ['lets its minibatch run out of time', (run: Run) => run.call({ call: 'tick', now: 10_001 })],
  ])('one that %s is not waited for', (_, go) => {
    const config = { consistency: { mode: 'synchronous' }, leaseSeconds: 10 } as const;
    const { run, workers } = begun(config, 2);
    for (const worker of workers) worker.pull();
    workers[0]!.push();
    workers[0]!.pull();
    go(run);
    expect(run.step).toBe(1);
    expect(isWoken(run)).toBe(true);
    expect(workers[0]!.pull()).toBe(true);
  });

  test('a worker that evaluates is not waited for', () => {
    const config = { consistency: { mode: 'synchronous' }, evaluateEverySteps: 1 } as const;
    const { run, workers } = begun(config, 3);
    const [a, b, c] = workers;
    for (const worker of workers) worker.pull();
    for (const worker of workers) worker.push();
    expect(run.step).toBe(1);
    // It holds the evaluation as long as it does not answer.
    expect(run.call({ call: 'assign', worker: a!.key, ahead: 2, now: 0 })).toMatchObject({
      kind: 'work',
      evaluation: { id: 1 },
    });
    b!.pull();
    c!.pull();
    b!.push();
    expect(run.step).toBe(1);
    c!.push();
    expect(run.step).toBe(2);
  });

  test('an epoch is of as many examples as ever, and its evaluations come once an epoch', () => {
    const config = { consistency: { mode: 'synchronous' }, epochsMax: 3 } as const;
    const { run, workers } = begun({ ...config, evaluateEverySteps: null }, 3);
    const used = trainAll(run, workers);
    expect(run.phase).toBe('finished');
    expect(new Set(used).size).toBe(300);
    expect(used.length).toBe(300);
    expect(run.summary(0).examples).toBe(1200);
    const evaluations = run.metrics().evaluations.filter(({ part }) => part === 'validation');
    expect(evaluations.length).toBe(3);
    // Three at a time, and one that is left of a hundred now and then.
    expect(run.step).toBeGreaterThanOrEqual(100);
    expect(run.step).toBeLessThan(115);
  });

  test('the steps that are left are counted in steps of as many pushes as so far', () => {
    const { run, workers } = begun({ consistency: { mode: 'synchronous' }, epochsMax: 3 }, 4);
    expect(run.summary(0).stepsMax).toBe(300);
    for (let i = 0; i < 5; i++) {
      for (const worker of workers) worker.pull(0, 1);
      for (const worker of workers) worker.push();
    }
    expect(run.summary(0).stepsMax).toBe(75);
  });

  test('a restart in the middle of a step loses no push of it', () => {
    const straight = begun({ consistency: { mode: 'synchronous' } }, 3);
    const broken = begun({ consistency: { mode: 'synchronous' } }, 3);
    for (const { workers } of [straight, broken]) {
      for (const worker of workers) worker.pull(0, 1);
      workers[0]!.push();
      workers[1]!.push();
    }
    const { state, tensors } = saved(broken.run);
    expect(state.collected.length).toBe(2);
    const run = Run.restore(state, tensors);
    expect(parametersOf(run)).toEqual(parametersOf(broken.run));
    // The two that have pushed come back and wait; the third computes again.
    const back = [0, 1, 2].map((i) => new VirtualWorker(run, problem, `w${i}/1`));
    expect(back[0]!.pull()).toBe(false);
    expect(back[1]!.pull()).toBe(false);
    expect(back[2]!.pull(0, 1)).toBe(true);
    back[2]!.push();
    straight.workers[2]!.push();
    expect(run.step).toBe(1);
    expect(parametersOf(run)).toEqual(parametersOf(straight.run));
  });

  test('an update that overflows gives the minibatches of its step back', () => {
    const config = { consistency: { mode: 'synchronous' }, learningRate: 1e30 } as const;
    const { run, workers } = begun(config, 2);
    for (const worker of workers) worker.pull(0, 1);
    for (const worker of workers) worker.push(0, (payload) => payload.fill(1e20));
    expect(run.step).toBe(0);
    expect(run.summary(0).rollbacks.length).toBe(1);
    const { returned } = run.state(0).leases!;
    expect(returned.map(({ lease }) => lease.start)).toEqual([0, 4]);
    expect(run.state(0).leases!.completed).toBe(0);
  });
});

describe('backup', () => {
  test('the examples of a push that came too late come again, first to another worker', () => {
    const { run, workers } = begun({ consistency: { mode: 'backup', quorum: 2 } }, 3);
    const [a, b, slow] = workers;
    for (const worker of workers) worker.pull(0, 1);
    const late = run.state(0).leases!.returned.find(({ worker }) => worker === slow!.key)!.lease;
    a!.push();
    b!.push();
    expect(run.step).toBe(1);
    expect(slow!.push()).toMatchObject({
      outcome: 'rejected',
      code: 'DP_PUSH_STALE',
      staleness: 1,
    });
    expect(slow!.pull(0, 1)).toBe(true);
    a!.pull(0, 1);
    const holder = run.state(0).leases!.returned.find(({ lease }) => lease.id === late.id)!;
    expect(holder.worker).toBe(a!.key);
  });

  test('nobody else is there: the slow one computes them after all', () => {
    const { run, workers } = begun({ consistency: { mode: 'backup', quorum: 2 }, epochsMax: 1 }, 3);
    const used = trainAll(run, workers);
    expect(run.phase).toBe('finished');
    expect(new Set(used).size).toBe(100);
    expect(used.length).toBe(100);
  });

  test('a quorum is told when to be asked again, and the time makes the step', () => {
    const consistency = { mode: 'backup', quorum: 2, graceMs: 300 } as const;
    const { run, workers } = begun({ consistency }, 3);
    for (const worker of workers) worker.pull();
    workers[0]!.push(100);
    expect(run.deadline).toBeNull();
    workers[1]!.push(200);
    expect(run.deadline).toBe(500);
    run.call({ call: 'tick', now: 499 });
    expect(run.step).toBe(0);
    run.call({ call: 'postpone', ms: 50 });
    expect(run.deadline).toBe(550);
    expect(workers[0]!.pull(300)).toBe(false);
    run.call({ call: 'tick', now: 550 });
    expect(run.step).toBe(1);
    expect(run.deadline).toBeNull();
    expect(isWoken(run)).toBe(true);
  });

  test('a push of anything does no harm to the median, and spoils the mean', () => {
    const lossAfter = (aggregate: 'mean' | 'median' | 'trimmedMean' | 'krum') => {
      const consistency = { mode: 'synchronous', aggregate } as const;
      const { run, workers } = begun({ consistency, divergence: { rollbacksMax: 0 } }, 5);
      while (run.step < 60 && !run.over) {
        for (const worker of workers) worker.pull(0, 1);
        for (const [i, worker] of workers.entries()) {
          worker.push(0, i === 2 ? (payload) => payload.fill(-50) : undefined);
        }
      }
      const [weight] = parametersOf(run);
      return Math.abs(weight! - 1);
    };
    expect(lossAfter('mean')).toBeGreaterThan(5);
    for (const aggregate of ['median', 'trimmedMean', 'krum'] as const) {
      expect(lossAfter(aggregate), aggregate).toBeLessThan(0.2);
    }
  });
});

describe('buffered', () => {
  test('so many pushes make a step, with a rate by their staleness', () => {
    const consistency = { mode: 'buffered', bufferSize: 2, damping: 'root' } as const;
    const { run, workers } = begun({ consistency, learningRate: 0.1 }, 2);
    const [a, b] = workers;
    a!.pull(0, 1);
    b!.pull(0, 1);
    expect(a!.push()!.outcome).toBe('applied');
    a!.pull(0, 1);
    a!.push();
    expect(run.step).toBe(1);
    const before = parametersOf(run).slice();
    a!.pull(0, 1);
    a!.push(0, (payload) => payload.fill(2));
    expect(b!.push(0, (payload) => payload.fill(4))).toMatchObject({
      ...{ outcome: 'damped', staleness: 1 },
    });
    expect(run.step).toBe(2);
    const wanted = (2 + 4 / Math.SQRT2) / 2;
    const after = parametersOf(run);
    expect(after[0]).toBeCloseTo(before[0]! - 0.1 * wanted, 5);
    // Statistics are what they are, however stale.
    const kept = Math.min(0.9, 2 / 11);
    expect(after[7]).toBeCloseTo(kept * before[7]! + (1 - kept) * 3, 5);
  });

  test('with no staleness allowed it takes pushes of the present parameters alone: Rennala', () => {
    const consistency = { mode: 'buffered', bufferSize: 2, stalenessMax: 0 } as const;
    const { run, workers } = begun({ consistency }, 2);
    for (const worker of workers) worker.pull(0, 2);
    workers[0]!.push();
    workers[0]!.push();
    expect(run.step).toBe(1);
    expect(workers[1]!.push()).toMatchObject({ outcome: 'rejected', code: 'DP_PUSH_STALE' });
  });

  test('what is left at the end is a step of its own', () => {
    const consistency = { mode: 'buffered', bufferSize: 7 } as const;
    const { run, workers } = begun({ consistency, epochsMax: 1 }, 3);
    expect(new Set(trainAll(run, workers)).size).toBe(100);
    expect(run.phase).toBe('finished');
    expect(run.step).toBe(15);
  });
});

describe('bounded', () => {
  test('a fast worker waits, and pushes count at once', () => {
    const { run, workers } = begun({ consistency: { mode: 'bounded', aheadMax: 1 } }, 2);
    const [fast, slow] = workers;
    slow!.pull(0, 1);
    for (let i = 0; i < 2; i++) {
      expect(fast!.pull(0, 1)).toBe(true);
      fast!.push();
    }
    expect(run.step).toBe(2);
    expect(fast!.pull(0, 1)).toBe(false);
    expect(isWoken(run)).toBe(false);
    slow!.push();
    expect(isWoken(run)).toBe(true);
    expect(fast!.pull(0, 1)).toBe(true);
  });

  test('one that does not wait for its turn is refused', () => {
    const { workers } = begun({ consistency: { mode: 'bounded', aheadMax: 0 } }, 2);
    const [fast, slow] = workers;
    slow!.pull(0, 1);
    fast!.pull(0, 2);
    expect(fast!.push()!.outcome).toBe('applied');
    expect(fast!.push()).toMatchObject({ outcome: 'rejected', code: 'DP_PUSH_STALE' });
  });
});

describe('gradients that are put right', () => {
  const pushTwo = (consistency: PartialConfig['consistency']) => {
    const { run, workers } = begun({ consistency: consistency!, learningRate: 0.1 }, 2);
    for (const worker of workers) worker.pull(0, 1);
    const before = parametersOf(run).slice();
    workers[0]!.push(0, (payload) => payload.fill(3));
    const between = parametersOf(run).slice();
    workers[1]!.push(0, (payload) => payload.fill(2));
    return { run, workers, before, between, after: parametersOf(run) };
  };

  test('a fresh one is used as it is, a stale one goes by the way since', () => {
    const { before, between, after } = pushTwo({
      ...{ correction: 'compensated', compensation: { adaptive: false, lambda: 0.5 } },
    });
    expect(between[0]).toBeCloseTo(before[0]! - 0.3, 5);
    // g + λ g² (w − w_bak) = 2 + 0.5 · 4 · (−0.3)
    expect(after[0]).toBeCloseTo(between[0]! - 0.1 * 1.4, 5);
  });

  test('a gap is measured in typical steps', () => {
    const { between, after } = pushTwo({ correction: 'gap' });
    // The only step so far was of 0.3 for each parameter, and so is the gap.
    expect(after[0]).toBeCloseTo(between[0]! - (0.1 * 2) / (1 + 1), 4);
  });

  test('a push of older parameters than those that were sent last is used as it is', () => {
    const config = { consistency: { correction: 'gap' }, learningRate: 0.1 } as const;
    const { run, workers } = begun(config, 2);
    for (const worker of workers) worker.pull(0, 1);
    workers[0]!.push(0, (payload) => payload.fill(3));
    const between = parametersOf(run).slice();
    // It comes back, and is sent the present ones before its push arrives once more.
    run.call({ call: 'assign', worker: workers[1]!.key, ahead: 1, now: 0 });
    workers[1]!.push(0, (payload) => payload.fill(2));
    expect(parametersOf(run)[0]).toBeCloseTo(between[0]! - 0.2, 5);
  });

  test('for more workers than there is room for it is said once, and the slot of one that has gone is used again', () => {
    const { run, workers } = begun({ consistency: { correction: 'gap' } }, 66);
    for (const worker of workers) worker.pull(0, 1);
    for (const worker of workers) worker.push();
    const told = run.takeEvents().filter(({ kind }) => kind === 'correction');
    expect(told).toEqual([
      { kind: 'correction', text: expect.stringContaining('the parameters of 64 workers') },
    ]);
    const owners = () => run.state(0).sent!.owners.map(([, worker]) => worker);
    expect(owners()).not.toContain('w65/1');
    run.call({ call: 'leave', worker: 'w3/1' });
    workers[65]!.pull(0, 1);
    expect(owners()).toContain('w65/1');
    expect(owners()).not.toContain('w3/1');
  });
});

/** To the end, in turns. @returns the minibatches that were used. */
function trainAll(run: Run, workers: readonly VirtualWorker[]): string[] {
  for (let i = 0; i < 10_000 && !run.over; i++) {
    for (const worker of workers) worker.pull();
    for (const worker of workers) worker.push();
  }
  return workers.flatMap(({ applied }) => applied);
}

const MODES: readonly PartialConfig['consistency'][] = [
  { mode: 'bounded', aheadMax: 0 },
  { mode: 'bounded', aheadMax: 2, stalenessMax: 3 },
  { mode: 'synchronous' },
  { mode: 'synchronous', aggregate: 'trimmedMean' },
  { mode: 'backup', spares: 2 },
  { mode: 'backup', quorum: 2, graceMs: 500 },
  { mode: 'buffered', bufferSize: 3 },
  { mode: 'buffered', bufferSize: 4, stalenessMax: 0, aggregate: 'median' },
  { mode: 'buffered', bufferSize: 3, correction: 'compensated' },
];

test('whoever comes, goes and is restarted: nothing is used twice or forgotten, and nobody waits for ever', () => {
  fc.assert(
    fc.property(
      fc.integer({ min: 0, max: 1e6 }),
      fc.constantFrom(...MODES),
      (seed, consistency) => {
        const small = createProblem();
        let run = createRun({
          ...{ epochsMax: 4, leaseSeconds: 1, earlyStopping: { enabled: false } },
          consistency: consistency!,
        });
        const draw = random(seed, 11);
        let incarnations = 0;
        const hire = () => new VirtualWorker(run, small, `w/${++incarnations}`);
        let workers = [hire(), hire(), hire(), hire()];
        /** In the order in which they counted. */
        let uses: string[] = [];
        let now = 0;
        const act = (disturbs: boolean) => {
          now += draw.below(200);
          const at = draw.below(4);
          const worker = workers[at]!;
          const event = disturbs ? draw.uniform() : 0.94 * draw.uniform();
          if (event < 0.45) worker.pull(now);
          else if (event < 0.93) {
            const outcome = worker.push(now)?.outcome;
            if (outcome === 'applied' || outcome === 'damped') uses.push(worker.applied.at(-1)!);
          } else if (event < 0.95) run.call({ call: 'tick', now: now });
          else if (event < 0.97) {
            run.call({ call: 'detach', worker: worker.key, now: now });
            workers[at] = hire();
          } else if (event < 0.99) {
            run.call({ call: 'leave', worker: worker.key });
            workers[at] = hire();
          } else if (run.hasParameters) {
            const { state, tensors } = saved(run, now);
            const before = bytesOf(parametersOf(run));
            run = Run.restore(state, tensors);
            expect(Buffer.from(bytesOf(parametersOf(run))).equals(before)).toBe(true);
            workers = workers.map(() => hire());
          }
        };
        for (let i = 0; i < 400 && !run.over; i++) act(true);
        for (let i = 0; i < 20_000 && !run.over; i++) act(false);
        // Minibatches of a step that was thrown away are used again.
        expect(run.phase).toBe('finished');
        expect(new Set(uses).size).toBe(20);
        expect(uses.length).toBe(20);
        expect(run.summary(now).examples).toBe(80);
        uses = [];
      },
    ),
    { numRuns: 300 },
  );
});
