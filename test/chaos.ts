/**
 * Real faults in training: MNIST, a server with Redis, worker processes behind a proxy; processes are
 * killed and halted, connections cut in the middle of a frame or slowed down, the disk filled, Redis killed and
 * started again. A training that ends before all faults have come is followed by another one. Afterwards the server's log
 * of applied pushes is checked, and the accuracies told.
 *
 *     npm run chaos -- --faults 200            # about ten minutes on 2 cores
 *     npm run chaos -- --faults 0              # the same without faults, to compare with
 *     npm run chaos -- --faults 200 --seed 7   # other faults
 *     npm run chaos -- --faults 200 --refit    # with early stopping's retrain after it
 *     npm run chaos -- --faults 100 --mode synchronous  # several pushes make an update
 *     npm run chaos -- --faults 100 --tables   # rows of two tables, one of which grows, beside the parameters
 *     npm run chaos -- --faults 100 --groups   # groups with rates of their own, one of them frozen at first
 *     npm run chaos -- --faults 100 --tables --shards 3  # parameters and rows are cut over three processes
 *     npm run chaos -- --faults 100 --standby  # with a second server, which takes over when one is killed or halted
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { readdir } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { setTimeout as delay } from 'node:timers/promises';
import { parseArgs } from 'node:util';
import { TEMPORARY } from '../files/atomic-file.ts';
import { checkpointFolder } from '../files/checkpoint.ts';
import { checkPushLog } from '../server/watch/push-log.ts';
import { type PartialConfig, resolveConfig } from '../shared/config.ts';
import { collects } from '../shared/consistency.ts';
import { type Random, random } from '../shared/random.ts';
import type { RunDetail } from '../shared/rest.ts';
import { createRestClient } from '../shared/rest-client.ts';
import { hashExperiment } from '../worker/experiment.ts';
import { freePort, startRedis } from './redis-server.ts';
import { startProxy } from './support/proxy.ts';
import { mountSmallDisk, smallDiskMissing } from './support/small-disk.ts';

const ROOT = join(import.meta.dirname, '..');
const PROGRAM = join(ROOT, 'bin', 'downpour.js');

const { values } = parseArgs({
  options: {
    faults: { type: 'string', default: '200' },
    workers: { type: 'string', default: '4' },
    /** Epochs of each training. */
    epochs: { type: 'string', default: '30' },
    /** `consistency.mode` of each training. */
    mode: { type: 'string', default: 'async' },
    /** Faults come for as long at most. By default enough for a machine that is ten times as slow. */
    minutes: { type: 'string' },
    seed: { type: 'string', default: '1' },
    engine: { type: 'string', default: 'auto' },
    /** Early stopping's `retrain` follows, with faults of its own. */
    refit: { type: 'boolean', default: false },
    /** The experiment has tables of rows: test/fixtures/chaos-rows.ts. */
    tables: { type: 'boolean', default: false },
    /** Parameters are in groups. */
    groups: { type: 'boolean', default: false },
    /** A second server follows the first, by `sync` replication, and the other way round after it took over. */
    standby: { type: 'boolean', default: false },
    /** Processes that hold a share of the parameters and of the rows, the server among them. */
    shards: { type: 'string', default: '1' },
    /** Mean time between faults. */
    every: { type: 'string', default: '1.5' },
  },
});
const faultsMax = Number(values.faults);
const shardCount = Number(values.shards);
const minutesMax = Number(values.minutes ?? 10 + (faultsMax * Number(values.every)) / 6);
/** The experiment, with groups for its layers. */
const EXPERIMENT = values.tables
  ? { folder: join('test', 'fixtures'), name: 'chaos-rows', layers: ['hidden', 'effect'] }
  : { folder: 'examples', name: 'mnist-mlp', layers: ['dense_1', 'dense_2'] };
const experiments = join(ROOT, EXPERIMENT.folder);
const [first, second] = EXPERIMENT.layers as [string, string];
const groups: PartialConfig['groups'] = {
  [first]: { frozen: { untilStep: 150 }, optimizer: { kind: 'adam' }, learningRate: 0.1 },
  [second]: { everySteps: 2, weightDecay: { rate: 0.001 } },
};
const tables: PartialConfig['tables'] = {
  word: { rows: 2_000, width: 8 },
  more: { rows: 'hash', width: 4, rowsMax: 1_500, admitAfter: 2, expireAfter: 400 },
};
/** Wrong options are refused before anything is started. */
const config = resolveConfig({
  consistency: { mode: values.mode },
  ...(values.groups && { groups }),
  ...(values.tables && { tables }),
});
const draw: Random = random(Number(values.seed), 1);
const pick = <T>(from: readonly T[]): T => from[draw.below(from.length)]!;
const began = performance.now();
const say = (text: string) =>
  console.error(`${((performance.now() - began) / 1000).toFixed(1).padStart(6)} s  ${text}`);

