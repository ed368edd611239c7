import { expect, test } from 'vitest';
import { scaledRun } from '../../cli/simulate/conduct.ts';
import { parseLaw } from '../../cli/simulate/laws.ts';
import {
  errorsText,
  fitWorld,
  predictionErrors,
  type Recorded,
  readRecorded,
} from '../../cli/simulate/prediction.ts';
import { createQuadratic } from '../../cli/simulate/quadratic.ts';
import {
  simulateRun,
  type VirtualClusterOptions,
  type VirtualOutcome,
} from '../../cli/simulate/virtual-cluster.ts';
import { type PartialConfig, resolveConfig } from '../../shared/config.ts';
import type { RunDetail } from '../../shared/rest.ts';
import type { ScaledRun } from '../../study/scale.ts';

/** A law that is fitted to what a run has kept of its own times predicts what other numbers of workers do. */

const problem = createQuadratic({ curvatures: [1], noise: 0, start: 1 });

type Mode = NonNullable<PartialConfig['consistency']>;
const ASYNC: Mode = { correction: 'none' };

/** Updates of a run; of one in rounds fewer, since each takes many gradients. */
const [UPDATES, ROUNDS] = [3_000, 500];

const simulate = (
  workers: number,
  world: Partial<VirtualClusterOptions>,
  consistency = ASYNC,
  steps = UPDATES,
  more: PartialConfig = {},
) =>
  simulateRun({
    ...{ problem, workers, seed: 5, compute: parseLaw('gamma:40,0.5'), ...world },
    config: {
      ...{ learningRate: 0.001, minibatchSize: 1, stepsMax: steps, evaluateEverySteps: steps },
      ...{ epochsMax: null, earlyStopping: { enabled: false }, consistency, ...more },
    },
  });

/** As a server tells of it. */
const told = (
  { server, nowMs }: VirtualOutcome,
  consistency = ASYNC,
  config: PartialConfig = {},
) => ({
  run: async () =>
    ({
      ...server.summary(nowMs),
      config: resolveConfig({ seed: 1, minibatchSize: 1, consistency }, config),
    }) as unknown as RunDetail,
  metrics: async () => server.metrics(),
});

const asRun = (workers: number, outcome: VirtualOutcome): ScaledRun =>
  scaledRun({ workers, mode: 'auto', seed: 1 }, outcome);

test.each([
  ['async', ASYNC, 3],
  ['synchronous', { mode: 'synchronous', correction: 'none' }, 0],
] as const)(
  'with local steps times are of a minibatch, and 8 workers are predicted from 4: %s',
  async (_, consistency, steps) => {
    const local = { local: { steps: 6 } };
    const world = { network: { latencyMs: 60, bandwidth: Infinity, serverBandwidth: Infinity } };
    const seen = await simulate(4, world, consistency, ROUNDS, local);
    const recorded = await readRecorded(told(seen, consistency, local), 'seen');
    expect(recorded.workers).toBe(4);
    // The law has a mean of 40 ms for a minibatch, and a lease is of six.
    const mean = recorded.computeMs.reduce((sum, ms) => sum + ms, 0) / recorded.computeMs.length;
    expect(Math.abs(mean / 40 - 1)).toBeLessThan(0.05);
    expect(recorded.stalenessMean).toBeCloseTo(steps, 0);
    const fitted = fitWorld(recorded);
    const real = await readRecorded(
      told(await simulate(8, world, consistency, ROUNDS, local), consistency, local),
      'other',
    );
    const predicted = await simulate(8, fitted, consistency, ROUNDS, local);
    const errors = predictionErrors([real], [asRun(8, predicted)], {
      metric: 'error',
      target: null,
    });
    for (const { error } of errors) expect(Math.abs(error)).toBeLessThan(0.1);
  },
);

test.each([
  [
    'a machine each, and a network',
    { network: { latencyMs: 15, bandwidth: Infinity, serverBandwidth: Infinity } },
  ],
  ['two cores for all of them', { cores: 2 }],
] as const)('16 workers are predicted from 4 within 10 %%: %s', async (_, world) => {
  const recorded = await readRecorded(told(await simulate(4, world)), 'seen');
  expect(recorded.workers).toBe(4);
  expect(recorded.computeMs.length).toBeGreaterThan(500);
  const { cores } = world as { readonly cores?: number };
  const fitted = fitWorld(recorded, cores);
  const real = await readRecorded(told(await simulate(16, world)), 'other');
  const predicted = await simulate(16, { ...fitted, ...(cores === undefined ? {} : { cores }) });
  const errors = predictionErrors([real], [asRun(16, predicted)], {
    metric: 'error',
    target: null,
  });
  expect(errors.map(({ what }) => what)).toEqual(['updates/s', 'staleness']);
  for (const { error } of errors) expect(Math.abs(error)).toBeLessThan(0.1);
});

const NETWORK = { network: { latencyMs: 15, bandwidth: Infinity, serverBandwidth: Infinity } };

