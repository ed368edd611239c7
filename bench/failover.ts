/**
 * `npx tsx bench/failover.ts`: kills a server with SIGKILL in the middle of a training of mnist-mlp, again and
 * again, each time with a hot standby, and measures how soon a push is applied by that one, and what was lost. Then
 * what a standby costs: updates a second without one, with an `async` and with a `sync` one, by turns.
 *
 *     npx tsx bench/failover.ts --redis redis://127.0.0.1:6379     # 7 kills, about three minutes
 *     npx tsx bench/failover.ts --redis … --kills 3 --workers 4
 *     npx tsx bench/failover.ts --redis … --write                  # also into docs/reliability.md
 */

import type { ChildProcess } from 'node:child_process';
import { readFileSync, writeFileSync } from 'node:fs';
import { cpus } from 'node:os';
import { join } from 'node:path';
import { setTimeout as wait } from 'node:timers/promises';
import { parseArgs } from 'node:util';
import { medianOf } from '../shared/quantile.ts';
import { createRestClient, type RestClient } from '../shared/rest-client.ts';
import { createRun } from './exchange.ts';
import { MLP_PARAMETERS, startLoad } from './load.ts';
import { end, listening, ROOT, runProgram, temporaryFolder, until } from './processes.ts';
import { formatTable, writeBetween } from './report.ts';

const PAGE = join(ROOT, 'docs/reliability.md');
const EXAMPLE = join(ROOT, 'examples/mnist-mlp.ts');
/** From the kill to the first push that the standby applies, median. */
const TARGET_SECONDS = 3;
const LEASE_SECONDS = 2;
const MODES = ['none', 'async', 'sync'] as const;
type Mode = (typeof MODES)[number];

const { values } = parseArgs({
  options: {
    redis: { type: 'string' },
    kills: { type: 'string', default: '7' },
    workers: { type: 'string', default: '2' },
    engine: { type: 'string' },
    /** Turns of each mode. */
    turns: { type: 'string', default: '5' },
    /** How long one turn lasts. */
    seconds: { type: 'string', default: '2' },
    write: { type: 'boolean', default: false },
  },
});

const folder = temporaryFolder();
const run = (...args: string[]) => runProgram(folder.path, args);

interface Server {
  readonly child: ChildProcess;
  readonly url: string;
  readonly client: RestClient;
}

let servers = 0;

/** Each in a folder of its own, as on machines of their own. */
async function serve(...more: string[]): Promise<Server> {
  const state = join(folder.path, `state-${servers++}`);
  const common = ['--port', '0', '--state', state, '--redis-url', values.redis!];
  const lease = ['--lease-seconds', String(LEASE_SECONDS)];
  const child = run('serve', ...common, ...lease, '--json', ...more);
  const url = await listening(child);
  return { child, url, client: createRestClient({ server: url, timeoutMs: 60_000 }) };
}

const standbyState = async ({ client }: Server) => (await client.status()).standby?.state ?? null;

async function follow(primary: Server, mode: Exclude<Mode, 'none'>): Promise<Server> {
  const standby = await serve('--standby-of', primary.url, '--replication', mode);
  await until(async () => (await standbyState(primary)) === 'following', 50);
  return standby;
}

// Failover.

interface Kill {
  readonly mode: 'async' | 'sync';
  readonly listensSeconds: number;
  readonly pushSeconds: number;
  readonly lost: number;
}

async function failovers(): Promise<Kill[]> {
  let primary = await serve();
  const engine = values.engine === undefined ? [] : ['--engine', values.engine];
  for (let i = 0; i < Number(values.workers); i++) {
    const experiments = ['--experiments', join(ROOT, 'examples')];
    const worker = run(
      'work',
      '--server',
      primary.url,
      '--threads',
      '1',
      ...experiments,
      ...engine,
    );
    worker.stdout!.resume();
    worker.stderr!.resume();
  }
  const id = 'failover';
  const settings = ['earlyStopping.enabled=false', 'epochsMax=100000'];
  const training = run(
    ...['train', EXAMPLE, '--server', primary.url, '--workers', '0', '--detach', '--run', id],
    ...settings.flatMap((setting) => ['--set', setting]),
  );
  training.stdout!.resume();
  await until(async () => (await primary.client.run(id)).step > 100, 100);
  const kills: Kill[] = [];
  for (let i = 0; i < Number(values.kills); i++) {
    const mode = i % 2 === 0 ? 'sync' : 'async';
    const standby = await follow(primary, mode);
    // At another moment between two renewals of the lease each time.
    await wait(1_000 + 150 * (i % 7));
    const [before] = await primary.client.runs();
    const killed = performance.now();
    await end(primary.child);
    const first = await until(async () => (await standby.client.runs())[0] ?? null, 10);
    const listens = performance.now();
    const pushed = await until(async () => {
      const [now] = await standby.client.runs();
      return now!.pushes.applied > first.pushes.applied && performance.now();
    }, 10);
    // All workers have told by then what they saw.
    await wait(2_000);
    const [after] = await standby.client.runs();
    kills.push({
      mode,
      listensSeconds: (listens - killed) / 1000,
      pushSeconds: (pushed - killed) / 1000,
      lost: after!.stepsLost - before!.stepsLost,
    });
    const { listensSeconds, pushSeconds, lost } = kills.at(-1)!;
    console.error(
      `kill ${i + 1}, ${mode}: the standby serves after ${listensSeconds.toFixed(2)} s, first push after ${pushSeconds.toFixed(2)} s, ${lost} steps lost`,
    );
    primary = standby;
  }
  await end(primary.child);
  return kills;
}

