import { expect, test } from 'vitest';
import { followRun } from '../../cli/runs/follow.ts';
import type { Pool } from '../../cli/workers/pool.ts';
import type { RunDetail, WorkerFailureFacts } from '../../shared/rest.ts';
import type { RestClient } from '../../shared/rest-client.ts';

/** What `train` and `resume` say of a run while they watch it. */

const failure = (worker: string, at: string): WorkerFailureFacts => ({
  ...{ worker, at, code: 'DP_DATA_CORRUPT', message: 'row 3 is cut: mend it' },
  ...{ step: 7, count: 1 },
});

/** What was said of a run that had these failures, one after another. */
async function saidOf(failures: readonly (WorkerFailureFacts | null)[], pool: Partial<Pool> = {}) {
  const left = [...failures];
  const notes: string[] = [];
  const client = {
    workers: async () => [],
    run: async () => {
      const workerFailure = left.shift() ?? null;
      const phase = left.length > 0 ? 'training' : 'finished';
      const facts = { phase, workerFailure, data: null, stepsLost: 0, rollbacks: [], hint: null };
      return facts as unknown as RunDetail;
    },
  } as unknown as RestClient;
  const progress = { note: (line: string) => notes.push(line), update: () => {} };
  const given = { failed: new Promise<never>(() => {}), ...pool } as Pool;
  await followRun(client, 'digits', progress, given, new AbortController().signal);
  return notes;
}

const SAID = 'worker w1 failed at step 7: DP_DATA_CORRUPT row 3 is cut: mend it';

test('a worker that fails is told of once, with the reason', async () => {
  const first = failure('w1', '10:00');
  expect(await saidOf([null, first, first, null])).toEqual([SAID]);
  expect(await saidOf([null, first, failure('w1', '10:01'), null])).toEqual([SAID, SAID]);
});

test('a failure from before is no news, nor one that the pool of the command has told', async () => {
  const first = failure('w1', '10:00');
  expect(await saidOf([first, first, null])).toEqual([]);
  expect(await saidOf([null, first, null], { names: ['w1'] })).toEqual([]);
  expect(await saidOf([null, first, null], { names: ['w2'] })).toEqual([SAID]);
});