const folder = mkdtempSync(join(tmpdir(), 'downpour-chaos-'));
/** The state has one of its own, where that can be had. */
const disk = smallDiskMissing() === '' ? mountSmallDisk(100e6) : null;
const state = join(disk?.path ?? folder, 'state');
const pushLog = join(folder, 'pushes');
const children = new Set<ChildProcess>();
process.once('exit', () => {
  for (const child of children) child.kill('SIGKILL');
  disk?.remove();
  rmSync(folder, { recursive: true, force: true });
});
for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, () => process.exit(130));

const ENVIRONMENT: NodeJS.ProcessEnv = { ...process.env, NO_COLOR: '1' };
for (const name of Object.keys(ENVIRONMENT)) {
  if (name.startsWith('DOWNPOUR_') && name !== 'DOWNPOUR_DATA') delete ENVIRONMENT[name];
}

function start(args: readonly string[]): ChildProcess {
  const child = spawn(process.execPath, [PROGRAM, ...args], {
    cwd: ROOT,
    env: ENVIRONMENT,
    stdio: ['ignore', 'ignore', 'pipe'],
  });
  children.add(child);
  child.once('exit', () => children.delete(child));
  createInterface({ input: child.stderr! }).on('line', (line) => {
    if (/defect|error DP_/.test(line)) say(`  ${args[0]}: ${line}`);
  });
  return child;
}

const ended = ({ exitCode, signalCode }: ChildProcess) => exitCode !== null || signalCode !== null;

/** A process that is started again whenever it ends, as an orchestrator does. */
class Service {
  readonly name: string;
  readonly #args: () => readonly string[] | Promise<readonly string[]>;
  /** Null: its first start is under way. */
  child: ChildProcess | null = null;
  #stopped = false;

  constructor(name: string, args: () => readonly string[] | Promise<readonly string[]>) {
    this.name = name;
    this.#args = args;
    void this.#start();
  }

  async #start(): Promise<void> {
    const args = await this.#args();
    if (this.#stopped) return;
    const child = start(args);
    this.child = child;
    child.once('exit', async () => {
      await delay(1_000 * draw.uniform());
      await this.#start();
    });
  }

  kill(): void {
    this.child?.kill('SIGKILL');
  }

  async halt(ms: number): Promise<void> {
    const { child } = this;
    child?.kill('SIGSTOP');
    await delay(ms);
    child?.kill('SIGCONT');
  }

  async end(): Promise<void> {
    this.#stopped = true;
    const { child } = this;
    if (!child || ended(child)) return;
    const exit = once(child, 'exit');
    child.kill('SIGTERM');
    await Promise.race([exit, delay(10_000).then(() => child.kill('SIGKILL'))]);
  }
}

let made = 0;
const redis = await startRedis();
process.once('exit', () => {
  try {
    // 0 would be this process and all that belong to it.
    if (redis.pid > 0) process.kill(redis.pid, 'SIGKILL');
  } catch {
    // It has ended, or is away by a fault.
  }
});
let redisAway = false;
const ports = [await freePort(), ...(values.standby ? [await freePort()] : [])];
const urlOf = (port: number) => `http://127.0.0.1:${port}`;
const isServing = (url: string) =>
  createRestClient({ server: url, timeoutMs: 2_000 })
    .health()
    .then(
      ({ status }) => status === 'ok',
      () => false,
    );
