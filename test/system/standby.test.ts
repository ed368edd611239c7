import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { checkPushLog } from '../../server/watch/push-log.ts';
import type { PartialConfig } from '../../shared/config.ts';
import type { RunDetail } from '../../shared/rest.ts';
import { createRestClient } from '../../shared/rest-client.ts';
import { redisMissing, startRedis, type TestRedis } from '../redis-server.ts';
import { ClientWorker } from '../support/client-worker.ts';
import { createProblem } from '../support/regression.ts';
import { type ServerProcess, startServerProcess } from '../support/server-process.ts';
import { until } from '../support/until.ts';

/** A primary and its hot standby as processes, with a real Redis; see docs/decisions/0011-standby.md. */

const missing = redisMissing();
const problem = createProblem();
const cleanUps: (() => unknown)[] = [];
let redis: TestRedis;
let root: string;
let pushLog: string;

beforeAll(async () => {
  if (missing === null) redis = await startRedis({ persist: false });
});
afterAll(() => redis?.stop());
beforeEach(async () => {
  if (redis) {
    await redis.kill();
    await redis.restart();
  }
  root = await mkdtemp(join(tmpdir(), 'downpour-standby-'));
  pushLog = join(root, 'pushes');
  cleanUps.push(() => rm(root, { recursive: true, force: true }));
});
afterEach(async () => {
  for (const cleanUp of cleanUps.splice(0).reverse()) await cleanUp();
});

/**
 * Long enough for a server that a busy machine keeps from renewing it; the last option counts. Where servers share
 * a folder, that shows at once that its owner is dead.
 */
const LEASE = ['--lease-seconds', '20'];
const SHORT = ['--lease-seconds', '5'];

/** @param folder of its own, as on two machines, or one for both. */
async function start(folder: string, more: readonly string[] = []): Promise<ServerProcess> {
  const server = await startServerProcess(join(root, folder), 0, [
    ...['--redis-url', redis.url, '--push-log', pushLog, ...LEASE, ...more],
  ]);
  cleanUps.push(() => server.kill());
  return server;
}

/** A standby that has all runs. */
async function follow(primary: ServerProcess, folder: string, more: readonly string[] = []) {
  const standby = await start(folder, ['--standby-of', primary.url, ...more]);
  await until('the standby follows', async () => {
    return (await primary.client.status()).standby?.state === 'following';
  });
  return standby;
}

const said = (server: ServerProcess, what: RegExp) =>
  until(`it says ${what}`, async () => what.test(server.log()));

async function createRun({ client }: ServerProcess, config: PartialConfig) {
  const common = { minibatchSize: 4, learningRate: 0.01, checkpoint: { everySeconds: 1e6 } };
  await client.createRun({
    ...{ id: 'r', experiment: 'regression', experimentHash: 'hash' },
    config: { ...common, ...config },
  });
  // The first answer of this kind takes a busy machine longer than a lease lasts.
  await client.run('r');
}

/** They know the first server alone, which tells them of its standby, or the others too. */
function work(servers: readonly ServerProcess[], names = ['a', 'b']): ClientWorker[] {
  return names.map((name) => {
    const worker = new ClientWorker(servers.map(({ url }) => url).join(','), name, problem, 'r');
    cleanUps.push(() => worker.stop());
    return worker;
  });
}

const atStep = (server: ServerProcess, step: number) =>
  until(`step ${step}`, async () => (await server.client.run('r')).step >= step);
const inPhase = (server: ServerProcess, ...phases: string[]) =>
  until(phases.join(' or '), async () => phases.includes((await server.client.run('r')).phase));

/** Pushes of the history that counts, as `worker/incarnation sequence`. */
function history(): Set<string> {
  const kept: { step: number; push: string }[] = [];
  for (const line of readFileSync(pushLog, 'utf8').split('\n')) {
    const [kind, , , step, worker, sequence] = line.split(' ');
    if (kind === 'begin') {
      while (kept.length > 0 && kept.at(-1)!.step > Number(step)) kept.pop();
    } else if (kind === 'push') kept.push({ step: Number(step), push: `${worker} ${sequence}` });
  }
  return new Set(kept.map(({ push }) => push));
}

/** Invariants 1 and 8 over all servers that have had the run. @returns acknowledged pushes that are not in it. */
function checkPushes(workers: readonly ClientWorker[], run: RunDetail): string[] {
  const report = checkPushLog(readFileSync(pushLog, 'utf8'));
  expect(report.twice).toEqual([]);
  expect(report.steps).toEqual([]);
  expect(report.applied).toBe(run.step);
  const inIt = history();
  return workers.flatMap(({ applied }) => applied).filter((push) => !inIt.has(push));
}

