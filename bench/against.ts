/**
 * The rows of `exchange` and `system` of two checkouts, by turns in one run: is this one slower than the other one?
 *
 *     git worktree add ../before COMMIT && (cd ../before && npm ci)
 *     npx tsx bench/against.ts ../before                       # all rows, about an hour
 *     npx tsx bench/against.ts ../before exchange --rounds 2   # some of them, less exactly
 *
 * A row has rounds. In each, both servers and their workers live side by side, and one side works at a time: a pair is a slice
 * of each side, right after one another, so what else the machine does meets both alike. Which side is opened and measured first
 * changes. Two processes of the same code differ by up to 5 % for as long as they live, so the interval (95 %, Student's t of the
 * logarithms) is that of the rounds, not of the pairs. Each side is loaded by its own client.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { existsSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { setTimeout as wait } from 'node:timers/promises';
import { pathToFileURL } from 'node:url';
import { parseArgs } from 'node:util';
import { DownpourError, errorCode, errorText } from '../shared/errors.ts';
import { estimate, meanOf } from '../study/statistics.ts';
import type { Load } from './load.ts';
import { cpuMs, ENVIRONMENT, end, keep, ROOT, type ServerProcess } from './processes.ts';
import { formatBytes, formatTable } from './report.ts';
import { SYSTEM_CASES, type SystemCase } from './system.ts';

const USAGE =
  'npx tsx bench/against.ts PATH [part of a row …] [--rounds 4] [--pairs 10] [--seconds 0.6]';

interface Slice {
  readonly updates: number;
  readonly seconds: number;
}

/** A server with its workers. They are at rest except during a slice. */
interface Side {
  readonly server: ServerProcess;
  slice(seconds: number): Promise<Slice>;
  close(): Promise<void>;
}

interface Row {
  readonly what: string;
  /** How many times longer its slices are than others. */
  readonly share?: number;
  open(checkout: Checkout): Promise<Side>;
}

/** The benchmarks of a checkout, with its own code below them. */
interface Checkout {
  readonly path: string;
  readonly exchange: typeof import('./exchange.ts');
  readonly load: typeof import('./load.ts');
  readonly processes: typeof import('./processes.ts');
  readonly system: typeof import('./system.ts');
}

async function checkoutAt(path: string): Promise<Checkout> {
  if (!existsSync(join(path, 'bench', 'exchange.ts'))) {
    throw new DownpourError('DP_USAGE', `${path} has no benchmarks of the project; ${USAGE}`);
  }
  const load = (name: string) => import(pathToFileURL(join(path, 'bench', `${name}.ts`)).href);
  const [exchange, loads, processes, system] = await Promise.all(
    ['exchange', 'load', 'processes', 'system'].map(load),
  );
  return { path, exchange, load: loads, processes, system };
}

// The rows.

const SIZES = [1_000, 1_000_000, 16_000_000, 100_000_000];

function exchangeRows(): Row[] {
  const cells = SIZES.flatMap((bytes) => [
    { bytes, workers: 1, inFlight: 1 },
    { bytes, workers: 2, inFlight: 1 },
    ...(bytes === SIZES[0] ? [{ bytes, workers: 2, inFlight: 8 }] : []),
  ]);
  return cells.flatMap(({ bytes, workers, inFlight }) =>
    (['tcp', 'unix'] as const).map((transport): Row => {
      const deep = inFlight > 1 ? `, ${inFlight} in flight` : '';
      const what = `exchange ${formatBytes(bytes)}, ${workers} workers, ${transport}${deep}`;
      return {
        what,
        // A few updates in a slice would be a coarse measure.
        share: bytes >= 100_000_000 ? 4 : 1,
        async open({ exchange, load, processes }) {
          const server = await processes.startServer();
          await exchange.createRun(server, { consistency: { depth: inFlight } });
          const loads: Load[] = [];
          for (let index = 0; index < workers; index++) {
            const one = load.startLoad();
            loads.push(one);
            const to = { url: server.url, run: exchange.RUN, transport, elements: bytes / 4 };
            await one.open({ count: 1, index, inFlight, to: { ...to, push: 'f32' } });
          }
          return {
            server,
            async slice(seconds) {
              const from = performance.now();
              const { latencies } = await load.runTogether(loads, seconds);
              return { updates: latencies.length, seconds: (performance.now() - from) / 1000 };
            },
            async close() {
              await Promise.all(loads.map((each) => each.close()));
              await server.close();
            },
          };
        },
      };
    }),
  );
}

