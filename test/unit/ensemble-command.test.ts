import { join } from 'node:path';
import { expect, test } from 'vitest';
import { ensembleCommand } from '../../cli/study/ensemble.ts';
import { ROOT } from '../../shared/own-files.ts';

// The cars have no test part.
const CARS = join(new URL(ROOT).pathname, 'examples/csv-regression.ts');

test.each([
  ['before members are trained', { members: 'seeds:2' }],
  ['before members are asked', { members: '', runs: ['first', 'second'] }],
])('`ensemble --test` refuses data without a test part %s', async (_, members) => {
  // Nobody listens there: to ask a server would be another error.
  const nowhere = { server: 'http://127.0.0.1:1', state: '/nowhere', stateGiven: false };
  const own = { workers: 1, workersPerTrial: 1, tolerance: 0, recall: 0.5, halfSeed: 1 };
  const ended = ensembleCommand(CARS, {
    ...{ ...nowhere, ...own, ...members, cycleEpochs: 1, test: true, quiet: true },
  });
  await expect(ended).rejects.toMatchObject({
    code: 'DP_EXPERIMENT_INVALID',
    message: expect.stringContaining('has no test part to look at'),
  });
});