test.each([
  ['synchronous, a machine each', { mode: 'synchronous' }, NETWORK],
  ['synchronous, two cores for all', { mode: 'synchronous' }, { cores: 2 }],
  ['backup, one spare', { mode: 'backup', spares: 1 }, NETWORK],
  ['buffered', { mode: 'buffered', bufferSize: 4, correction: 'none' }, NETWORK],
] as const)('updates of several pushes are predicted, too: %s', async (_, mode, world) => {
  const run = (workers: number, inside: Partial<VirtualClusterOptions>) =>
    simulate(workers, inside, mode, ROUNDS);
  // How many take part in rounds is seen; a buffer takes pushes of any.
  const fixed = mode.mode === 'buffered' ? { workersMin: 4, workersMax: 4 } : {};
  const recorded = await readRecorded(told(await run(4, world), mode, fixed), 'seen');
  expect(recorded.workers).toBe(4);
  const { cores } = world as { readonly cores?: number };
  const fitted = fitWorld(recorded, cores);
  const many = { workersMin: 16, workersMax: 16 };
  const real = await readRecorded(told(await run(16, world), mode, many), 'other');
  const predicted = await run(16, { ...fitted, ...(cores === undefined ? {} : { cores }) });
  const [speed] = predictionErrors([real], [asRun(16, predicted)], {
    ...{ metric: 'error', target: null },
  });
  expect(speed!.what).toBe('updates/s');
  expect(Math.abs(speed!.error)).toBeLessThan(0.1);
});

test.each([
  ['a machine each', undefined],
  ['two cores for all of them', 2],
])(
  'a run with slow evaluations and cold processes predicts itself, and 16 workers: %s',
  async (_, cores) => {
    const own = cores === undefined ? {} : { cores };
    // Each takes as long as a tenth of the run, the first gradients as long as 40 others.
    const world = { ...own, evaluationMs: 6_000 / (cores ?? 1), warmUpMs: 1_600 };
    const more = { evaluateEverySteps: UPDATES / 3 };
    const run = (workers: number, inside: Partial<VirtualClusterOptions>) =>
      simulate(workers, inside, ASYNC, UPDATES, more);
    const seen = await run(4, world);
    const recorded = await readRecorded(told(seen), 'seen');
    const fitted = { ...fitWorld(recorded, cores), ...own };
    expect(fitted.evaluationMs! / world.evaluationMs).toBeCloseTo(1, 1);
    expect(fitted.warmUpMs / world.warmUpMs).toBeCloseTo(1, 0);
    const real = [recorded, await readRecorded(told(await run(16, world)), 'other')];
    const predicted = [await run(4, fitted), await run(16, fitted)];
    const target = real[0]!.evaluations[1]!.loss!;
    const errors = predictionErrors(
      real,
      predicted.map((outcome, i) => asRun([4, 16][i]!, outcome)),
      { metric: 'loss', target },
    );
    expect(errors.map(({ what }) => what).slice(0, 3)).toEqual([
      ...['updates/s', 'staleness', 'seconds to the target'],
    ]);
    for (const { error } of errors) expect(Math.abs(error)).toBeLessThan(0.1);
    // The fitted run itself: what is compared is the same on both sides.
    for (const { error } of errors.slice(0, 3)) expect(Math.abs(error)).toBeLessThan(0.05);
  },
);

test('a run that is fitted to and compared with is told of once', async () => {
  const recorded = await readRecorded(told(await simulate(4, {})), 'seen');
  const again = { ...recorded };
  const errors = predictionErrors([recorded, again], [recorded], { metric: 'error', target: null });
  expect(errors.map(({ what }) => what)).toEqual(['updates/s', 'staleness']);
});

test('the error of a prediction is said with both numbers', () => {
  const own: ScaledRun = {
    ...{ workers: 4, mode: 'auto', seed: 1, phase: 'finished', reason: '', evaluations: [] },
    ...{ step: 100, seconds: 12, updatesPerSecond: 10, staleness: [0, 0, 0, 5], test: null },
    ...{ used: null, serverBusy: null },
  };
  const seen: Recorded = {
    ...{ ...own, run: 'r', config: resolveConfig({}), computeMs: [], updatesPerSecond: 8 },
    ...{ minibatchesPerUpdate: 1, stalenessMean: 3, warmUpMs: 0, evaluationMs: 0, evaluating: 0 },
  };
  const errors = predictionErrors([seen], [own], { metric: 'error', target: null });
  expect(errorsText(errors, 'r')).toBe(
    'Run r, which it was fitted to, 4 workers: updates/s 10 predicted, 8 seen (+25.0 %); staleness 3 predicted, 3 seen (+0.0 %).',
  );
});

test('a run without times is refused', async () => {
  const outcome = await simulate(2, { until: ({ step }) => step === 50 });
  await expect(readRecorded(told(outcome), 'short')).rejects.toThrow(
    /times of 50 pushes; at least 100/,
  );
});
