import { execFile } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { describe, expect, inject, test } from 'vitest';
import { type ServeOptions, serve } from '../../server/main.ts';
import type { RunSummary } from '../../shared/rest.ts';
import { createRestClient } from '../../shared/rest-client.ts';
import { startRedis } from '../redis-server.ts';
import { copyRun } from '../support/many-runs.ts';
import { ProtocolWorker } from '../support/protocol-worker.ts';
import { createProblem } from '../support/regression.ts';
import { startServerProcess } from '../support/server-process.ts';
import { useStateFolder } from '../support/state-folder.ts';

/** Names, tags, notes and archived runs: what lists make of them, and that they outlive servers. */

const run = promisify(execFile);
const PROGRAM = inject('program');
const problem = createProblem();
const EXPERIMENT = { experiment: 'regression', experimentHash: 'hash' };
const CONFIG = {
  ...{ minibatchSize: 4, learningRate: 0.01, stepsMax: 8, evaluateEverySteps: 4 },
  ...{ earlyStopping: { enabled: false }, testAtEnd: false },
};

let state: string;
const cleanUps = useStateFolder('labels', (folder) => {
  state = folder;
});

async function start(options: Partial<ServeOptions> = {}) {
  const controller = new AbortController();
  const serving = await serve({
    ...{ host: '127.0.0.1', port: 0, state, localSocket: false, signal: controller.signal },
    ...options,
  });
  const end = async () => {
    controller.abort();
    await serving.closed;
  };
  cleanUps.push(end);
  return { ...serving, end, client: createRestClient({ server: serving.url }) };
}

type Server = Awaited<ReturnType<typeof start>>;

/** A finished run. */
async function finish({ client, url }: Server, id: string): Promise<void> {
  await client.createRun({ id, ...EXPERIMENT, config: CONFIG });
  const worker = await ProtocolWorker.connect(url);
  cleanUps.push(() => worker.terminate());
  worker.hello('hash', id);
  worker.join(await worker.expect('assign'), problem);
  worker.initialise(await worker.expect('initialise'));
  await worker.work(problem, await worker.expect('work'));
  worker.terminate();
  await expect.poll(async () => (await client.run(id)).checkpoint).not.toBe(null);
}

const labelsOf = ({ name, tags, note, archived }: RunSummary) => ({ name, tags, note, archived });
const idsOf = (runs: readonly RunSummary[]) => runs.map(({ id }) => id);

