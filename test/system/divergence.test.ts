import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import type { PartialConfig } from '../../shared/config.ts';
import { openEngine } from '../../worker/engine.ts';
import { Cluster, FIXTURES } from '../support/cluster.ts';

/** The guard against divergence with real workers, on real data: miles per gallon of 392 cars. */

const FILE = join(FIXTURES, 'cars.ts');
/** Five hundred times what it should be. */
const TOO_HIGH: PartialConfig = { learningRate: 5, earlyStopping: { patience: 20 } };

let cluster: Cluster;
beforeAll(async () => {
  cluster = await Cluster.start(await openEngine({ engine: 'cpu' }));
});
afterAll(() => cluster.close());

async function train(id: string, config: PartialConfig) {
  await cluster.createRun(id, FILE, { ...TOO_HIGH, epochsMax: 40, ...config });
  const workers = [1, 2].map((i) => cluster.work(id, `${id}-${i}`));
  await Promise.allSettled(workers.map(({ done }) => done));
  return cluster.client.run(id);
}

test('a learning rate that is far too high fails a run that may not go back', async () => {
  const run = await train('fails', { divergence: { rollbacksMax: 0 } });
  expect(run.phase).toBe('failed');
  expect(run.rollbacks).toEqual([]);
});

test('else it is lowered until training converges, and REST tells each rollback', async () => {
  const run = await train('goes-back', {});
  expect(run.phase).toBe('finished');
  expect(run.rollbacks.length).toBeGreaterThan(0);
  for (const [i, { learningRate, reason }] of run.rollbacks.entries()) {
    expect(learningRate).toBeCloseTo(5 * 0.25 ** (i + 1), 12);
    expect(reason).toMatch(/NaN or infinite|overflow/);
  }
  expect(run.learningRate).toBe(run.rollbacks.at(-1)!.learningRate);
  // Always saying the mean has a squared error of 60.
  expect(run.best!.loss).toBeLessThan(30);
  // The curve knows the rates as well.
  const { training } = await cluster.client.metrics('goes-back');
  expect(new Set(training.learningRate).size).toBeGreaterThan(1);
});
