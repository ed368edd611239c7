import { performance } from 'node:perf_hooks';
import type { PartialConfig } from '../shared/config.ts';
import { medianOf, quantileOf } from '../shared/quantile.ts';
import { type PlainPeer, startPlainPeer } from './limits.ts';
import { EXPERIMENT, type Load, type LoadOptions, runTogether, startLoad } from './load.ts';
import { cpuMs, type ServerProcess, startServer } from './processes.ts';
import { formatBytes, type Table, type Target } from './report.ts';

/**
 * Push and pull through the whole server: the payload lands, is checked, moves the parameters by SGD,
 * and the answer carries the new ones. Beside it, in turn, plain sockets with the same bytes and the
 * same number of workers. Server and workers are processes of their own.
 */

export interface ExchangeRow {
  /** The bytes of one payload; a round trip carries two. */
  readonly bytes: number;
  readonly workers: number;
  readonly inFlight: number;
  readonly transport: 'tcp' | 'unix';
  /** Payload of both ways together, as it was carried: several pushes may be answered with one pull. */
  readonly gigabytesPerSecond: number;
  readonly plainGigabytesPerSecond: number;
  /** Median of the ratios of each turn. */
  readonly share: number;
  readonly roundTripsPerSecond: number;
  readonly p50Ms: number;
  readonly p99Ms: number;
  /** Server CPU seconds for a GB pushed, with its update and its answer; null where there is no /proc. */
  readonly cpuSecondsPerGigabyte: number | null;
}

export interface ExchangeOptions {
  readonly sizes: readonly number[];
  readonly workers: readonly number[];
  readonly transports?: readonly ('tcp' | 'unix')[];
  readonly repetitions: number;
  /** The least time of one measurement. */
  readonly seconds: number;
  readonly progress?: (what: string) => void;
}

/** So many pushes under way in all, at the size at which waiting is all that counts. */
const PIPELINED = { bytes: 1_000, workers: 2, inFlight: 8 } as const;
export const RUN = 'bench';

export async function benchExchange(options: ExchangeOptions): Promise<ExchangeRow[]> {
  const { sizes, workers, transports = ['tcp', 'unix'], progress } = options;
  const loads = Array.from({ length: Math.max(...workers, PIPELINED.workers) }, startLoad);
  const peer = await startPlainPeer();
  const rows: ExchangeRow[] = [];
  try {
    for (const bytes of sizes) {
      const cells = workers.flatMap((count) =>
        transports.map((transport) => ({ bytes, workers: count, inFlight: 1, transport })),
      );
      if (bytes === PIPELINED.bytes) {
        for (const transport of transports) cells.push({ ...PIPELINED, transport });
      }
      const server = await startServer();
      try {
        await createRun(server, { consistency: { depth: PIPELINED.inFlight } });
        await peer.set({ up: bytes, down: bytes });
        const seen = cells.map((): Turn[] => []);
        for (let i = 0; i < options.repetitions; i++) {
          for (const [at, cell] of cells.entries()) {
            const { transport, workers: count, inFlight } = cell;
            const deep = inFlight > 1 ? `, ${inFlight} in flight each` : '';
            progress?.(
              `${formatBytes(bytes)}, ${count} workers over ${transport}${deep}, turn ${i + 1} of ${options.repetitions}`,
            );
            seen[at]!.push(await turn(cell, { server, peer, loads, seconds: options.seconds }));
          }
        }
        for (const [at, cell] of cells.entries()) rows.push(summarise(cell, seen[at]!));
      } finally {
        await server.close();
      }
    }
  } finally {
    await Promise.all([peer.close(), ...loads.map((load) => load.close())]);
  }
  return rows;
}

/** A run that nothing but pushes happens to. */
export async function createRun(
  server: Pick<ServerProcess, 'client'>,
  config: PartialConfig = {},
): Promise<void> {
  await server.client.createRun({
    id: RUN,
    ...EXPERIMENT,
    config: {
      learningRate: 1e-6,
      minibatchSize: 64,
      leaseSeconds: 3600,
      evaluateEverySteps: 1_000_000_000,
      earlyStopping: { enabled: false },
      stepsMax: 1_000_000_000,
      checkpoint: { everySeconds: 3600 },
      ...config,
    },
  });
}

