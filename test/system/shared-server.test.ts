import { readdir, rm } from 'node:fs/promises';
import { createServer } from 'node:http';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { expect, test } from 'vitest';
import {
  openTrainServer,
  openUsedServer,
  startOwnServer,
  urlOfFolder,
} from '../../cli/used-server.ts';
import { serve } from '../../server/main.ts';
import { OWNER_FOLDER, takeFolder } from '../../server/store/folder-lock.ts';
import { noteAddress, ownerOf } from '../../server/store/owner-address.ts';
import { ProtocolWorker } from '../support/protocol-worker.ts';
import { createProblem } from '../support/regression.ts';
import { useStateFolder } from '../support/state-folder.ts';

/** Several commands in one folder: the first brings the server, the others find it and use it. */

const problem = createProblem();
const EXPERIMENT = { experiment: 'regression', experimentHash: 'hash' };

let state: string;
const cleanUps = useStateFolder('shared-server', (folder) => {
  state = folder;
});

async function open(more: object = {}) {
  const used = await openTrainServer({ state, port: 0, ...more }, () => {});
  cleanUps.push(() => used.close());
  return used;
}
const named = () => openUsedServer({ state, stateGiven: true });
const idsOf = async ({ client }: Awaited<ReturnType<typeof open>>) =>
  (await client.runs()).map(({ id }) => id);

test('a second command uses it, and goes on when the first one ends', async () => {
  // At the same time: one of them has the folder, and the other one waits until that one listens.
  const both = await Promise.all([open(), open()]);
  const [first, second] = both.sort((a, b) => Number(a.state === null) - Number(b.state === null));
  const { url } = first!.client;
  expect(first).toMatchObject({ state });
  expect(second).toMatchObject({ state: null, shared: expect.stringContaining(url) });
  expect(second!.client.url).toBe(url);
  await first!.client.createRun({ id: 'a', ...EXPERIMENT });
  await second!.client.createRun({ id: 'b', ...EXPERIMENT, config: { minibatchSize: 4 } });
  const worker = await ProtocolWorker.connect(url);
  cleanUps.push(() => worker.terminate());
  worker.hello('hash', 'b');
  worker.join(await worker.expect('assign'), problem);
  worker.initialise(await worker.expect('initialise'));
  const work = await worker.expect('work');
  await worker.trainTo(problem, work, work.step + 3);
  // `status` and the others find the same one.
  const found = await named();
  expect([found.client.url, found.state]).toEqual([url, null]);
  await found.close();
  // One that only uses it and ends leaves the server alone.
  const third = await open();
  await third.close();
  expect(await idsOf(first!)).toEqual(['a', 'b']);
  // The one whose server it was ends: the other one has all of it, at the same address.
  await first!.close();
  await expect
    .poll(() => second!.client.run('b').catch(() => null), { timeout: 60_000 })
    .toMatchObject({ step: 3, stepsLost: 0 });
  expect(await idsOf(second!)).toEqual(['a', 'b']);
  // It answers before its address is on disk.
  await expect.poll(() => urlOfFolder(state)).toBe(url);
  await second!.close();
  expect(await urlOfFolder(state)).toBe(null);
  const own = await named();
  expect(own).toMatchObject({ state });
  await own.close();
});

test('a server with tokens is used with an operator’s, and not replaced when it ends', async () => {
  const controller = new AbortController();
  const serving = await serve({
    ...{ host: '127.0.0.1', port: 0, state, localSocket: false, token: 'secret' },
    signal: controller.signal,
  });
  cleanUps.push(() => controller.abort());
  await expect(open()).rejects.toMatchObject({
    code: 'DP_UNAUTHORIZED',
    message: expect.stringContaining(`the server of ${state} runs at ${serving.url}`),
  });
  await expect(open({ token: 'wrong' })).rejects.toMatchObject({ code: 'DP_UNAUTHORIZED' });
  const third = await open({ token: 'secret' });
  await third.client.createRun({ id: 'a', ...EXPERIMENT });
  expect(await ownerOf(state)).toMatchObject({ address: { endsWithCommand: false } });
  await third.close();
  controller.abort();
  await serving.closed;
  expect(await ownerOf(state)).toEqual({ kind: 'free' });
});

test('a server that has the folder and does not listen yet is waited for, one of a program’s app is not', async () => {
  const elsewhere = await startOwnServer({ state: join(state, '.elsewhere'), port: 0 });
  cleanUps.push(() => elsewhere.close());
  const now = new Date().toISOString();
  const token = await takeFolder(join(state, OWNER_FOLDER), {
    ...{ owner: 'other', ttlMs: 60_000, since: now },
  });
  const note = (address: string | null) =>
    noteAddress(state, { token, url: address, endsWithCommand: false }, () => {});
  await note(null);
  await expect(named()).rejects.toMatchObject({ code: 'DP_STATE_LOCKED' });
  await expect(open()).rejects.toMatchObject({ code: 'DP_STATE_LOCKED' });
  await rm(join(state, OWNER_FOLDER, 'address.json'));
  const finding = Promise.all([named(), open()]);
  // Both have looked, and each would have been refused.
  await delay(600);
  const { url } = elsewhere.client;
  await note(url);
  for (const { client, state: own } of await finding) {
    expect([client.url, own]).toEqual([url, null]);
  }
});

test('the address of an earlier server is not believed', async () => {
  const first = await open();
  const { url } = first.client;
  await first.close();
  // Another program listens there now.
  const other = createServer((_, response) => response.end('{}'));
  await new Promise<void>((resolve) => other.listen(Number(new URL(url).port), resolve));
  cleanUps.push(() => other.close());
  expect(await readdir(join(state, '.owner'))).toContain('address.json');
  expect(await urlOfFolder(state)).toBe(null);
  const second = await open();
  expect(second.client.url).not.toBe(url);
  expect(await second.client.health()).toMatchObject({ status: 'ok' });
});
