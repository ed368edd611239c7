import { setTimeout } from 'node:timers/promises';
import { medianOf, quantileOf } from '../shared/quantile.ts';
import { createRun } from './exchange.ts';
import { startPlainPeer } from './limits.ts';
import {
  type LoadOptions,
  type LoadResult,
  MLP_PARAMETERS,
  runTogether,
  type ServerEnd,
  startLoad,
} from './load.ts';
import { cpuMs, startServer } from './processes.ts';
import { formatCell, type Table } from './report.ts';

/**
 * Many workers on one server, with the MLP's 203,530 parameters: what a connected worker costs in
 * memory, and what idle ones cost the busy ones. Simulated, in a few processes.
 */

export interface FleetRow {
  readonly idle: number;
  readonly busy: number;
  readonly updatesPerSecond: number;
  /** Round trips of plain sockets of the busy ones, with the same bytes. */
  readonly plainPerSecond: number;
  readonly share: number;
  readonly p50Ms: number;
  readonly p99Ms: number;
  /** Updates of the worker with the fewest, over those of the one with the most. */
  readonly fairness: number;
  /** The server's CPU time of an update; null where there is no /proc. */
  readonly serverCpuMs: number | null;
  readonly serverRssMegabytes: number;
}

export interface Fleet {
  readonly rows: readonly FleetRow[];
  /** The server's resident memory for one more worker that is connected and idle. */
  readonly idleKilobytes: number;
  /** And for one more that pushes: room for its push, what waits to be sent to it. */
  readonly busyKilobytes: number;
}

export interface FleetOptions {
  readonly idle: number;
  readonly busy: number;
  readonly repetitions: number;
  readonly seconds: number;
  readonly progress?: (what: string) => void;
}

const FEW = 2;
/** The collector has done its work: memory is read when it has not fallen for so many readings. */
const STILL_READINGS = 5;
const READING_MS = 200;

export async function benchFleet(options: FleetOptions): Promise<Fleet> {
  const { idle, busy, repetitions, seconds, progress = () => {} } = options;
  const server = await startServer();
  const peer = await startPlainPeer();
  const idleLoads = [startLoad(), startLoad()];
  const busyLoads = [startLoad(), startLoad()];
  const all = [...idleLoads, ...busyLoads];
  const to: ServerEnd = {
    url: server.url,
    run: 'bench',
    transport: 'tcp',
    elements: MLP_PARAMETERS,
    push: 'f32',
  };
  const bytes = 4 * MLP_PARAMETERS;
  const exchange = { up: bytes, down: bytes };
  const plain = { plain: peer.addresses.tcp, exchange };

  async function connect(loads: typeof all, total: number, from: number, end: LoadOptions['to']) {
    const each = total / loads.length;
    for (const [i, load] of loads.entries()) {
      const count = Math.ceil((i + 1) * each) - Math.ceil(i * each);
      await load.open({ count, index: from + Math.ceil(i * each), to: end });
    }
  }
  const rss = async () => (await server.client.status()).memoryBytes.rss;
  async function settledRss(): Promise<number> {
    let least = await rss();
    for (let still = 0; still < STILL_READINGS; still++) {
      await setTimeout(READING_MS);
      const now = await rss();
      if (now < least) still = 0;
      least = Math.min(least, now);
    }
    return least;
  }

  /** The busy ones push, then as many plain sockets exchange the same bytes, by turns. */
  async function measure(idleNow: number, busyNow: number, repetitions: number) {
    const used = busyLoads.slice(0, Math.min(busyNow, busyLoads.length));
    const turns: { real: LoadResult; plain: LoadResult; cpu: number }[] = [];
    for (let i = 0; i < repetitions; i++) {
      progress(`${idleNow} idle and ${busyNow} busy workers, turn ${i + 1} of ${repetitions}`);
      await connect(used, busyNow, 1_000, to);
      await runTogether(used, seconds / 4);
      const before = await cpuMs(server.pid);
      const real = await runTogether(used, seconds);
      const cpu = (await cpuMs(server.pid)) - before;
      await Promise.all(used.map((load) => load.disconnect()));
      await connect(used, busyNow, 0, plain);
      await runTogether(used, seconds / 4);
      turns.push({ real, plain: await runTogether(used, seconds), cpu });
      await Promise.all(used.map((load) => load.disconnect()));
    }
    const latencies = turns.flatMap(({ real }) => [...real.latencies]);
    const cpu = turns.reduce((sum, each) => sum + each.cpu, 0) / latencies.length;
    const row: FleetRow = {
      idle: idleNow,
      busy: busyNow,
      updatesPerSecond: medianOf(turns.map(({ real }) => real.roundTripsPerSecond)),
      plainPerSecond: medianOf(turns.map((turn) => turn.plain.roundTripsPerSecond)),
      share: medianOf(
        turns.map(({ real, plain }) => real.roundTripsPerSecond / plain.roundTripsPerSecond),
      ),
      p50Ms: quantileOf(latencies, 0.5),
      p99Ms: quantileOf(latencies, 0.99),
      fairness: medianOf(
        turns.map(({ real }) => Math.min(...real.counts) / Math.max(...real.counts)),
      ),
      serverCpuMs: Number.isFinite(cpu) ? cpu : null,
      serverRssMegabytes: (await rss()) / 1e6,
    };
    return row;
  }

  try {
    await createRun(server);
    await peer.set(exchange);
    // The first ones pay for what all share: code, pools, room for pushes.
    const first = Math.ceil(idle / 4);
    progress(`${idle} idle workers connect`);
    await connect(idleLoads, first, 2_000, to);
    const before = await settledRss();
    await connect(idleLoads, idle - first, 3_000, to);
    const idleKilobytes = ((await settledRss()) - before) / (idle - first) / 1e3;
    // Not counted: compiled code settles.
    await measure(idle, FEW, 1);
    const few = await measure(idle, FEW, repetitions);
    const many = await measure(idle, busy, repetitions);
    await Promise.all(idleLoads.map((load) => load.disconnect()));
    const alone = await measure(0, FEW, repetitions);
    const megabytes = many.serverRssMegabytes - few.serverRssMegabytes;
    const busyKilobytes = (1e3 * megabytes) / (busy - FEW);
    return { rows: [alone, few, many], idleKilobytes, busyKilobytes };
  } finally {
    await Promise.all([server.close(), peer.close(), ...all.map((load) => load.close())]);
  }
}

export function fleetTable({ rows, idleKilobytes, busyKilobytes }: Fleet): Table {
  return {
    name: 'fleet',
    question: 'What do many workers cost one server?',
    columns: [
      { key: 'idle', title: 'idle workers', digits: 0 },
      { key: 'busy', title: 'busy', digits: 0 },
      { key: 'updatesPerSecond', title: 'updates/s' },
      { key: 'plainPerSecond', title: 'plain sockets, round trips/s' },
      { key: 'share', title: 'share', digits: 2 },
      { key: 'p50Ms', title: 'p50, ms' },
      { key: 'p99Ms', title: 'p99, ms' },
      { key: 'fairness', title: 'fewest / most of a worker', digits: 2 },
      { key: 'serverCpuMs', title: 'server CPU ms/update', digits: 2 },
      { key: 'serverRssMegabytes', title: 'server MB', digits: 0 },
    ],
    rows: rows.map((row) => ({ ...row })),
    note: `The MLP 784-256-10: 0.81 MB each way in f32, over TCP. Idle workers have joined, hold minibatches and push nothing. Server: resident memory. One more idle worker takes ${formatCell(idleKilobytes)} KB and one more busy worker ${formatCell(busyKilobytes)} KB.`,
  };
}