interface CellOf {
  readonly bytes: number;
  readonly workers: number;
  readonly inFlight: number;
  readonly transport: 'tcp' | 'unix';
}
interface Turn {
  readonly perSecond: number;
  readonly plainPerSecond: number;
  readonly latencies: Float64Array;
  readonly pulls: number;
  readonly cpuMs: number;
  readonly roundTrips: number;
}
interface Ends {
  readonly server: ServerProcess;
  readonly peer: PlainPeer;
  readonly loads: readonly Load[];
  readonly seconds: number;
}

/** The server, then plain sockets, for one cell. */
async function turn(cell: CellOf, { server, peer, loads, seconds }: Ends): Promise<Turn> {
  const used = loads.slice(0, cell.workers);
  const { transport, bytes } = cell;
  const { url } = server;
  const real = await timed(used, cell.inFlight, seconds, server.pid, {
    ...{ url, run: RUN, transport, elements: bytes / 4, push: 'f32' },
  });
  const exchange = { up: bytes, down: bytes };
  const plain = await timed(used, cell.inFlight, seconds, null, {
    ...{ plain: peer.addresses[transport], exchange },
  });
  return { ...real, plainPerSecond: plain.perSecond };
}

const WARM_UP_SECONDS = 0.6;

export async function timed(
  loads: readonly Load[],
  inFlight: number,
  seconds: number,
  pid: number | null,
  to: LoadOptions['to'],
) {
  // One after another: the first one of all creates the parameters.
  for (const [index, load] of loads.entries()) await load.open({ count: 1, index, inFlight, to });
  // Memory, compiled code and the sockets' buffers settle; a new connection's grow for a while.
  await runTogether(loads, Math.max(seconds / 5, Math.min(seconds, WARM_UP_SECONDS)));
  const before = pid === null ? 0 : await cpuMs(pid);
  const from = performance.now();
  const { roundTripsPerSecond, latencies, pulls } = await runTogether(loads, seconds);
  const took = performance.now() - from;
  const after = pid === null ? 0 : await cpuMs(pid);
  await Promise.all(loads.map((load) => load.disconnect()));
  return {
    ...{ perSecond: roundTripsPerSecond, latencies, took, pulls },
    ...{ cpuMs: after - before, roundTrips: latencies.length },
  };
}

function summarise(cell: CellOf, turns: readonly Turn[]): ExchangeRow {
  const gigabytes = (2 * cell.bytes) / 1e9;
  const pullShare = medianOf(turns.map((each) => each.pulls / each.roundTrips));
  const perSecond = medianOf(turns.map((each) => each.perSecond));
  const latencies = turns.flatMap((each) => [...each.latencies]);
  const cpu = turns.reduce((sum, each) => sum + each.cpuMs, 0) / 1000;
  const pushed = turns.reduce((sum, each) => sum + each.roundTrips, 0) * (cell.bytes / 1e9);
  return {
    ...cell,
    gigabytesPerSecond: perSecond * (cell.bytes / 1e9) * (1 + pullShare),
    plainGigabytesPerSecond: medianOf(turns.map((each) => each.plainPerSecond)) * gigabytes,
    share: medianOf(turns.map((each) => each.perSecond / each.plainPerSecond)),
    roundTripsPerSecond: perSecond,
    p50Ms: quantileOf(latencies, 0.5),
    p99Ms: quantileOf(latencies, 0.99),
    cpuSecondsPerGigabyte: Number.isFinite(cpu) ? cpu / pushed : null,
  };
}

