import { join } from 'node:path';
import { afterAll, beforeAll, expect, test, vi } from 'vitest';
import { main } from '../../cli/main.ts';
import { EXIT } from '../../cli/options.ts';
import { errorCode } from '../../shared/errors.ts';
import { openEngine } from '../../worker/engine.ts';
import { Cluster, FIXTURES } from '../support/cluster.ts';

// *Deep Learning* §5.3: the test part is looked at once, by a command of its own, and the record says when.

const DIGITS = join(FIXTURES, 'digits.ts');
let cluster: Cluster;
beforeAll(async () => {
  cluster = await Cluster.start(await openEngine({ engine: 'wasm' }));
});
afterAll(() => cluster.close());

async function command(...args: string[]) {
  let text = '';
  const take = (chunk: unknown) => {
    text += String(chunk);
    return true;
  };
  const streams = [process.stdout, process.stderr];
  const spies = streams.map((stream) => vi.spyOn(stream, 'write').mockImplementation(take));
  try {
    return { code: await main(args), text: () => text };
  } finally {
    for (const spy of spies) spy.mockRestore();
  }
}

test('downpour test looks at the test part once, and what it saw stays with its day', async () => {
  const config = { stepsMax: 30, evaluateEverySteps: 10, testAtEnd: false, learningRate: 0.05 };
  await cluster.createRun('chosen', DIGITS, config);
  expect(await cluster.client.test('chosen').catch(errorCode)).toBe('DP_CHECKPOINT_MISSING');
  await cluster.work('chosen', 'one').done;
  expect(await cluster.client.run('chosen')).toMatchObject({ phase: 'finished', test: null });
  await cluster.stopServer();

  const before = new Date().toISOString();
  const args = ['--state', cluster.state, '--data', cluster.folder, '--experiments', FIXTURES];
  const looked = await command('test', 'chosen', ...args, '--engine', 'wasm', '--port', '0');
  expect(looked.code, looked.text()).toBe(EXIT.ok);
  const day = new Date().toISOString().slice(0, 10);
  expect(looked.text()).toMatch(
    /^test: error [\d.]+ %, accuracy .* evaluated on \d{4}-\d\d-\d\d$/m,
  );

  await cluster.serve();
  const run = await cluster.client.run('chosen');
  expect(run).toMatchObject({ phase: 'finished', step: 30, test: { part: 'test' } });
  expect(run.testedAt! >= before && run.testedAt!.slice(0, 10) <= day).toBe(true);
  const refusal = (await cluster.client.test('chosen').catch((error) => error)) as Error;
  expect(errorCode(refusal)).toBe('DP_TEST_SEEN');
  expect(refusal.message).toContain(`on ${run.testedAt}: loss ${run.test!.loss}`);
});
