import { describe, expect, test } from 'vitest';
import { type ComputeLaw, parseLaw } from '../../cli/simulate/laws.ts';
import { createQuadratic, curvatures } from '../../cli/simulate/quadratic.ts';
import { simulateRun, type VirtualClusterOptions } from '../../cli/simulate/virtual-cluster.ts';
import type { PartialConfig } from '../../shared/config.ts';

/** What the modes cost and bring, in virtual time, with the production code of the server. */

const problem = createQuadratic({ curvatures: curvatures(4, 0.1), noise: 0.1, start: 1 });

type Given = Partial<VirtualClusterOptions> & {
  readonly consistency: NonNullable<PartialConfig['consistency']>;
  readonly steps: number;
  readonly law: string;
};

async function simulate({ steps, law, consistency, ...rest }: Given) {
  const outcome = await simulateRun({
    ...{ problem, seed: 1, workers: 32, compute: parseLaw(law), ...rest },
    config: {
      ...{ learningRate: 0.001, minibatchSize: 1, stepsMax: steps, epochsMax: null },
      ...{ evaluateEverySteps: steps, leaseSeconds: 3_600, optimizer: { kind: 'sgd' } },
      ...{ earlyStopping: { enabled: false }, consistency },
    } as PartialConfig,
  });
  const summary = outcome.server.summary(outcome.nowMs);
  return { ...outcome, step: summary.step, summary, seconds: outcome.nowMs / 1_000 };
}

/** Each worker always takes as long. */
const lawOf = (ms: (worker: number) => number): ComputeLaw => ({
  ...{ text: 'own', meanMs: 1_000 },
  worker: (index) => () => ms(index),
});

describe('bounded', () => {
  /** Read off other simulations of the same law: 32 workers, exponential times of mean 1, updates in that time. */
  test.each([
    [0, 8.0],
    [3, 19.6],
    [10, 27.0],
    [100, 32.2],
  ])('by %i gives %d updates in the time of one gradient', async (aheadMax, wanted) => {
    const { step, seconds } = await simulate({
      ...{ consistency: { mode: 'bounded', aheadMax }, law: 'exponential:1000', steps: 12_000 },
    });
    // A bound of 100 is reached after a while only, and 12,000 exponential times are 1 % of chance.
    expect(step / seconds / wanted).toBeGreaterThan(0.95);
    expect(step / seconds / wanted).toBeLessThan(1.05);
  });
});

describe('synchronous', () => {
  test('a round takes as long as the slowest of its workers: H₃₂ of exponential ones', async () => {
    const { step, seconds, summary, applied, unused } = await simulate({
      ...{ consistency: { mode: 'synchronous' }, law: 'exponential:1000', steps: 600 },
    });
    const harmonic = Array.from({ length: 32 }, (_, i) => 1 / (i + 1)).reduce((a, b) => a + b, 0);
    // A standard error of 0.05.
    expect(Math.abs(seconds / step - harmonic)).toBeLessThan(0.16);
    expect(summary.examples).toBe(32 * step);
    expect(applied).toBe(32 * step);
    expect(unused).toBeLessThanOrEqual(32);
    expect(summary.staleness!.max).toBe(0);
  });

  test('workers are lost, come back and leave, and no round waits for them for long', async () => {
    const { step, seconds } = await simulate({
      ...{ consistency: { mode: 'synchronous' }, law: 'constant:1000', steps: 200, workers: 8 },
      failures: { everySeconds: 40, awaySeconds: 30 },
      changes: [
        { atSeconds: 50, workers: -3 },
        { atSeconds: 90, workers: 4 },
      ],
    });
    expect(step).toBe(200);
    // One that is lost is waited for five seconds, every five seconds at most.
    expect(seconds).toBeLessThan(200 * 8);
  });
});

describe('backup', () => {
  test('one slow worker of nine holds nobody up', async () => {
    const compute = lawOf((index) => (index === 0 ? 50_000 : 1_000));
    const given = { workers: 9, law: 'constant:1000', steps: 100, compute };
    const backup = await simulate({ ...given, consistency: { mode: 'backup', spares: 1 } });
    const all = await simulate({ ...given, consistency: { mode: 'synchronous' }, steps: 10 });
    expect(backup.seconds / backup.step).toBeLessThan(1.1);
    expect(all.seconds / all.step).toBeGreaterThan(45);
  });

  test('a quorum waits its time for more and no longer', async () => {
    const compute = lawOf((index) => 1_000 + 300 * index);
    const { seconds, step, summary } = await simulate({
      ...{ workers: 3, law: 'constant:1', compute, steps: 50 },
      consistency: { mode: 'backup', quorum: 1, graceMs: 400 },
    });
    // The first after 1 s, the second in the 0.4 s after it, the third too late.
    expect(seconds / step).toBeCloseTo(1.4, 1);
    expect(summary.examples / step).toBeCloseTo(2, 0);
  });
});

describe('buffered', () => {
  test('takes as many gradients in the same time as asynchronous steps do, and wastes none', async () => {
    const given = { law: 'exponential:1000' };
    const plain = await simulate({ ...given, steps: 6_000, consistency: { mode: 'async' } });
    const buffered = await simulate({
      ...{ ...given, steps: 600, consistency: { mode: 'buffered', bufferSize: 10 } },
    });
    expect(buffered.seconds / plain.seconds).toBeGreaterThan(0.95);
    expect(buffered.seconds / plain.seconds).toBeLessThan(1.05);
    expect(buffered.summary.examples).toBe(6_000);
    expect(buffered.applied).toBe(6_000);
  });
});
