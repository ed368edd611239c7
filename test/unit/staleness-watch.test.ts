import { describe, expect, test } from 'vitest';
import { StalenessWatch, stableLimit } from '../../server/core/staleness-watch.ts';
import type { PartialConfig } from '../../shared/config.ts';
import { createProblem, createRun, VirtualWorker } from '../support/regression.ts';

describe('the stable limit', () => {
  /** Whether θ comes to rest on a quadratic, with gradients that are `staleness` steps old. */
  function rests(product: number, momentum: number, staleness: number): boolean {
    const past = Array.from({ length: staleness + 1 }, () => 1);
    let v = 0;
    const steps = 4_000 * (staleness + 1);
    for (let step = 0; step < steps; step++) {
      v = momentum * v - product * past[0]!;
      past.push(past.at(-1)! + v);
      past.shift();
      if (!(Math.abs(v) < 1e6)) return false;
    }
    return Math.abs(past.at(-1)!) < 1;
  }

  test.each([
    [0, 0],
    [0, 1],
    [0, 15],
    [0.5, 3],
    [0.9, 0],
    [0.9, 1],
    [0.9, 7],
    [0.9, 15],
    [0.99, 31],
  ])('with momentum %s and staleness %s is where updates come to rest', (momentum, staleness) => {
    const limit = stableLimit(momentum, staleness);
    expect(rests(0.98 * limit, momentum, staleness)).toBe(true);
    expect(rests(1.02 * limit, momentum, staleness)).toBe(false);
  });

  test('without staleness is that of the textbook', () => {
    for (const momentum of [0, 0.5, 0.9]) {
      expect(stableLimit(momentum, 0)).toBeCloseTo(2 * (1 + momentum), 10);
    }
  });
});

const plain = { momentum: 0.9, isCorrected: false, mayCorrect: true } as const;

function watched(
  updates: number,
  { workers, staleness = workers - 1 }: { workers: number; staleness?: number },
  loss: (update: number) => number,
  watch = new StalenessWatch(),
): StalenessWatch {
  // With the noise of minibatches.
  for (let i = 0; i < updates; i++) {
    watch.applied(workers, staleness, loss(i) * (1 + 0.3 * Math.sin(37 * i)));
  }
  return watch;
}
const flat = () => 2.3;
const falling = (update: number) => 0.2 + 2.1 * Math.exp(-update / 150);

describe('what speaks against many workers', () => {
  test('staleness and momentum, before the loss shows anything', () => {
    const watch = watched(16 * 5, { workers: 16 }, falling);
    const hint = watch.hint(plain)!;
    expect(hint).toContain('16 workers, whose gradients are 15 steps stale and momentum 0.9');
    expect(hint).toMatch(/about 1\/4[78]\d of one worker's/);
    expect(hint).toContain("set consistency.correction to 'auto'");
  });

  test('a loss above the first ones, with look-ahead too', () => {
    const watch = watched(16 * 6, { workers: 16 }, (i) => (i < 20 ? 2.3 : 6));
    for (const isCorrected of [false, true]) {
      expect(watch.hint({ ...plain, isCorrected })).toContain('the updates are not stable');
    }
  });

  test('a loss that stands still from the beginning, or since more workers came', () => {
    const facts = { ...plain, momentum: 0 };
    const still = watched(16 * 30, { workers: 16 }, () => 2.1);
    expect(still.hint(facts)).toContain('has stood still since 16 workers take part');
    const watch = watched(400, { workers: 1 }, (i) => 2.3 - 0.002 * i);
    expect(watch.hint(facts)).toBeNull();
    watched(16 * 30, { workers: 16 }, () => 1.55, watch);
    expect(watch.hint(facts)).toContain('has stood still since 16 workers');
  });

  test.each<[string, StalenessWatch, Partial<typeof plain> | object]>([
    ['one worker at a plateau', watched(5_000, { workers: 1 }, flat), {}],
    ['two workers at a plateau', watched(5_000, { workers: 2 }, flat), {}],
    ['the noise of the first updates', watched(20, { workers: 16 }, (i) => (i % 2 ? 9 : 1)), {}],
    ['a few rounds', watched(60, { workers: 16 }, flat), {}],
    ['four workers that learn', watched(900, { workers: 4 }, falling), {}],
    ['plain SGD that learns', watched(900, { workers: 16 }, falling), { momentum: null }],
    ['look-ahead that learns', watched(900, { workers: 16 }, falling), { isCorrected: true }],
    ['look-ahead on a hard problem', watched(900, { workers: 16 }, flat), { isCorrected: true }],
    ['many that hardly work', watched(900, { workers: 16, staleness: 1 }, flat), {}],
    [
      'a training that has arrived',
      watched(900, { workers: 16 }, () => 0.2, watched(900, { workers: 1 }, falling)),
      { momentum: null },
    ],
  ])('is not %s', (_, watch, facts) => {
    expect(watch.hint({ ...plain, ...facts })).toBeNull();
  });

  test('is not said of fresh parameters for what the old ones did, and is the same after a restart', () => {
    const watch = watched(16 * 30, { workers: 16 }, flat);
    const later = new StalenessWatch();
    later.restore(JSON.parse(JSON.stringify(watch.state())));
    expect(later.hint(plain)).toBe(watch.hint(plain));
    expect(later.state()).toEqual(watch.state());
    later.reset();
    expect(later.hint(plain)).toBeNull();
  });

  test('more workers than look-ahead was measured with', () => {
    const facts = { ...plain, isCorrected: true };
    expect(watched(400, { workers: 40 }, falling).hint(facts)).toBeNull();
    expect(watched(410, { workers: 41 }, falling).hint(facts)).toContain('41 workers are more');
  });
});

describe('a run', () => {
  const problem = createProblem({ train: 400, validation: 10, test: 10 });
  function trained(config: PartialConfig, count: number) {
    const run = createRun({ ...config, stepsMax: 640, evaluateEverySteps: 100_000 });
    const workers = Array.from(
      { length: count },
      (_, i) => new VirtualWorker(run, problem, `w${i}/1`),
    );
    workers[0]!.pull();
    const hints: (string | null)[] = [];
    while (!run.over && run.step < 640) {
      for (const worker of workers) worker.pull(0, 1);
      for (const worker of workers) worker.push();
      hints.push(run.summary(0).hint);
    }
    return { run, hints };
  }
  const momentum = { optimizer: { kind: 'momentum', momentum: 0.9 }, learningRate: 0.02 } as const;

  test('of sixteen workers without correction warns within ten rounds; with it, and alone, never', () => {
    const { hints } = trained({ ...momentum, consistency: { correction: 'none' } }, 16);
    expect(hints.findIndex((hint) => hint !== null)).toBeLessThan(10);
    expect(trained(momentum, 16).hints.filter((hint) => hint !== null)).toEqual([]);
    expect(trained(momentum, 1).hints.filter((hint) => hint !== null)).toEqual([]);
  });

  test('that is over says nothing of it', () => {
    const { run } = trained({ ...momentum, consistency: { correction: 'none' } }, 16);
    const worker = new VirtualWorker(run, problem, 'w0/1');
    worker.train();
    expect(run.phase).toBe('finished');
    expect(run.summary(0).hint).toBeNull();
  });
});