// What it costs.

/** Updates a second of each mode, of each turn. */
async function costs(): Promise<Record<Mode, number[]>> {
  const primary = await serve();
  await createRun(primary);
  const load = startLoad();
  const count = Number(values.workers);
  const to = { url: primary.url, run: 'bench', transport: 'tcp', push: 'f32' } as const;
  await load.open({ count, to: { ...to, elements: MLP_PARAMETERS } });
  const seen: Record<Mode, number[]> = { none: [], async: [], sync: [] };
  const seconds = Number(values.seconds);
  // The first one pays for code and pools.
  await load.run(seconds);
  for (let turn = 0; turn < Number(values.turns); turn++) {
    for (const mode of MODES) {
      const standby = mode === 'none' ? null : await follow(primary, mode);
      const { roundTripsPerSecond } = await load.run(seconds);
      seen[mode].push(roundTripsPerSecond);
      console.error(`turn ${turn + 1}, ${mode}: ${roundTripsPerSecond.toFixed(0)} updates/s`);
      if (!standby) continue;
      await end(standby.child);
      await until(async () => (await standbyState(primary)) === 'lost', 20);
    }
  }
  await load.close();
  await end(primary.child);
  return seen;
}

function report(kills: readonly Kill[], cost: Readonly<Record<Mode, readonly number[]>>): void {
  const row = (what: string, seen: readonly number[]) => ({
    ...{ what, median: medianOf(seen), worst: Math.max(...seen) },
  });
  const push = kills.map(({ pushSeconds }) => pushSeconds);
  const lost = (mode: Kill['mode']) =>
    kills.filter((kill) => kill.mode === mode).map((kill) => kill.lost);
  const table = formatTable({
    columns: [
      { key: 'what', title: 'mnist-mlp' },
      { key: 'median', title: 'median', digits: 2 },
      { key: 'worst', title: 'worst', digits: 2 },
    ],
    rows: [
      row(
        'seconds from the kill until the standby serves',
        kills.map(({ listensSeconds }) => listensSeconds),
      ),
      row('seconds from the kill to its first applied push', push),
      row('steps lost, sync', lost('sync')),
      row('steps lost, async', lost('async')),
    ],
  });
  const times = (mode: Mode) => medianOf(cost[mode].map((rate, turn) => rate / cost.none[turn]!));
  const costTable = formatTable({
    columns: [
      { key: 'mode', title: 'standby' },
      { key: 'rate', title: 'updates/s' },
      { key: 'times', title: 'times that of none', digits: 2 },
    ],
    rows: MODES.map((mode) => ({ mode, rate: medianOf(cost[mode]), times: times(mode) })),
  });
  const met = medianOf(push) <= TARGET_SECONDS ? 'met' : 'missed';
  const text = `${kills.length} kills, ${values.workers} workers, a lease of ${LEASE_SECONDS} s in Redis, a folder for each server; target ${TARGET_SECONDS} s median: ${met}.\n\n${table}\n\n${values.workers} simulated workers, ${MLP_PARAMETERS.toLocaleString('en')} parameters in f32, ${values.turns} turns of ${values.seconds} s each; all processes on one machine with ${cpus().length} cores, medians; the ratios are those of each turn.\n\n${costTable}`;
  console.log(text);
  if (values.write) {
    writeFileSync(PAGE, writeBetween(readFileSync(PAGE, 'utf8'), 'failover', text));
  }
}

if (values.redis === undefined) {
  console.error('--redis says which Redis the servers share, like redis://127.0.0.1:6379');
  process.exit(2);
}
const kills = await failovers();
report(kills, await costs());
process.exit(0);
