import { expect, test } from 'vitest';
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
import { resolveConfig } from '../../shared/config.ts';
import type { RunDetail } from '../../shared/rest.ts';
import type { ScaledRun } from '../../study/scale.ts';

/** A law that is fitted to what a run has kept of its own times predicts what other numbers of workers do. */

const problem = createQuadratic({ curvatures: [1], noise: 0, start: 1 });

const simulate = (workers: number, world: Partial<VirtualClusterOptions>) =>
  simulateRun({
    ...{ problem, workers, seed: 5, compute: parseLaw('gamma:40,0.5'), ...world },
    config: {
      ...{ learningRate: 0.001, minibatchSize: 1, stepsMax: 3_000, evaluateEverySteps: 3_000 },
      ...{
        epochsMax: null,
        earlyStopping: { enabled: false },
        consistency: { correction: 'none' },
      },
    },
  });

/** As a server tells of it. */
const told = ({ server, nowMs }: VirtualOutcome) => ({
  run: async () =>
    ({ ...server.summary(nowMs), config: resolveConfig({ seed: 1 }) }) as unknown as RunDetail,
  metrics: async () => server.metrics(),
});

const asRun = (workers: number, { server, nowMs, staleness }: VirtualOutcome): ScaledRun => ({
  ...{ workers, mode: 'auto', seed: 1, phase: 'finished', reason: '', evaluations: [], test: null },
  ...{ step: server.step, seconds: nowMs / 1_000, staleness, used: null, serverBusy: null },
});

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

test('the error of a prediction is said with both numbers', () => {
  const seen = {
    ...asRun(4, { server: { step: 100 }, nowMs: 10_000, staleness: [0, 0, 0, 5] } as never),
    ...{
      run: 'r',
      config: resolveConfig({}),
      computeMs: [],
      updatesPerSecond: 8,
      stalenessMean: 3,
    },
  } as Recorded;
  const errors = predictionErrors([seen], [seen], { metric: 'error', target: null });
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