/** Between workers and each server. */
const proxies = await Promise.all(ports.map((port) => startProxy(port, Number(values.seed))));
const servers = ports.map(
  (port, i) =>
    new Service(ports.length === 1 ? 'the server' : `server ${i}`, async () => {
      const others = ports.filter((each) => each !== port).map(urlOf);
      // The second waits for the first, whatever begins sooner.
      const follows = i > 0 && made === 0 ? others : [];
      for (const url of others) if (await isServing(url)) follows.push(url);
      return [
        ...['serve', '--port', String(port), '--state', state, '--redis-url', redis.url],
        ...['--no-local-socket', '--push-log', pushLog],
        ...(values.standby ? ['--lease-seconds', '2'] : []),
        ...(shardCount > 1 ? ['--shards', values.shards, '--shards-elsewhere'] : []),
        ...(follows.length > 0 ? ['--standby-of', follows[0]!] : []),
      ];
    }),
);
/** Those beside the server. They find each other by Redis. */
const shards = Array.from(
  { length: shardCount - 1 },
  (_, i) =>
    new Service(`shard ${i + 1}`, () => [
      ...['shard', '--host', '127.0.0.1', '--port', '0', '--state', state],
      ...['--redis-url', redis.url, '--no-local-socket'],
    ]),
);
const client = createRestClient({ server: ports.map(urlOf).join(), timeoutMs: 30_000 });
/** The trainings, one after another; the last one is under way. */
const names: string[] = [];
const look = () => client.run(names.at(-1)!).catch(() => null);
/** Creates the next training, whatever happens to the server meanwhile. */
async function createTraining(): Promise<void> {
  const id = `chaos-${names.length + 1}`;
  names.push(id);
  const options = {
    id,
    experiment: EXPERIMENT.name,
    experimentHash: await hashExperiment(join(experiments, `${EXPERIMENT.name}.ts`)),
    config: {
      ...{ minibatchSize: 64, learningRate: 0.02, leaseSeconds: 15 },
      optimizer: { kind: 'momentum', momentum: 0.9 },
      ...(values.groups && { groups }),
      ...(values.tables ? { tables } : { averaging: { kind: 'ema', decay: 0.999 } as const }),
      consistency: { mode: values.mode, ...(values.tables && { stalenessMax: 20 }) },
      epochsMax: Number(values.epochs),
      // Afterwards again as many updates, on all examples.
      earlyStopping: { patience: 1_000, ...(values.refit ? { afterStop: 'retrain' } : {}) },
      checkpoint: { everySeconds: 2 },
    },
  };
  for (;;) {
    // A fault may end this request: its server was killed, or waits for Redis or for its shards. Or it was carried out, and its
    // answer was lost. So the run is looked for, and created once more only if it is not there.
    const created = await client.createRun(options).catch(() => look());
    if (created) return;
    await delay(300);
  }
}
await createTraining();
const workers = Array.from(
  { length: Number(values.workers) },
  (_, i) =>
    new Service(`worker ${i}`, () => [
      ...['work', '--server', proxies.map(({ port }) => `ws://127.0.0.1:${port}`).join()],
      ...['--name', `w-${i}`],
      ...['--engine', values.engine, '--threads', '1', '--experiments', experiments],
    ]),
);
while ((await look())?.phase !== 'training') await delay(300);
say(`${workers.length} workers train for ${values.epochs} epochs; ${faultsMax} faults will come`);

const counts = new Map<string, number>();
const moments = new Map<string, number>();
const count = (of: Map<string, number>, what: string) => of.set(what, (of.get(what) ?? 0) + 1);
const FAULTS: Readonly<Record<string, () => Promise<void> | void>> = {
  'a worker killed': () => pick(workers).kill(),
  'a worker halted': () => pick(workers).halt(200 + 4_000 * draw.uniform()),
  'a connection cut': () => {
    const proxy = pick(proxies);
    if (proxy.connections.length === 0) return;
    const one = pick(proxy.connections);
    proxy.cut((connection) => connection === one);
  },
  'all connections cut': () => {
    for (const proxy of proxies) proxy.cut();
  },
  'a slow network for a while': async () => {
    for (const proxy of proxies) proxy.weather = { delayMs: 200, loss: 0.05, resendMs: 200 };
    await delay(1_000 + 4_000 * draw.uniform());
    for (const proxy of proxies) proxy.weather = null;
  },
  'a server killed': () => pick(servers).kill(),
  // Sometimes for longer than a lease.
  'a server halted': () =>
    pick(servers).halt(200 + (values.standby ? 6_000 : 2_000) * draw.uniform()),
  ...(shards.length > 0 && {
    'a shard killed': () => pick(shards).kill(),
    'a shard halted': () => pick(shards).halt(200 + 4_000 * draw.uniform()),
  }),
  ...(disk && {
    'the disk full for a while': async () => {
      const free = disk.fill();
      await delay(1_000 + 4_000 * draw.uniform());
      free();
    },
  }),
  'Redis killed for a while': async () => {
    // It is away already, and comes back by itself.
    if (redisAway) return;
    redisAway = true;
    await redis.kill();
    await delay(200 + 3_000 * draw.uniform());
    await redis.restart();
    redisAway = false;
  },
};
const KINDS = Object.keys(FAULTS);

