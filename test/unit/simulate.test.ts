import { describe, expect, test } from 'vitest';
import { SharedCores } from '../../cli/simulate/events.ts';
import { LAWS, parseLaw, slowed, tracedLaw } from '../../cli/simulate/laws.ts';
import { MODES, parseModes } from '../../cli/simulate/modes.ts';
import { createQuadratic, curvatures } from '../../cli/simulate/quadratic.ts';
import {
  simulateRun,
  type VirtualClusterOptions,
  type VirtualOutcome,
} from '../../cli/simulate/virtual-cluster.ts';
import { parseChanges, parseFailures, parseNetwork } from '../../cli/simulate/world.ts';
import type { PartialConfig } from '../../shared/config.ts';
import { LIMITS } from '../../shared/limits.ts';
import { stalenessFacts } from '../../study/scale.ts';
import { deviationOf, meanOf } from '../../study/statistics.ts';

/** The simulator of scale, and the laws that it must obey. */

const problem = createQuadratic({ curvatures: curvatures(4, 0.1), noise: 0.1, start: 1 });

type Given = Partial<VirtualClusterOptions> & { readonly steps?: number; readonly law?: string };

function simulate({ steps = 4_000, law = 'constant:100', config, ...rest }: Given) {
  return simulateRun({
    ...{ problem, workers: 16, seed: 1, compute: parseLaw(law), ...rest },
    config: {
      ...{ learningRate: 0.001, minibatchSize: 1, stepsMax: steps, epochsMax: null },
      ...{ evaluateEverySteps: steps, leaseSeconds: 3_600, optimizer: { kind: 'sgd' } },
      ...{ earlyStopping: { enabled: false }, consistency: { correction: 'none' }, ...config },
    } as PartialConfig,
  });
}

/** Beyond the first pushes, of which the pulls were all at the same time. */
const lateStaleness = (staleness: readonly { readonly staleness: number }[], from: number) =>
  staleness.slice(from).map((step) => step.staleness);

async function observed(given: Given) {
  const steps: { staleness: number; nowMs: number; worker: number }[] = [];
  const outcome = await simulate({ ...given, onStep: (step) => void steps.push(step) });
  return { outcome, steps };
}

describe('laws', () => {
  test.each([
    ['exponential:100', 15.49],
    ['gamma:100', 1.94],
  ])(
    'with %s the staleness of N workers is N − 1 on average, as wide as its law',
    async (law, deviation) => {
      const { steps } = await observed({ law, steps: 20_000 });
      const late = lateStaleness(steps, 1_000);
      // 20,000 pushes: a standard error of 0.11 at most.
      expect(meanOf(late)).toBeCloseTo(15, 0);
      expect(Math.abs(meanOf(late) - 15)).toBeLessThan(0.35);
      expect(deviationOf(late) / deviation).toBeGreaterThan(0.95);
      expect(deviationOf(late) / deviation).toBeLessThan(1.05);
    },
  );

  test('with exponential times staleness is geometric', async () => {
    const { steps } = await observed({ law: 'exponential:100', steps: 20_000 });
    const late = lateStaleness(steps, 1_000);
    for (const s of [0, 5, 15, 30]) {
      const share = late.filter((value) => value >= s).length / late.length;
      // P(staleness ≥ s) = (1 − 1/N)^s.
      expect(Math.abs(share - (15 / 16) ** s)).toBeLessThan(0.015);
    }
  });

  test('the first K of 64 exponential workers come after H₆₄ − H₆₄₋ₖ', async () => {
    const sums = new Map([
      [64, 0],
      [60, 0],
    ]);
    const harmonic = (n: number) =>
      Array.from({ length: n }, (_, i) => 1 / (i + 1)).reduce((a, b) => a + b, 0);
    // They forget: what is left of a time is as long as a whole one, so a round may begin at any moment.
    const rounds = 150;
    let round = 0;
    let beganMs = 0;
    const first = new Map<number, number>();
    await simulate({
      ...{ workers: 64, law: 'exponential:1000', steps: 1_000_000 },
      onStep({ worker, nowMs }) {
        if (!first.has(worker)) first.set(worker, (nowMs - beganMs) / 1_000);
        if (first.size < 64) return;
        const times = [...first.values()].sort((a, b) => a - b);
        for (const [k, sum] of sums) sums.set(k, sum + times[k - 1]!);
        round++;
        beganMs = nowMs;
        first.clear();
      },
      until: () => round === rounds,
    });
    // Standard errors of 0.10 and 0.036.
    expect(Math.abs(sums.get(64)! / rounds - harmonic(64))).toBeLessThan(0.3);
    expect(Math.abs(sums.get(60)! / rounds - (harmonic(64) - harmonic(4)))).toBeLessThan(0.1);
  });

  test.each([4, 8, 11, 32, 128])(
    'no more than min(N / (Z + s), 1 / s) updates a second: %i workers',
    async (workers) => {
      const outcome = await simulate({
        workers,
        law: 'exponential:200',
        serviceMs: 20,
        steps: 5_000,
      });
      const perSecond = outcome.applied / (outcome.nowMs / 1_000);
      const most = Math.min(workers / 0.22, 50);
      // 5,000 updates: 2 % of chance.
      expect(perSecond).toBeLessThan(1.03 * most);
      // At the knee itself workers wait for each other.
      expect(perSecond).toBeGreaterThan((workers === 128 ? 0.98 : 0.75) * most);
      if (workers === 128) expect(outcome.serverBusy).toBeGreaterThan(0.99);
    },
  );
});

