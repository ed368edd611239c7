import { expect, test } from 'vitest';
import { findRun } from '../../cli/trained/trained.ts';
import type { StudySummary } from '../../shared/rest.ts';
import { FakeServer } from '../support/fake-server.ts';

/** A server with runs of experiment `e`, in this order. */
async function serverWith(runs: readonly { id: string; study?: string }[]) {
  const server = new FakeServer(() => 1);
  for (const run of runs) {
    const body = { ...run, experiment: 'e', experimentHash: 'h', config: { epochsMax: 1 } };
    await server.client.createRun(body);
  }
  // Each has one evaluation, and so a best one.
  await server.client.status();
  return server;
}

test('the newest run of an experiment is found, and no trial of a study', async () => {
  const { client } = await serverWith([
    { id: 'a-first' },
    { id: 'b-second' },
    { id: 'curve-e-1a2b3c-q25-0', study: 'curve-e-1a2b3c' },
  ]);
  expect(await findRun({ client }, 'e.ts', undefined)).toBe('b-second');
  expect(await findRun({ client }, 'e.ts', 'curve-e-1a2b3c-q25-0')).toBe('curve-e-1a2b3c-q25-0');
});

test('trials that release 0.1.0 left are known by the study that the server was told of', async () => {
  const server = await serverWith([{ id: 'a-own' }, { id: 'search-e-1a2b3c-7' }]);
  expect(await findRun(server, 'e.ts', undefined)).toBe('search-e-1a2b3c-7');
  server.studies.push({ name: 'search-e-1a2b3c', run: null } as StudySummary);
  // A look at one model is no study that has made runs.
  server.studies.push({ name: 'a', run: 'a-own' } as StudySummary);
  expect(await findRun(server, 'e.ts', undefined)).toBe('a-own');
});

test('where there are trials alone, the refusal says so and names one', async () => {
  const server = await serverWith([{ id: 'folds-e-0', study: 'folds-e' }]);
  await expect(findRun(server, 'e.ts', undefined)).rejects.toMatchObject({
    code: 'DP_RUN_UNKNOWN',
    message: expect.stringContaining('--run folds-e-0'),
  });
  await expect(findRun(server, 'other.ts', undefined)).rejects.toThrow('train it first');
});
