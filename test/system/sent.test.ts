import { once } from 'node:events';
import { cp, mkdir, mkdtemp, readdir, rm, symlink, writeFile } from 'node:fs/promises';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { type Serving, serve } from '../../server/main.ts';
import { createRestClient, type RunDetail } from '../../shared/rest-client.ts';
import { freePort, redisMissing, startRedis } from '../redis-server.ts';
import { startServerProcess } from '../support/server-process.ts';
import { until } from '../support/until.ts';
import { type CommandProcess, startCommand } from '../support/worker-process.ts';

/** `train --send`: an experiment goes to workers that have no file of it, as processes in folders of their own. */

const CARS = join(import.meta.dirname, '..', '..', 'examples', 'data', 'auto-mpg.csv');
const TOKENS = { token: 'the-operator', workerToken: 'a-worker' };

/** A helper, a package, TensorFlow.js by its own name: a copy of it would have no gradients. */
const EXPERIMENT = `
import { join } from 'node:path';
import * as tf from '@tensorflow/tfjs-core';
import { loadCsv } from 'downpour';
import { layers } from 'downpour/layers';
import { square } from 'squares';
import { columns } from './helpers/columns.ts';

export default {
  data: ({ folder }) => loadCsv(join(folder, 'auto-mpg.csv'), columns),
  standardise: 'feature',
  model: (args) =>
    args.tf.sequential({
      layers: [...layers.hidden(args, { units: 4 }), args.tf.layers.dense({ units: 1 })],
    }),
  loss: (targets, predictions) => tf.mean(square(tf.sub(targets, predictions))),
  config: {
    minibatchSize: 16,
    learningRate: 0.01,
    optimizer: { kind: 'adam' },
    epochsMax: 8,
    earlyStopping: { enabled: false },
    evaluateEverySteps: 40,
  },
};
`;
const COLUMNS =
  "export const columns = { targets: ['mpg'], categorical: ['origin'], ignore: ['name'] };";

let root: string;
let server: Pick<Serving, 'url'>;
let endServer: () => Promise<unknown>;
const log: string[] = [];
const processes: CommandProcess[] = [];

beforeEach(async () => {
  root = await mkdtemp(join(tmpdir(), 'downpour-sent-'));
  for (const folder of ['operator/helpers', 'operator/node_modules/squares', 'data', 'empty']) {
    await mkdir(join(root, folder), { recursive: true });
  }
  await write('cars.ts', EXPERIMENT);
  await write('helpers/columns.ts', COLUMNS);
  await write('node_modules/squares/package.json', '{"name":"squares","version":"1.0.0"}');
  await write('node_modules/squares/index.js', 'exports.square = (x) => x.square();');
  // As npm lays them out where Downpour is installed.
  const installed = join(import.meta.dirname, '..', '..', 'node_modules', '@tensorflow');
  await symlink(installed, join(root, 'operator', 'node_modules', '@tensorflow'));
  await cp(CARS, join(root, 'data', 'auto-mpg.csv'));
});
afterEach(async () => {
  await Promise.all(processes.splice(0).map((one) => one.stop()));
  await endServer();
  await rm(root, { recursive: true, force: true });
});

const write = (name: string, text: string) => writeFile(join(root, 'operator', name), text);
async function startServer(): Promise<void> {
  const stop = new AbortController();
  const state = join(root, 'state');
  const where = { host: '127.0.0.1', port: 0, state, signal: stop.signal };
  const serving = await serve({ ...where, ...TOKENS, log: (line) => log.push(line) });
  server = serving;
  endServer = async () => {
    stop.abort();
    await serving.closed;
  };
}
/** As a process, to be killed. */
async function startServerToKill(port: number): Promise<void> {
  const tokens = ['--token', TOKENS.token, '--worker-token', TOKENS.workerToken];
  const started = await startServerProcess(join(root, 'state'), port, tokens);
  server = started;
  endServer = () => started.kill();
}
const client = () => createRestClient({ server: server.url, token: 'the-operator' });

function start(args: readonly string[], folder: string, token: string): CommandProcess {
  const env = { DOWNPOUR_TOKEN: token, DOWNPOUR_BUNDLE_DIR: join(root, 'cache') };
  const started = startCommand(args, { cwd: join(root, folder), env });
  processes.push(started);
  return started;
}

/** A worker that has its own data, and in its folder nothing unless told. */
function work(name: string, more: readonly string[] = [], folder = 'empty'): CommandProcess {
  const args = ['--server', server.url, '--name', name, '--engine', 'cpu', '--no-local-socket'];
  return start(['work', ...args, '--data', join(root, 'data'), ...more], folder, 'a-worker');
}
const accepting = (name: string, more: readonly string[] = []) =>
  work(name, ['--accept-experiments', ...more]);

