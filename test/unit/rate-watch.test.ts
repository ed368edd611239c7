import { describe, expect, test } from 'vitest';
import { parseLaw } from '../../cli/simulate/laws.ts';
import { createQuadratic, curvatures } from '../../cli/simulate/quadratic.ts';
import { simulateRun } from '../../cli/simulate/virtual-cluster.ts';
import type { PartialConfig } from '../../shared/config.ts';

/** The hint that updates of several pushes bear a higher rate, from real steps of the production run. */

async function hintOf(config: PartialConfig, noise: number, workers = 16) {
  const problem = createQuadratic({ curvatures: curvatures(40, 0.5), noise, start: 10 });
  const { server, nowMs } = await simulateRun({
    ...{ problem, workers, seed: 1, compute: parseLaw('gamma:100') },
    config: {
      ...{ learningRate: 0.005, minibatchSize: 1, stepsMax: 400, epochsMax: null },
      ...{ evaluateEverySteps: 400, leaseSeconds: 3_600, optimizer: { kind: 'sgd' } },
      ...{ earlyStopping: { enabled: false }, ...config },
    } as PartialConfig,
    // The run is still training: that is when a hint is of use.
    until: ({ step }) => step >= 60,
  });
  return server.summary(nowMs).hint;
}

/** Standard deviation of each coordinate of a gradient, whose own are 10 at first: much noise, and hardly any. */
const [NOISY, EXACT] = [20, 0.1];
const WANTED = /each update is the mean of \d+ pushes.*Try learningRate 0\.\d+ \(now 0\.00/;

describe('the rate of one worker', () => {
  test.each([
    ['synchronous', { mode: 'synchronous' }],
    ['backup', { mode: 'backup', spares: 2 }],
    ['buffered', { mode: 'buffered', bufferSize: 16, correction: 'none' }],
  ] as const)('is noticed in mode %s', async (_, consistency) => {
    expect(await hintOf({ consistency }, NOISY)).toMatch(WANTED);
  });

  test('is noticed with momentum', async () => {
    const momentum: PartialConfig = {
      optimizer: { kind: 'momentum', momentum: 0.9 },
      learningRate: 0.0005,
    };
    const config = { consistency: { mode: 'synchronous' as const }, ...momentum };
    expect(await hintOf(config, NOISY)).toContain('Try learningRate 0.00');
  });

  test('is raised by no more than there are pushes in an update', async () => {
    const hint = await hintOf({ consistency: { mode: 'synchronous' } }, NOISY);
    const [, to] = /Try learningRate ([\d.]+)/.exec(hint!)!;
    expect(Number(to)).toBeGreaterThan(2 * 0.005);
    expect(Number(to)).toBeLessThanOrEqual(16 * 0.005);
  });
});

describe('nothing is said', () => {
  const synchronous = { mode: 'synchronous' } as const;

  test('where the gradients of workers agree: there is no noise that a mean would lower', async () => {
    expect(await hintOf({ consistency: synchronous }, EXACT)).toBeNull();
  });

  test('where the rate is as high already as the curvature allows', async () => {
    const config = { consistency: synchronous, learningRate: 0.8 };
    expect(await hintOf(config, NOISY)).toBeNull();
  });

  test.each([
    ['each push is an update', { consistency: { mode: 'async', correction: 'none' } }, 16],
    ['one worker trains', { consistency: synchronous }, 1],
    [
      'the optimizer scales the rate itself',
      { consistency: synchronous, optimizer: { kind: 'adam' } },
      16,
    ],
    ['gradients are clipped', { consistency: synchronous, clip: { norm: 1 } }, 16],
  ] as const)('where %s', async (_, config, workers) => {
    expect(await hintOf(config as PartialConfig, NOISY, workers)).toBeNull();
  });
});