describe('the labels of a run', () => {
  test('are told, kept over a restart, and an archived run is out of the way', async () => {
    const server = await start();
    const { client } = server;
    await finish(server, 'a');
    await client.createRun({ id: 'b', ...EXPERIMENT, study: 'search-1' });
    const labels = { name: 'Best of May', tags: ['good'], note: 'with\ndropout', archived: true };
    expect(labelsOf(await client.editRun('a', labels))).toEqual(labels);
    await client.editRun('b', { addTags: ['x', 'good'] });
    await expect(client.editRun('b', { archived: true })).rejects.toMatchObject({
      code: 'DP_RUN_UNFINISHED',
      message: expect.stringContaining('downpour stop b'),
    });
    await expect(client.editRun('b', { tags: ['a b'] })).rejects.toMatchObject({
      code: 'DP_BODY_INVALID',
    });
    await expect(client.editRun('nobody', {})).rejects.toMatchObject({ code: 'DP_RUN_UNKNOWN' });
    for (const call of [client.resume('a'), client.test('a')]) {
      await expect(call).rejects.toMatchObject({
        code: 'DP_RUN_ENDED',
        message: expect.stringContaining('downpour edit a --unarchive'),
      });
    }
    await server.end();

    const again = await start();
    const lists = {
      plain: idsOf(await again.client.runs()),
      archived: idsOf(await again.client.runs({ archived: true })),
      tagged: idsOf(await again.client.runs({ archived: 'all', tag: 'good' })),
      trials: idsOf(await again.client.runs({ study: 'search-1' })),
      status: idsOf((await again.client.status()).runs),
      one: idsOf((await again.client.status(1, { archived: 'all' })).runs),
    };
    expect(lists).toEqual({
      ...{ plain: ['b'], archived: ['a'], tagged: ['a', 'b'], trials: ['b'] },
      ...{ status: ['b'], one: ['b'] },
    });
    expect(labelsOf(await again.client.run('a'))).toEqual(labels);
    expect(await again.client.status(undefined, { fold: 'studies' })).toMatchObject({
      ...{ runs: [], runCount: 2, archivedCount: 1 },
      studies: [{ study: 'search-1', runs: 1, phases: { waiting: 1 }, best: null, kind: null }],
    });
    const downpour = async (...args: string[]) =>
      (await run(process.execPath, [PROGRAM, ...args, '--server', again.url])).stdout;
    const [all, trials, edit] = await Promise.all([
      downpour('status'),
      downpour('status', 'search-1'),
      downpour('edit', 'a', '--untag', 'good', '--tag', 'paper', 'may', '--note', ''),
    ]);
    expect(all).toContain('1 archived run is left out; --all shows it');
    expect(all).toMatch(/^search-1 +1 +1 waiting +0$/m);
    expect(all).not.toMatch(/^[ab] /m);
    expect(trials).toMatch(/^study search-1: 1 runs\n.*\nb +waiting/);
    expect(edit).toBe('a: Best of May (archived)\n  tags           paper, may\n');
    // What it was trained for can still be had.
    const bytes = await new Response(await again.client.checkpointFile('a', 'model')).bytes();
    expect(bytes.length).toBeGreaterThan(100);
    expect((await again.client.editRun('a', { archived: false })).archived).toBe(false);
    expect(idsOf(await again.client.runs())).toEqual(['a', 'b']);
  });

  test('are whole after kills, and what was answered is kept', async () => {
    const first = await start();
    await finish(first, 'seed');
    await first.end();
    const ids = Array.from({ length: 24 }, (_, i) => `copy-${i}`);
    await copyRun(state, 'seed', ids);
    const answered = new Map<string, number>();
    for (const [round, more] of [3, 9].entries()) {
      const server = await startServerProcess(state, 0);
      let count = 0;
      const edits = ids.map((id) =>
        server.client.editRun(id, { tags: [`r${round}`], archived: round > 0 }).then(
          () => {
            answered.set(id, round);
            if (++count === more) server.child.kill('SIGKILL');
          },
          () => {},
        ),
      );
      await Promise.all([once(server.child, 'exit'), ...edits]);
    }
    const last = await start();
    const runs = await last.client.runs({ archived: 'all' });
    expect(idsOf(runs).sort()).toEqual(['seed', ...ids].sort());
    for (const { id, phase, tags, archived } of runs) {
      expect(phase).toBe('finished');
      // It may have been written and not answered.
      const [tag] = tags!;
      const round = tag === undefined ? -1 : Number(tag.slice(1));
      expect(round).toBeGreaterThanOrEqual(answered.get(id) ?? -1);
      expect(archived).toBe(round > 0);
    }
  });

  test('go through Redis to a server with another folder, and outlive a Redis that is emptied', async () => {
    const redis = await startRedis({ persist: false });
    cleanUps.push(() => redis.stop());
    const options = { redis: redis.url };
    const server = await start(options);
    await server.client.createRun({ id: 'a', ...EXPERIMENT });
    await server.client.editRun('a', { name: 'A', tags: ['t'] });
    await server.end();
    const folder = await mkdtemp(join(tmpdir(), 'downpour-labels-'));
    cleanUps.push(() => rm(folder, { recursive: true, force: true }));
    const other = await start({ ...options, state: folder });
    expect(labelsOf(await other.client.run('a'))).toMatchObject({ name: 'A', tags: ['t'] });
    await finish(other, 'b');
    await other.client.editRun('b', { archived: true });
    await other.end();
    await redis.kill();
    await redis.restart();
    const last = await start({ ...options, state: folder });
    expect(idsOf(await last.client.runs({ archived: true }))).toEqual(['b']);
  });
});