/** Only what it starts is waited for, not the end of the run. */
async function send(run: string, more: readonly string[] = []): Promise<void> {
  const args = ['train', 'cars.ts', '--server', server.url, '--workers', '0', '--send'];
  const sent = start([...args, '--detach', '--run', run, ...more], 'operator', 'the-operator');
  expect({ code: await sent.closed, text: sent.text() }).toMatchObject({ code: 0 });
}

async function finished(run: string): Promise<RunDetail> {
  const found = async () => {
    const detail = await client().run(run);
    return detail.phase === 'finished' && detail;
  };
  return until(`${run} is finished`, found, { withinMs: 150_000, everyMs: 100 });
}

describe('an experiment that is sent', () => {
  test('trains with workers that have nothing of it and with those that have its files; the others say why they wait', async () => {
    await startServer();
    await cp(join(root, 'operator'), join(root, 'own'), { recursive: true });
    const refusing = work('refusing');
    await refusing.said(/connected to/);
    const [first, second] = [accepting('first'), accepting('second')];
    work('owner', [], 'own');
    // Nothing begins before all three that can are there.
    await send('mpg', ['--set', 'workersMin=3']);
    const run = await finished('mpg');
    expect(run.step).toBe(160);
    expect(run.bundle).toMatch(/^[0-9a-f]{64}$/);
    expect(run.validation!.loss!).toBeLessThan(
      0.8 * (await client().metrics('mpg')).evaluations[0]!.loss!,
    );

    const workers = Object.fromEntries(
      (await client().status()).workers.map((worker) => [worker.worker, worker]),
    );
    for (const name of ['first', 'second', 'owner']) {
      expect(workers[name]!.pushes.applied, name).toBeGreaterThan(0);
    }
    expect(workers.refusing!.pushes.applied).toBe(0);
    const told = new RegExp(
      `run mpg: experiment 'cars' was sent .* bundle ${run.bundle} \\(\\d+ bytes\\)`,
    );
    for (const each of [first, second]) {
      expect(each.text()).toMatch(/experiments are accepted: every operator of .* can run code/);
      expect(each.text()).toMatch(told);
    }
    await refusing.said(
      /run mpg needs experiment 'cars', which is in none of .*start this worker with --accept-experiments.*operators of the server run code here/,
    );
    // Both workers of a machine share one file.
    expect(await readdir(join(root, 'cache'))).toEqual([`${run.bundle}.mjs`]);
    expect(log.join('\n')).toMatch(/bundle [0-9a-f]{64} of \d+ bytes was sent by operator-/);
  });

  test('outlives a server that is killed before any worker has come, and is gone with its run', async () => {
    const port = await freePort();
    await startServerToKill(port);
    await send('mpg');
    await endServer();
    await startServerToKill(port);
    const worker = accepting('late');
    const { bundle } = await finished('mpg');
    await worker.stop();
    const folder = join(root, 'state', '.bundles');
    expect(await readdir(folder)).toEqual([bundle]);
    await endServer();
    await rm(join(root, 'state', 'mpg'), { recursive: true });
    await startServer();
    expect(await readdir(folder)).toEqual([]);
  });

  test.skipIf(redisMissing())(
    `is in its standby, which trains it when the primary has died${redisMissing() ?? ''}`,
    async () => {
      const redis = await startRedis({ persist: false });
      const tokens = ['--token', TOKENS.token, '--worker-token', TOKENS.workerToken];
      const common = [...tokens, '--redis-url', redis.url, '--lease-seconds', '5'];
      const primary = await startServerProcess(join(root, 'state'), 0, common);
      const ends = [() => primary.kill(), () => redis.stop()];
      endServer = async () => {
        for (const end of ends) await end();
      };
      server = primary;
      // One before it comes, one afterwards.
      await send('before');
      const follow = [...common, '--standby-of', primary.url];
      const standby = await startServerProcess(join(root, 'standby'), 0, follow);
      ends.unshift(() => standby.kill());
      await until('the standby follows', async () => {
        return (await client().status()).standby?.state === 'following';
      });
      await write('helpers/columns.ts', COLUMNS.replace("['name']", "['name', 'year']"));
      await send('after');
      const bundles = await Promise.all(
        ['before', 'after'].map(async (run) => (await client().run(run)).bundle),
      );
      const kept = async () => (await readdir(join(root, 'standby', '.bundles'))).sort();
      await expect.poll(() => kept().catch(() => [])).toEqual([...bundles].sort());
      await primary.kill();
      server = standby;
      accepting('heir');
      for (const run of ['before', 'after']) await finished(run);
    },
  );

  test('in another version trains in the same worker process, which goes back to files of its own too', async () => {
    await startServer();
    await cp(join(root, 'operator'), join(root, 'own'), { recursive: true });
    const worker = work('changing', ['--accept-experiments'], 'own');
    await write('helpers/columns.ts', COLUMNS.replace("['name']", "['name', 'year']"));
    await send('without-year');
    const { inputShape } = await finished('without-year');
    await cp(join(root, 'own', 'helpers'), join(root, 'operator', 'helpers'), { recursive: true });
    await send('with-year');
    expect((await finished('with-year')).inputShape).toEqual([inputShape![0]! + 1]);
    await write('helpers/columns.ts', COLUMNS.replace("['name']", "['name', 'weight']"));
    await send('without-weight');
    expect((await finished('without-weight')).inputShape).toEqual(inputShape);
    // The files that it has were those of the second.
    expect(worker.text().match(/was sent through/g)).toHaveLength(2);
  });

  test('that was changed on the server is not run, until it is sent again', async () => {
    await startServer();
    await send('mpg');
    const { bundle } = await client().run('mpg');
    const path = join(root, 'state', '.bundles', bundle!);
    await writeFile(path, "export default process.stderr.write('PWNED');".padEnd(5_000));
    const worker = accepting('careful');
    await worker.said(
      /offered bundle [0-9a-f]{64} and sent \d+ bytes with SHA-256 .*not run; send the experiment again/,
    );
    expect(await client().run('mpg')).toMatchObject({ phase: 'waiting', workers: 0 });
    await expect.poll(() => readdir(join(root, 'cache'))).toEqual([]);
    await send('again');
    await finished('mpg');
    expect(worker.text()).not.toContain('PWNED');
  });

  test('reaches a worker for this run alone, and one that may not take it is told why', async () => {
    await startServer();
    await send('mpg');
    const refusing = work('refusing', ['--run', 'mpg']);
    const taking = accepting('taking', ['--run', 'mpg']);
    expect(await refusing.closed).not.toBe(0);
    expect(refusing.text()).toMatch(
      /DP_EXPERIMENT_UNKNOWN.*add its folder with --experiments; or start it with --accept-experiments/,
    );
    expect(await taking.closed).toBe(0);
    expect(await client().run('mpg')).toMatchObject({ phase: 'finished' });
  });

  test('whose data a worker lacks is left to others, and not fetched by it again', async () => {
    await startServer();
    const poor = accepting('poor', ['--data', join(root, 'empty')]);
    await send('mpg');
    await poor.said(/run mpg is not for this worker: DP_DATA_MISSING/);
    accepting('rich');
    await finished('mpg');
    expect(poor.text().match(/was sent through/g)).toHaveLength(1);
  });
});