describe.skipIf(missing !== null)(`a hot standby${missing ?? ''}`, () => {
  test('has the time to take over from a primary that is started again at once', async () => {
    const primary = await start('primary', SHORT);
    const standby = await follow(primary, 'standby', SHORT);
    await createRun(primary, { epochsMax: 150, earlyStopping: { enabled: false } });
    const workers = work([primary, standby]);
    let again: Promise<void> | null = null;
    workers[0]!.pushing = (applied) => {
      if (applied !== 100) return;
      primary.child.kill('SIGKILL');
      // As an orchestrator does, on the same folder, whose checkpoint is of step 0.
      again = start('primary', SHORT).then(
        () => {
          throw new Error('it went on from its checkpoint');
        },
        (error: Error) => {
          expect(error.message).toMatch(/may have what no checkpoint has: it has 10 s/);
          expect(error.message).toMatch(/has taken over; --standby-of makes/);
          expect(error.message).toContain('error DP_STATE_LOCKED');
        },
      );
    };
    await inPhase(standby, 'finished');
    await again;
    const run = await standby.client.run('r');
    expect(run).toMatchObject({ step: 750, examples: 3_000, stepsLost: 0 });
    for (const { done } of workers) expect(await done).toBeUndefined();
    expect(checkPushes(workers, run)).toEqual([]);
  });

  test('that is gone as well keeps a primary that is started again for so long, and no longer', async () => {
    const primary = await start('primary', ['--lease-seconds', '1']);
    const standby = await follow(primary, 'standby', ['--lease-seconds', '1']);
    await createRun(primary, { epochsMax: 150, earlyStopping: { enabled: false } });
    // Before it could hear that it is alone.
    primary.child.kill('SIGSTOP');
    await standby.kill();
    await primary.kill();
    const again = await start('primary', ['--lease-seconds', '1']);
    expect(again.log()).toMatch(/has not taken over: going on from the checkpoints/);
    expect((await again.client.run('r')).phase).toBe('waiting');
    // Alone it is not waited for any more.
    await again.kill();
    expect((await start('primary')).log()).not.toContain('take over');
  });

  test('takes over when the primary is killed, and no acknowledged push is lost where replication is sync', async () => {
    const primary = await start('primary', SHORT);
    const standby = await follow(primary, 'standby', SHORT);
    await createRun(primary, { epochsMax: 150, earlyStopping: { enabled: false } });
    const workers = work([primary, standby]);
    // The other one goes on pushing.
    workers[0]!.pushing = (applied) => void (applied === 100 && primary.child.kill('SIGKILL'));
    await inPhase(standby, 'finished');
    const run = await standby.client.run('r');
    // Each example of 150 epochs once: 5 minibatches of 4 an epoch.
    expect(run).toMatchObject({ step: 750, examples: 3_000, stepsLost: 0 });
    expect(run.pushes).toMatchObject({ applied: 750, damped: 0 });
    expect(run.test?.loss).toBeLessThan(1);
    for (const { done } of workers) expect(await done).toBeUndefined();
    expect(checkPushes(workers, run)).toEqual([]);
    await said(standby, /this standby takes over 1 runs \(r at step \d+\)/);
    await until('its own folder has all of the run', async () => {
      const checkpoints = await standby.client.checkpoints('r');
      return checkpoints.some(({ kind }) => kind === 'final');
    });
  });

  test('that is async loses at most the stated number, and counts it', async () => {
    const primary = await start('primary', SHORT);
    const standby = await follow(primary, 'standby', [
      ...['--replication', 'async', '--lag-max', '7', ...SHORT],
    ]);
    await createRun(primary, { epochsMax: 300, earlyStopping: { enabled: false } });
    const workers = work([primary, standby], ['a', 'b', 'c']);
    // The standby stands still: the primary may go on for 7 pushes, whosever they are.
    let halted = false;
    let since = 0;
    let ended: Promise<void> | null = null;
    const end = () => {
      ended ??= primary.kill().then(() => void standby.child.kill('SIGCONT'));
      return ended;
    };
    for (const [i, worker] of workers.entries()) {
      worker.pushing = async (applied) => {
        if (i === 0 && applied >= 100 && !halted) {
          halted = true;
          standby.child.kill('SIGSTOP');
          // On a busy machine it lacks some already, and fewer than 5 may go on. Long before it counts as lost.
          setTimeout(end, 1_000);
        }
        if (halted && ++since === 5) await end();
      };
    }
    await inPhase(standby, 'finished');
    const run = await standby.client.run('r');
    expect(run).toMatchObject({ step: 1_500, examples: 6_000 });
    const lost = checkPushes(workers, run);
    expect(lost.length).toBeLessThanOrEqual(7);
    expect(run.stepsLost).toBe(lost.length);
  });

  test('takes over from a primary that is halted, which writes nothing when it is back, and says why', async () => {
    const primary = await start('primary', SHORT);
    const standby = await follow(primary, 'standby', SHORT);
    await createRun(primary, { epochsMax: 400, earlyStopping: { enabled: false } });
    const workers = work([primary, standby]);
    const ended = once(primary.child, 'exit');
    workers[0]!.pushing = (applied) => {
      if (applied < 100) return;
      // Once: it may push again before anything more is applied.
      workers[0]!.pushing = () => {};
      primary.child.kill('SIGSTOP');
    };
    await until('the standby serves', async () => (await standby.client.health()).status === 'ok');
    // Pushes that it has not read yet wait in its sockets.
    primary.child.kill('SIGCONT');
    const [code] = await ended;
    expect(code).toBe(1);
    await said(primary, /DP_STATE_FENCED: this server no longer owns its state/);
    await inPhase(standby, 'finished');
    const run = await standby.client.run('r');
    expect(run).toMatchObject({ step: 2_000, examples: 8_000, stepsLost: 0 });
    // What the old one applied after its pause was answered to nobody.
    const inIt = history();
    const acknowledged = workers.flatMap(({ applied }) => applied);
    expect(acknowledged.filter((push) => !inIt.has(push))).toEqual([]);
  });

  test('dies, and the primary goes on and says so; a new one joins and can take over', async () => {
    const primary = await start('shared');
    await createRun(primary, { epochsMax: 1_000, earlyStopping: { enabled: false } });
    const workers = work([primary]);
    await atStep(primary, 20);
    const first = await follow(primary, 'shared');
    await first.kill();
    const alone = async () => (await primary.client.status()).standby?.state === 'lost';
    await until('it is alone', alone);
    const { alerts } = await primary.client.status();
    expect(alerts.map(({ text }) => text).join()).toMatch(
      /the standby .* is lost .*continues alone/,
    );
    await said(primary, /continuing alone/);
    const { step } = await primary.client.run('r');
    await atStep(primary, step + 20);
    const second = await follow(primary, 'shared');
    await primary.kill();
    await atStep(second, step + 60);
    await second.client.stop('r');
    const run = await second.client.run('r');
    expect(checkPushes(workers, run)).toEqual([]);
  });

  test('takes over during an evaluation, a refit, and from the standby that took over, back to the first', async () => {
    const primary = await start('shared');
    await createRun(primary, {
      ...{ epochsMax: 1_000, evaluateEverySteps: 40 },
      earlyStopping: { patience: 1, afterStop: 'retrain', minImprovement: 0.02 },
    });
    const [worker] = work([primary], ['a']);
    let reached = () => {};
    let go = () => {};
    const evaluating = new Promise<void>((resolve) => {
      reached = resolve;
    });
    worker!.evaluating = async () => {
      worker!.evaluating = () => {};
      reached();
      await new Promise<void>((resolve) => {
        go = resolve;
      });
    };
    await atStep(primary, 5);
    const standby = await follow(primary, 'shared');
    await evaluating;
    await primary.kill();
    await until('the standby serves', async () => (await standby.client.health()).status === 'ok');
    go();
    await inPhase(standby, 'refitting', 'testing', 'finished');
    const again = await follow(standby, 'shared');
    const before = await standby.client.run('r');
    await standby.kill();
    await inPhase(again, 'finished');
    const run = await again.client.run('r');
    expect(run.best).toEqual(before.best);
    // As many updates again as the best evaluation had seen.
    expect(run.step).toBe(run.earlyStopping.stoppedAt! + run.best!.step);
    expect(checkPushes([worker!], run)).toEqual([]);
  });

  test('lets a primary that is stopped in good order hand all over, and its standby be asked by one address of two', async () => {
    const primary = await start('primary');
    await createRun(primary, { epochsMax: 10_000, earlyStopping: { enabled: false } });
    const workers = work([primary]);
    const standby = await follow(primary, 'standby', ['--replication', 'async']);
    const both = createRestClient({ server: `${standby.url},${primary.url}` });
    // The standby is asked first and says that it is none.
    const { step } = await both.run('r');
    await atStep(primary, step + 20);
    primary.child.kill('SIGTERM');
    await until('the standby has gone on', async () => (await both.run('r')).step > step + 60);
    await both.stop('r');
    const run = await both.run('r');
    expect(run.stepsLost).toBe(0);
    expect(checkPushes(workers, run)).toEqual([]);
  });

  test('is refused work, a wrong store and shards, each with a reason', async () => {
    const primary = await start('primary');
    const standby = await follow(primary, 'standby');
    const refused = await fetch(`${standby.url}/runs`);
    expect(refused.status).toBe(503);
    expect(await refused.json()).toMatchObject({ code: 'DP_STANDBY' });
    expect(await (await fetch(`${standby.url}/health`)).json()).toMatchObject({
      status: 'standby',
      stateStore: 'redis',
    });
    const ending = async (args: readonly string[]) =>
      startServerProcess(join(root, 'other'), 0, [...['--standby-of', primary.url, ...args]]).then(
        (server) => server.closed.then((code) => `${code} ${server.log()}`),
        (error: Error) => error.message,
      );
    expect(await ending(['--shards', '2'])).toMatch(/DP_USAGE.*do not go together/);
    await standby.kill();
    // Files of its own: nothing would tell it that the primary's lease has lapsed.
    expect(await ending([])).toMatch(/DP_USAGE: the state store of this standby is not that of/);
  });
});