describe('compute times', () => {
  test.each(Object.keys(LAWS).filter((name) => !['ladder', 'speeds'].includes(name)))(
    '%s has the mean that was asked for',
    (name) => {
      const law = parseLaw(`${name}:50`);
      const means = Array.from({ length: 2_000 }, (_, i) => {
        const next = law.worker(i, 3);
        return meanOf(Array.from({ length: 40 }, next));
      });
      // Pareto with tail 2.5 has a deviation of 0.9 means: 80,000 draws.
      expect(Math.abs(meanOf(means) / 50 - 1)).toBeLessThan(0.04);
    },
  );

  test.each([
    ['gamma:100,0.6', 0.6],
    ['gamma:100,1.5', 1.5],
    ['gamma:100', 0.1],
    ['exponential:100', 1],
    ['constant:100', 0],
  ])('%s varies as it says', (text, cv) => {
    const times = Array.from({ length: 40_000 }, parseLaw(text).worker(0, 1));
    expect(Math.abs(deviationOf(times) / 100 - cv)).toBeLessThan(0.04);
  });

  test('a ladder, speeds, slow workers and traces give each worker its own', () => {
    const first = (law: ReturnType<typeof parseLaw>, i: number) => law.worker(i, 1)();
    expect([0, 1, 9].map((i) => first(parseLaw('ladder:2'), i))).toEqual([2, 4, 20]);
    const fast = parseLaw('speeds:100,1,4');
    const mean = (i: number) => meanOf(Array.from({ length: 500 }, fast.worker(i, 1)));
    expect(mean(0) / mean(1)).toBeCloseTo(4, 0);
    const slow = slowed(parseLaw('constant:10'), 1, 5);
    expect([0, 1].map((i) => first(slow, i))).toEqual([50, 10]);
    const traced = tracedLaw('trace', [[3], [7]]);
    expect([0, 1, 2].map((i) => first(traced, i))).toEqual([3, 7, 3]);
    expect(parseLaw('trace:x', () => '3\n4\n5').meanMs).toBe(4);
  });

  test.each([
    'poisson:5',
    'gamma',
    'gamma:0',
    'gamma:100,0',
    'gamma:100,0.1,7',
    'pareto:100,1',
    'speeds:100,0',
    'exponential:1e999',
    'constant:5,1',
  ])('%s is refused, with what is allowed', (text) => {
    expect(() => parseLaw(text)).toThrow(/--compute is .*allowed:\n {2}constant:ms/s);
  });

  test('an empty trace and one with zeros are refused', () => {
    expect(() => parseLaw('trace:x', () => ' \n')).toThrow(/no times/);
    expect(() => parseLaw('trace:x', () => '3 0')).toThrow(/has 0/);
  });
});