/** How long stopped workers need until they push again at their pace. */
const SETTLE_MS = 100;

function systemRow(each: SystemCase): Row {
  const what = `system ${each.workers} ${each.worker} workers, push ${each.push}, pull ${each.pull}, depth ${each.depth}`;
  return {
    what,
    async open({ path, processes, system }) {
      const server = await processes.startServer();
      await system.createRun(server.client, each);
      const workers: ChildProcess[] = [];
      for (let i = 0; i < each.workers; i++) {
        workers.push(
          each.worker === 'simulated'
            ? system.startSimulated(server.url, each.push, `w-${i}`)
            : startWorker(path, each.worker, server.url, i),
        );
      }
      const step = async () => (await server.client.run('bench')).step;
      while ((await step()) < 100 * each.workers) {
        const ended = workers.find(({ exitCode }) => exitCode !== null);
        if (ended) throw new Error(`a worker of ${path} ended with ${ended.exitCode}`);
        await wait(100);
      }
      const all = (signal: NodeJS.Signals) => {
        for (const worker of workers) worker.kill(signal);
      };
      all('SIGSTOP');
      return {
        server,
        async slice(seconds) {
          all('SIGCONT');
          await wait(SETTLE_MS);
          const before = await step();
          const from = performance.now();
          await wait(1000 * seconds);
          const updates = (await step()) - before;
          const took = (performance.now() - from) / 1000;
          all('SIGSTOP');
          await wait(SETTLE_MS);
          return { updates, seconds: took };
        },
        async close() {
          await Promise.all(workers.map(end));
          await server.close();
        },
      };
    },
  };
}

function startWorker(path: string, engine: string, url: string, index: number): ChildProcess {
  const args = [
    ...[join(path, 'bin', 'downpour.js'), 'work', '--server', url, '--run', 'bench'],
    ...['--name', `w-${index}`, '--engine', engine, '--threads', '1'],
    ...['--experiments', join(path, 'examples')],
  ];
  const stdio = ['ignore', 'ignore', 'inherit'] as const;
  return keep(spawn(process.execPath, args, { cwd: path, env: ENVIRONMENT, stdio: [...stdio] }));
}

// The comparison.

interface Compared {
  readonly what: string;
  /** Ratios of this checkout to the other one: above 1 is faster; of processor time, below 1 is better. */
  readonly speed: number;
  readonly low: number;
  readonly high: number;
  readonly cpu: number;
  readonly updatesPerSecond: number;
}

interface Times {
  /** How often both sides are opened, with the other one first each time. */
  readonly rounds: number;
  readonly pairs: number;
  readonly seconds: number;
}

/** Sums over the slices of both sides. */
interface Sums {
  updates: number;
  seconds: number;
  cpuMs: number;
}

async function compare(
  row: Row,
  checkouts: readonly [Checkout, Checkout],
  times: Times,
): Promise<Compared> {
  const { rounds } = times;
  const sums = checkouts.map((): Sums => ({ updates: 0, seconds: 0, cpuMs: 0 }));
  const logs: number[] = [];
  for (let round = 0; round < rounds; round++) {
    logs.push(await compareOnce(row, checkouts, times, { sums, first: round % 2 }));
  }
  const { mean, low, high } = estimate(logs);
  const [mine, other] = sums.map(({ cpuMs, updates }) => cpuMs / updates);
  return {
    what: row.what,
    ...{ speed: Math.exp(mean), low: Math.exp(low), high: Math.exp(high) },
    ...{ cpu: mine! / other!, updatesPerSecond: sums[0]!.updates / sums[0]!.seconds },
  };
}