/** What the run is doing, as far as can be seen from outside. */
async function moment(): Promise<string> {
  const [run, seen] = await Promise.all([look(), client.workers(names.at(-1)!).catch(() => null)]);
  if (!run) return 'the server away';
  const files = await readdir(checkpointFolder(state, names.at(-1)!)).catch(() => []);
  if (files.some((name) => name.endsWith(TEMPORARY)))
    return `${run.phase}, a checkpoint being written`;
  if (seen?.some((worker) => worker.state === 'evaluating')) return `${run.phase}, an evaluation`;
  return run.phase;
}
/** Waits until training has got on, for half a minute at most: on a busy machine a server takes that long to start. */
async function untilItGetsOn(): Promise<void> {
  const from = await look();
  const beganMs = performance.now();
  while (performance.now() - beganMs < 30_000) {
    await delay(300);
    const run = await look();
    if (run && (!from || run.step !== from.step || run.phase !== from.phase)) return;
  }
}

let told = 0;
let last = await look();
for (;;) {
  const run = await look();
  if (run) last = run;
  const isLate = performance.now() - began > 60_000 * minutesMax;
  if (run && ['testing', 'finished', 'failed', 'stopped'].includes(run.phase)) {
    if (made === faultsMax || isLate || run.phase === 'failed' || run.phase === 'stopped') break;
    if (run.phase === 'finished') {
      say(`${names.at(-1)} is finished after ${made} of ${faultsMax} faults: another one begins`);
      await createTraining();
    }
  }
  if (made < faultsMax && !isLate) {
    const kind = pick(KINDS);
    count(moments, await moment());
    // Two kinds often come at once: a halted process is killed, or its connection cut.
    const fault = Promise.resolve(FAULTS[kind]!()).catch((error: unknown) => say(String(error)));
    if (draw.uniform() < 0.5) {
      await fault;
      await untilItGetsOn();
    }
    made++;
    count(counts, kind);
    await delay(-1_000 * Number(values.every) * Math.log(1 - draw.uniform()));
  } else await delay(500);
  if (performance.now() - began - told > 20_000) {
    told = performance.now() - began;
    say(`${made} faults, step ${last?.step} of ${last?.stepsMax}, ${last?.stepsLost} steps lost`);
  }
}
const seconds = (performance.now() - began) / 1000;
const runs: RunDetail[] = [];
for (const name of names) {
  let run: RunDetail | null = null;
  while (run?.phase !== 'finished' && run?.phase !== 'failed') {
    if (run) await delay(300);
    run = await client.run(name).catch(() => null);
    if (performance.now() - began > 60_000 * (minutesMax + 30)) {
      throw new Error(`${name} is not over 30 minutes after the last fault: ${run?.phase}`);
    }
  }
  runs.push(run);
}
const log = readFileSync(pushLog, 'utf8');
for (const service of [...workers, ...servers.reverse(), ...shards]) await service.end();
for (const proxy of proxies) await proxy.close();
await redis.stop();
const reports = runs.map((run) => {
  const lines = log.split('\n').filter((line) => line.split(' ')[2] === run.id);
  const report = checkPushLog(lines.join('\n'));
  const wanted = (run.data?.trainCount ?? 0) * Number(values.epochs);
  const counted = run.pushes.applied + run.pushes.damped;
  const isSound =
    run.phase === 'finished' &&
    report.twice.length === 0 &&
    report.steps.length === 0 &&
    report.applied === counted &&
    // Where several pushes make a step, there are fewer steps than pushes.
    (collects(config.consistency) ? counted >= run.step : counted === run.step) &&
    (values.refit || run.examples === wanted);
  return {
    ...{ run: run.id, isSound, phase: run.phase, reason: run.reason },
    ...{ steps: run.step, stepsLost: run.stepsLost, tables: run.tables },
    accuracy: run.test?.error == null ? null : 100 * (1 - run.test.error),
    pushes: { ...run.pushes, inTheLog: report.applied, takenBack: report.lost },
    ...{ appliedTwice: report.twice.length, stepsOutOfOrder: report.steps.length },
    examples: { used: run.examples, wanted: values.refit ? null : wanted },
  };
});
console.log(
  JSON.stringify(
    {
      ...{
        mode: values.mode,
        tables: values.tables,
        groups: values.groups,
        shards: shardCount,
        faults: { made, wanted: faultsMax },
      },
      ...{ kinds: Object.fromEntries(counts), moments: Object.fromEntries(moments) },
      ...{ seconds: Math.round(seconds), runs: reports },
    },
    null,
    2,
  ),
);
process.exit(made === faultsMax && reports.every(({ isSound }) => isSound) ? 0 : 1);