describe('the world', () => {
  test('is the same to the bit for the same seed, and another one for another', async () => {
    const given = {
      ...{
        law: 'exponential:100',
        steps: 2_000,
        serviceMs: 3,
        network: parseNetwork('latency=5,server=10'),
      },
      ...{ failures: parseFailures('every=20,away=2'), changes: parseChanges('5:+4,10:-2') },
      config: {
        optimizer: { kind: 'momentum' },
        consistency: { correction: 'auto' },
      } as PartialConfig,
    };
    const seen = ({ server, nowMs, staleness }: VirtualOutcome) =>
      JSON.stringify([server.summary(nowMs), server.metrics(), nowMs, staleness]);
    const first = seen(await simulate(given));
    expect(seen(await simulate(given))).toBe(first);
    expect(seen(await simulate({ ...given, seed: 2 }))).not.toBe(first);
  });

  test('latency and bandwidth make a round trip longer', async () => {
    const perSecond = async (given: Given) => {
      const { applied, nowMs } = await simulate({ workers: 1, steps: 200, ...given });
      return applied / (nowMs / 1_000);
    };
    expect(await perSecond({})).toBeCloseTo(10, 1);
    expect(await perSecond({ network: parseNetwork('latency=50') })).toBeCloseTo(5, 1);
    // 16 bytes each way at 0.00256 Mbit/s: 50 ms.
    expect(await perSecond({ network: parseNetwork('bandwidth=0.00256') })).toBeCloseTo(5, 1);
    expect(await perSecond({ network: parseNetwork('server=0.00256') })).toBeCloseTo(5, 1);
    // A line that all share carries one message after the other.
    const many = { workers: 8, steps: 800, network: parseNetwork('server=0.00256') };
    expect(await perSecond(many)).toBeCloseTo(20, 0);
    expect(await perSecond({ ...many, network: parseNetwork('bandwidth=0.00256') })).toBeCloseTo(
      40,
      0,
    );
  });

  test('processes share the cores of a machine', async () => {
    const perSecond = async (workers: number) => {
      const { applied, nowMs } = await simulate({ workers, cores: 2, steps: 1_000 });
      return applied / (nowMs / 1_000);
    };
    expect(await perSecond(1)).toBeCloseTo(10, 1);
    expect(await perSecond(2)).toBeCloseTo(20, 0);
    expect(await perSecond(8)).toBeCloseTo(20, 0);
    const cores = new SharedCores<string>(1);
    cores.add('long', 10, 0);
    cores.add('short', 2, 4);
    expect(cores.nextMs).toBe(8);
    expect(cores.pop()).toBe('short');
    expect(cores.nextMs).toBe(12);
  });

  test('a worker that is lost takes its gradient with it, and its minibatch is computed by others', async () => {
    const outcome = await simulate({
      ...{ law: 'gamma:1000', steps: 3_000, failures: parseFailures('every=30,away=5') },
    });
    expect(outcome.failures).toBeGreaterThan(50);
    expect(outcome.server.phase).toBe('finished');
    expect(outcome.applied).toBe(3_000);
    expect(outcome.unused).toBeGreaterThan(50);
    // 30 of 35 seconds there.
    const perSecond = outcome.applied / (outcome.nowMs / 1_000);
    expect(perSecond / 16).toBeGreaterThan(0.75);
    expect(perSecond / 16).toBeLessThan(0.9);
  });

  test('workers come and go', async () => {
    const { steps } = await observed({
      workers: 4,
      steps: 1_300,
      changes: parseChanges('10.05:+4,20.05:-6'),
    });
    const within = (from: number, to: number) =>
      steps.filter(({ nowMs }) => nowMs > from && nowMs <= to).length;
    expect(within(0, 10_000)).toBe(400);
    expect(within(10_050, 20_000)).toBeGreaterThan(780);
    expect(within(20_100, 21_100)).toBe(20);
  });

  test('nobody left is said in words', async () => {
    const gone = simulate({ workers: 2, changes: parseChanges('1.05:-2') });
    await expect(gone).rejects.toThrow(/no worker has anything left to do.*step 20/);
  });

  test.each([
    () => parseNetwork('latency=-1'),
    () => parseNetwork('bandwidth=0'),
    () => parseNetwork('speed=3'),
    () => parseFailures('away=3'),
    () => parseChanges('5:16'),
    () => parseModes('auto,best', []),
  ])('what is no world is refused: %s', (parse) => {
    expect(parse).toThrow(/allowed|write|must be above 0/);
  });

  test('gradients of all workers must fit in memory', async () => {
    const most = Math.floor(LIMITS.simulatedBytesMax / (4 * 2 ** 22));
    const large = {
      ...problem,
      tensors: [{ name: 'x', shape: [2 ** 22], role: 'trainable' as const }],
      initialise: () => new Float32Array(2 ** 22),
      gradient: (_: unknown, __: unknown, payload: Float32Array) => payload.length,
    };
    await expect(simulate({ problem: large, workers: most + 1 })).rejects.toThrow(
      new RegExp(`at most ${most} workers`),
    );
    const ended = await simulate({ problem: large, workers: most, until: () => true });
    expect(ended.events).toBe(1);
  });

  test('Ctrl-C ends it', async () => {
    const controller = new AbortController();
    const endless = simulate({
      ...{ steps: 1_000_000, signal: controller.signal },
      onProgress: () => controller.abort(),
    });
    await expect(endless).rejects.toThrow(/abort/i);
  });
});