/** @returns the mean of the logarithms of the pairs' ratios. */
async function compareOnce(
  { open, share = 1 }: Row,
  checkouts: readonly [Checkout, Checkout],
  { pairs, seconds }: Times,
  { sums, first }: { readonly sums: readonly Sums[]; readonly first: number },
): Promise<number> {
  const sides: Side[] = [];
  try {
    for (const at of [first, 1 - first]) sides[at] = await open(checkouts[at]!);
    // Code is compiled and memory grows in the first seconds of a server.
    for (let i = 0; i < 4; i++)
      for (const side of sides) await side.slice(Math.min(1, 2 * seconds));
    let mean = 0;
    for (let pair = 0; pair < pairs; pair++) {
      const rates = [0, 0];
      for (const at of pair % 2 === 0 ? [0, 1] : [1, 0]) {
        const side = sides[at]!;
        const before = await cpuMs(side.server.pid);
        const slice = await side.slice(seconds * share);
        const sum = sums[at]!;
        sum.cpuMs += (await cpuMs(side.server.pid)) - before;
        sum.updates += slice.updates;
        sum.seconds += slice.seconds;
        rates[at] = slice.updates / slice.seconds;
      }
      mean += Math.log(rates[0]! / rates[1]!) / pairs;
    }
    return mean;
  } finally {
    await Promise.all(sides.map((side) => side?.close()));
  }
}

async function main(): Promise<void> {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: {
      rounds: { type: 'string', default: '4' },
      pairs: { type: 'string', default: '10' },
      seconds: { type: 'string', default: '0.6' },
    },
  });
  const [path, ...parts] = positionals;
  const rounds = Number(values.rounds);
  const [pairs, seconds] = [Number(values.pairs), Number(values.seconds)];
  if (path === undefined || !(rounds >= 2 && pairs >= 1 && seconds > 0)) {
    throw new DownpourError('DP_USAGE', USAGE);
  }
  const checkouts = [await checkoutAt(ROOT), await checkoutAt(resolve(path))] as const;
  const all = [...exchangeRows(), ...SYSTEM_CASES.map(systemRow)];
  const rows = all.filter(({ what }) => parts.every((part) => what.includes(part)));
  if (rows.length === 0) {
    throw new DownpourError('DP_USAGE', `no row has '${parts.join("' and '")}'; ${USAGE}`);
  }
  const compared: Compared[] = [];
  for (const row of rows) {
    const one = await compare(row, checkouts, { rounds, pairs, seconds });
    compared.push(one);
    const [speed, low, high, cpu] = [one.speed, one.low, one.high, one.cpu].map((ratio) =>
      ratio.toFixed(3),
    );
    console.error(`${one.what}: ${speed} (${low} to ${high}), processor time ${cpu}`);
  }
  const mean = (of: (one: Compared) => number) =>
    Math.exp(meanOf(compared.map((one) => Math.log(of(one)))));
  console.log(
    formatTable({
      columns: [
        { key: 'what', title: 'row' },
        { key: 'speed', title: 'speed', digits: 3 },
        { key: 'low', title: 'from', digits: 3 },
        { key: 'high', title: 'to', digits: 3 },
        { key: 'cpu', title: 'server CPU', digits: 3 },
        { key: 'updatesPerSecond', title: 'updates/s', digits: 0 },
      ],
      rows: compared.map((one) => ({ ...one })),
    }),
  );
  console.log(
    `\nRatios of this checkout to the other one; geometric means of all rows: speed ${mean(({ speed }) => speed).toFixed(3)}, server CPU ${mean(({ cpu }) => cpu).toFixed(3)}. ${rounds} rounds of ${pairs} pairs of slices of ${seconds} s for each row; "from" and "to" are a 95 % interval.`,
  );
}

main().then(
  () => process.exit(),
  (error) => {
    console.error(`error ${errorCode(error)}: ${errorText(error)}`);
    process.exit(errorCode(error) === 'DP_USAGE' ? 2 : 1);
  },
);