export function exchangeTable(rows: readonly ExchangeRow[]): Table {
  return {
    name: 'exchange',
    question: 'How fast are push and pull through the whole server?',
    columns: [
      { key: 'size', title: 'payload each way' },
      { key: 'workers', title: 'workers', digits: 0 },
      { key: 'inFlight', title: 'in flight', digits: 0 },
      { key: 'transport', title: 'over' },
      { key: 'gigabytesPerSecond', title: 'GB/s' },
      { key: 'plainGigabytesPerSecond', title: 'plain sockets, GB/s' },
      { key: 'share', title: 'share', digits: 2 },
      { key: 'roundTripsPerSecond', title: 'round trips/s' },
      { key: 'p50Ms', title: 'p50, ms' },
      { key: 'p99Ms', title: 'p99, ms' },
      { key: 'cpuSecondsPerGigabyte', title: 'server CPU s/GB pushed', digits: 2 },
    ],
    rows: rows.map((row) => ({ ...row, size: formatBytes(row.bytes) })),
    note: 'GB/s counts the payload in both directions. SGD applies each push. Plain sockets receive straight into the final buffer, know all sizes beforehand and compute nothing. They were measured in turns with the server. `in flight`: unanswered pushes per worker. The server answers pushes that it reads together with one pull, and GB/s counts the bytes that were really sent. CPU: all work of the server for one GB of pushes, including the update and the GB of the answer.',
  };
}

/** GB/s of the best other system of docs/benchmarks.md, measured once on a machine of this kind. */
const PEERS = [
  { bytes: 1_000_000, over: 'tcp', peers: 1.79 },
  { bytes: 16_000_000, over: 'tcp', peers: 1.97 },
  { bytes: 100_000_000, over: 'tcp', peers: 1.49 },
  { bytes: 1_000_000, over: 'unix', peers: 1.86 },
  { bytes: 16_000_000, over: 'unix', peers: 2.27 },
  { bytes: 100_000_000, over: 'unix', peers: 3.52 },
] as const;

/** What the rows say about the targets. */
export function exchangeTargets(rows: readonly ExchangeRow[]): Target[] {
  const find = (bytes: number, workers: number, transport: string, inFlight = 1) =>
    rows.find(
      (row) =>
        row.bytes === bytes &&
        row.workers === workers &&
        row.transport === transport &&
        row.inFlight === inFlight,
    );
  const targets: Target[] = [];
  for (const bytes of [1_000_000, 16_000_000, 100_000_000]) {
    const size = formatBytes(bytes);
    const tcp = find(bytes, 1, 'tcp');
    targets.push({
      ...{ what: `push+pull through the server, ${size}, 1 worker, TCP`, unit: 'GB/s' },
      ...{ bound: 'atLeast', wanted: 2, seen: tcp?.gigabytesPerSecond ?? null },
    });
    targets.push({
      ...{ what: `the same, share of plain sockets in place, ${size}`, unit: '' },
      ...{ bound: 'atLeast', wanted: 0.6, seen: tcp?.share ?? null },
    });
    targets.push({
      ...{ what: `server CPU for a GB pushed, with update and answer, ${size}, TCP`, unit: 's' },
      ...{ bound: 'atMost', wanted: 0.35, seen: tcp?.cpuSecondsPerGigabyte ?? null },
    });
  }
  for (const { bytes, over, peers } of PEERS) {
    const seen = [1, 2].map((workers) => find(bytes, workers, over)?.gigabytesPerSecond ?? 0);
    targets.push({
      what: `push+pull, ${formatBytes(bytes)}, ${over}, the better of 1 and 2 workers, against the best peer over ${over === 'tcp' ? 'TCP' : 'shared memory'}`,
      ...{ unit: 'GB/s', bound: 'atLeast', wanted: peers, seen: Math.max(...seen) || null },
    });
  }
  const { bytes, workers, inFlight } = PIPELINED;
  targets.push({
    ...{ what: '1 KB through the server, 16 in flight', unit: 'round trips/s' },
    ...{ bound: 'atLeast', wanted: 36_000 },
    seen: find(bytes, workers, 'tcp', inFlight)?.roundTripsPerSecond ?? null,
  });
  return targets;
}
