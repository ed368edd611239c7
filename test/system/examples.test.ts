import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { openEngine } from '../../worker/engine.ts';
import { Cluster } from '../support/cluster.ts';

const EXAMPLES = join(import.meta.dirname, '..', '..', 'examples');
const names = readdirSync(EXAMPLES).filter((name) => name.endsWith('.ts'));

let cluster: Cluster;
beforeAll(async () => {
  cluster = await Cluster.start(await openEngine({ engine: 'wasm' }));
});
afterAll(() => cluster.close());

/** Enough to see each of them learn. */
const STEPS = 40;

test.each(names)('examples/%s trains on real data, on two workers', async (name) => {
  const id = name.replace('.ts', '');
  await cluster.createRun(id, join(EXAMPLES, name), {
    ...(await configOf(name)),
    stepsMax: STEPS,
    evaluateEverySteps: STEPS / 4,
  });
  const dataFolder = process.env.DOWNPOUR_DATA ?? cluster.folder;
  const workers = [1, 2].map((i) =>
    cluster.work(id, `${id}-${i}`, { folders: [EXAMPLES], dataFolder }),
  );
  await Promise.all(workers.map(({ done }) => done));
  const run = await cluster.client.run(id);
  expect(run).toMatchObject({ phase: 'finished', step: STEPS });
  // What the other worker had under way when the last step was taken.
  expect(run.pushes.rejected).toBeLessThanOrEqual(1);
  const { evaluations } = await cluster.client.metrics(id);
  const validation = evaluations.filter((evaluation) => evaluation.part === 'validation');
  expect(validation.at(-1)!.loss).toBeLessThan(0.8 * validation[0]!.loss!);
  // The cars have no test part.
  expect(run.test?.examples ?? 0).toBe(run.data?.testCount);
  if (run.test) expect(run.test.loss).toBeLessThan(validation[0]!.loss!);
});

/** The configuration that the example itself asks for. */
async function configOf(name: string) {
  const { loadExperiment } = await import('../../worker/experiment.ts');
  return (await loadExperiment(join(EXAMPLES, name))).config ?? {};
}