test('more workers than a server lets in are applied all the same', async () => {
  const { steps } = await observed({ workers: 3_000, steps: 12_000, law: 'gamma:100' });
  expect(new Set(steps.map(({ worker }) => worker)).size).toBe(3_000);
  expect(meanOf(lateStaleness(steps, 9_000)) / 2_999).toBeCloseTo(1, 1);
});

test('compressed pushes and pulls are those of the production worker, and lighter', async () => {
  const wide = createQuadratic({ curvatures: curvatures(1_000, 0.1), noise: 0, start: 1 });
  const plainly = { kind: 'f32' };
  const of = async (push: object) => {
    const compression = { push, pull: push === plainly ? 'f32' : 'bf16' };
    const config = { learningRate: 0.1, compression } as PartialConfig;
    const { server, bytes, nowMs } = await simulate({
      problem: wide,
      workers: 4,
      steps: 600,
      config,
    });
    return { loss: server.summary(nowMs).validation!.loss!, bytes };
  };
  const [plain, topk] = [
    await of(plainly),
    await of({ kind: 'topk', density: 0.05, warmupEpochs: 0 }),
  ];
  expect(topk.bytes).toBeLessThan(0.35 * plain.bytes);
  // What is left out comes later.
  expect(topk.loss).toBeLessThan(0.05);
});

test('several pushes under way are refused, not simulated as one', async () => {
  const config = { consistency: { depth: 2 } } as PartialConfig;
  await expect(async () => simulate({ workers: 2, steps: 10, config })).rejects.toThrow(
    'consistency.depth is 2',
  );
});

test('modes are those that the configuration has', () => {
  expect(Object.keys(MODES)).toEqual(
    expect.arrayContaining(['async', 'auto', 'none', 'lookahead']),
  );
  expect(parseModes('auto,bound=4', [])).toEqual({
    auto: { consistency: { correction: 'auto' } },
    'bound=4': { consistency: { stalenessMax: 4 } },
  });
});

test('staleness is summed up from its histogram', () => {
  expect(stalenessFacts([1, 0, 2, 1])).toMatchObject({ mean: 7 / 4, p50: 2, max: 3 });
  expect(stalenessFacts([])).toBeNull();
});