describe('train --send', () => {
  const train = (more: readonly string[], token: string) =>
    start(['train', 'cars.ts', '--workers', '0', '--send', ...more], 'operator', token);

  test('makes no run where it may not send, nor of what cannot be sent; and says what to do', async () => {
    await startServer();
    const forbidden = train(['--server', server.url], 'a-worker');
    const alone = train([], 'the-operator');
    await write(
      'beside.ts',
      EXPERIMENT.replace('({ folder })', '({ folder = import.meta.dirname })'),
    );
    const args = ['train', 'beside.ts', '--server', server.url, '--send'];
    const beside = start(args, 'operator', 'the-operator');
    expect(await forbidden.closed).toBe(1);
    expect(forbidden.text()).toMatch(/DP_FORBIDDEN.*takes an operator's token/);
    expect(await alone.closed).toBe(2);
    expect(alone.text()).toMatch(/DP_USAGE: --send needs --server/);
    expect(await beside.closed).toBe(2);
    expect(beside.text()).toMatch(
      /DP_EXPERIMENT_INVALID.*cannot be sent:\n +beside\.ts: import\.meta/,
    );
    expect(await client().runs()).toEqual([]);
  });

  test('says that a server is too old for it, before it makes a run there', async () => {
    const asked: string[] = [];
    const older = createServer((request, response) => {
      asked.push(`${request.method} ${request.url!.slice(0, 9)}`);
      request.resume();
      const isHealth = request.url === '/health';
      response.writeHead(isHealth ? 200 : 404, { 'content-type': 'application/json' });
      response.end(JSON.stringify(isHealth ? {} : { code: 'DP_NOT_FOUND', message: 'no PUT' }));
    }).listen(0, '127.0.0.1');
    await once(older, 'listening');
    endServer = async () => older.close();
    const url = `http://127.0.0.1:${(older.address() as AddressInfo).port}`;
    const refused = train(['--server', url], 'the-operator');
    expect(await refused.closed).toBe(2);
    expect(refused.text()).toMatch(/is of a release that takes no experiments: update it, or copy/);
    expect(asked).toEqual(['GET /health', 'PUT /bundles/']);
  });
});
