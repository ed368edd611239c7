import { encodedBytes } from '../shared/compression.ts';
import { benchCheckpoints, checkpointsTable, checkpointsTargets } from './checkpoints.ts';
import { benchCompression, COMPRESSION_CASES, compressionTable } from './compression.ts';
import { benchDashboard, dashboardTable, dashboardTargets } from './dashboard.ts';
import { benchExchange, exchangeTable, exchangeTargets } from './exchange.ts';
import { benchFleet, fleetTable } from './fleet.ts';
import { benchFloods, floodsTable, floodsTargets } from './floods/bench.ts';
import { benchRates, ratesTable, ratesTargets } from './floods/rates.ts';
import { limitsTable, memoryLimits, startPlainPeer } from './limits.ts';
import { MLP_PARAMETERS, runTogether, startLoad } from './load.ts';
import { formatBytes, type Table, type Target } from './report.ts';
import {
  benchRowPeers,
  benchRowPushes,
  benchRows,
  rowPeersTable,
  rowPushesTable,
  rowPushesTargets,
  rowsTable,
  TOUCHED,
} from './rows.ts';
import { benchShards, shardsTable } from './shards.ts';
import { benchStart, startTable, startTargets } from './start.ts';
import { benchSystem, SYSTEM_CASES, type SystemCase, type SystemRow } from './system.ts';
import { benchUpdates, type UpdateRow } from './updates.ts';
import { benchWire, type Transport, type WireRow } from './wire.ts';

/** The questions of the benchmark, in the order they are asked. */
export interface Section {
  readonly name: string;
  run(options: { quick: boolean; progress: (what: string) => void }): Promise<Found>;
}
interface Found {
  readonly tables: Table[];
  readonly targets: Target[];
}

export const SECTIONS: readonly Section[] = [
  {
    name: 'limits',
    run: async ({ quick, progress }) => {
      progress('memcpy and triad');
      return { tables: [limitsTable(memoryLimits(quick ? 3 : 9))], targets: [] };
    },
  },
  {
    name: 'exchange',
    async run({ quick, progress }) {
      const rows = await benchExchange(
        quick
          ? {
              ...{ sizes: [1_000, 1_000_000], workers: [1, 2], repetitions: 1, seconds: 0.3 },
              progress,
            }
          : { ...{ sizes: SIZES, workers: [1, 2, 4], repetitions: 3, seconds: 0.6 }, progress },
      );
      return { tables: [exchangeTable(rows)], targets: exchangeTargets(rows) };
    },
  },
  {
    name: 'wire',
    async run({ quick, progress }) {
      const rows = await benchWire({
        sizes: quick ? [1_000, 1_000_000] : SIZES,
        transports: ['net', 'tcp', 'unix', 'ws'],
        ...(quick ? { modes: ['push+pull'] } : {}),
        repetitions: quick ? 1 : 3,
        seconds: quick ? 0.2 : 0.25,
        onRow: ({ bytes, mode }) => progress(`${mode} of ${formatBytes(bytes)}`),
      });
      return { tables: [wireTable(rows)], targets: wireTargets(rows) };
    },
  },
  {
    name: 'updates',
    run: async ({ quick, progress }) => {
      progress('25 million parameters');
      const rows = benchUpdates(quick ? { kinds: ['sgd', 'adam'], repetitions: 3 } : {});
      return { tables: [updatesTable(rows)], targets: updatesTargets(rows) };
    },
  },
  {
    name: 'system',
    async run({ quick, progress }) {
      const cases = SYSTEM_CASES.filter(
        ({ worker, depth }) => !quick || (worker === 'simulated' && depth === 1),
      );
      const windows = quick ? { windows: 1, windowMs: 1000 } : { windows: 3, windowMs: 1500 };
      const rows = await withLimits(cases, windows, progress);
      return { tables: [systemTable(rows)], targets: systemTargets(rows) };
    },
  },
  {
    name: 'start',
    async run({ quick, progress }) {
      const rows = await benchStart({ repetitions: quick ? 3 : 9, progress });
      return { tables: [startTable(rows)], targets: startTargets(rows) };
    },
  },
  {
    name: 'compression',
    async run({ quick, progress }) {
      const cases = COMPRESSION_CASES.filter(
        ({ push }) => !quick || ['f32', 'int8'].includes(push),
      );
      const rows = await benchCompression({ cases, steps: quick ? 200 : 1_200, progress });
      return { tables: [compressionTable(rows)], targets: [] };
    },
  },
  {
    name: 'shards',
    async run({ quick, progress }) {
      const rows = await benchShards(
        quick
          ? { ...{ sizes: [1_000_000], workers: [1], repetitions: 1, seconds: 0.3 }, progress }
          : {
              ...{ sizes: [1_000_000, 16_000_000, 100_000_000], workers: [1, 2] },
              ...{ repetitions: 3, seconds: 0.5, progress },
            },
      );
      return { tables: [shardsTable(rows)], targets: [] };
    },
  },
  {
    name: 'rows',
    async run({ quick, progress }) {
      const all = Object.keys(TOUCHED) as (keyof typeof TOUCHED)[];
      const tables = quick ? (['GloVe, 64 mails'] as const) : all;
      const time = quick ? { repetitions: 1, seconds: 1 } : { repetitions: 5, seconds: 2 };
      const pushes = await benchRowPushes({ tables, ...time, progress });
      const skipped: string[] = [];
      const peers = await benchRowPeers({
        ...{ ...time, progress },
        skipped: (why) => skipped.push(why),
      });
      return {
        tables: [rowPushesTable(pushes), rowPeersTable(peers, skipped), rowsTable(benchRows())],
        targets: rowPushesTargets(pushes),
      };
    },
  },
  {
    name: 'checkpoints',
    async run({ quick, progress }) {
      const rows = await benchCheckpoints(
        quick
          ? { sizes: [MLP_BYTES], repetitions: 1, seconds: 0.5, progress }
          : { sizes: [MLP_BYTES, 16_000_000, 100_000_000], repetitions: 5, seconds: 3, progress },
      );
      return { tables: [checkpointsTable(rows)], targets: checkpointsTargets(rows) };
    },
  },
  {
    name: 'floods',
    async run({ quick, progress }) {
      const often = quick ? { repetitions: 1, seconds: 0.5 } : { repetitions: 3, seconds: 1.5 };
      const rows = await benchFloods({ ...often, progress });
      return { tables: [floodsTable(rows)], targets: floodsTargets(rows) };
    },
  },
  {
    name: 'fleet',
    async run({ quick, progress }) {
      const size = quick ? { idle: 40, busy: 10 } : { idle: 200, busy: 50 };
      const time = quick ? { repetitions: 1, seconds: 0.5 } : { repetitions: 3, seconds: 1 };
      return {
        tables: [fleetTable(await benchFleet({ ...size, ...time, progress }))],
        targets: [],
      };
    },
  },
  {
    name: 'rates',
    async run({ quick, progress }) {
      const size = quick ? { runs: 1_000 } : { runs: 10_000 };
      const time = quick
        ? { repetitions: 1, seconds: 1, leadSeconds: 3 }
        : { repetitions: 3, seconds: 2, leadSeconds: 5 };
      const rows = await benchRates({ ...size, ...time, progress });
      return { tables: [ratesTable(rows)], targets: ratesTargets(rows) };
    },
  },
  {
    name: 'dashboard',
    async run({ quick, progress }) {
      const size = quick ? { runs: 10, steps: 5_000 } : { runs: 100, steps: 100_000 };
      const time = quick ? { turns: 1, seconds: 1 } : { turns: 7, seconds: 3 };
      const rows = await benchDashboard({ ...size, ...time, progress });
      return { tables: [dashboardTable(rows, size)], targets: dashboardTargets(rows) };
    },
  },
];

const MLP_BYTES = 4 * MLP_PARAMETERS;
const SIZES = [1_000, 64_000, 1_000_000, 16_000_000, 100_000_000];

// The wire alone.

function wireTable(rows: readonly WireRow[]): Table {
  const cells = new Map<string, WireRow[]>();
  for (const row of rows) {
    const cell = `${row.bytes} ${row.mode} ${row.inFlight}`;
    cells.set(cell, [...(cells.get(cell) ?? []), row]);
  }
  return {
    name: 'wire',
    question: 'How fast is the wire alone, between two processes?',
    columns: [
      { key: 'size', title: 'payload' },
      { key: 'mode', title: 'way' },
      { key: 'inFlight', title: 'in flight', digits: 0 },
      { key: 'net', title: 'plain sockets, GB/s' },
      { key: 'tcp', title: 'TCP, GB/s' },
      { key: 'unix', title: 'unix, GB/s' },
      { key: 'ws', title: 'ws, GB/s' },
      { key: 'share', title: 'TCP / plain', digits: 2 },
      { key: 'times', title: 'TCP / ws', digits: 2 },
      { key: 'tcpPerSecond', title: 'TCP, round trips/s' },
      { key: 'cpu', title: 'TCP, CPU s/GB of the receiver', digits: 2 },
    ],
    rows: [...cells.values()].map((cell) => {
      const of = (transport: Transport) => cell.find((row) => row.transport === transport);
      const [net, tcp, unix, ws] = [of('net')!, of('tcp')!, of('unix')!, of('ws')!];
      return {
        size: formatBytes(tcp.bytes),
        mode: tcp.mode,
        inFlight: tcp.inFlight,
        net: net.gigabytesPerSecond,
        tcp: tcp.gigabytesPerSecond,
        unix: unix.gigabytesPerSecond,
        ws: ws.gigabytesPerSecond,
        share: tcp.gigabytesPerSecond / net.gigabytesPerSecond,
        times: tcp.gigabytesPerSecond / ws.gigabytesPerSecond,
        tcpPerSecond: tcp.roundTripsPerSecond,
        cpu: tcp.serverCpuSecondsPerGigabyte,
      };
    }),
    note: 'One worker, without update and checks. `ws`: the unmodified npm package, and one copy to the final buffer. CPU: time of the process that receives the pushes, per GB of payload in both directions.',
  };
}

function wireTargets(rows: readonly WireRow[]): Target[] {
  const find = (bytes: number, mode: string, transport: Transport, inFlight = 1) =>
    rows.find(
      (row) =>
        row.bytes === bytes &&
        row.mode === mode &&
        row.transport === transport &&
        row.inFlight === inFlight,
    );
  const ratio = (bytes: number, over: Transport) => {
    const [one, other] = [find(bytes, 'push+pull', 'tcp'), find(bytes, 'push+pull', over)];
    return one && other ? one.gigabytesPerSecond / other.gigabytesPerSecond : null;
  };
  const targets = SIZES.flatMap((bytes): Target[] => [
    {
      ...{ what: `push+pull of the wire, ${formatBytes(bytes)}, TCP, share of plain sockets` },
      ...{ unit: '', bound: 'atLeast', wanted: 0.6, seen: ratio(bytes, 'net') },
    },
  ]);
  targets.push(
    {
      ...{ what: 'push+pull of the wire, 100 MB, TCP, times ws', unit: '×', bound: 'atLeast' },
      ...{ wanted: 3, seen: ratio(100_000_000, 'ws') },
    },
    {
      ...{ what: '1 KB over the wire, 16 in flight', unit: 'round trips/s', bound: 'atLeast' },
      wanted: 36_000,
      seen: find(1_000, 'push+pull', 'tcp', 16)?.roundTripsPerSecond ?? null,
    },
    {
      ...{ what: 'CPU of the wire for a GB pushed, 100 MB', unit: 's', bound: 'atMost' },
      wanted: 0.35,
      seen: find(100_000_000, 'push', 'tcp')?.serverCpuSecondsPerGigabyte ?? null,
    },
  );
  return targets;
}

// Updates.

function updatesTable(rows: readonly UpdateRow[]): Table {
  return {
    name: 'updates',
    question: 'How fast is an update of 25 million parameters?',
    columns: [
      { key: 'optimizer', title: 'optimizer' },
      { key: 'encoding', title: 'gradient' },
      { key: 'ms', title: 'ms', digits: 1 },
      { key: 'gigabytesPerSecond', title: 'GB/s', digits: 1 },
      { key: 'share', title: 'share of the triad', digits: 2 },
    ],
    rows: rows.map((row) => ({ ...row })),
    note: 'GB/s counts the bytes that the rule must at least read and write. `twin`: the same rule in TypeScript. The triad was measured in turns with them.',
  };
}

function updatesTargets(rows: readonly UpdateRow[]): Target[] {
  const targets: Target[] = [];
  for (const { optimizer, share, ms } of rows.filter(({ encoding }) => encoding === 'f32')) {
    targets.push({
      ...{ what: `${optimizer}, f32, share of the triad's GB/s`, unit: '', bound: 'atLeast' },
      ...{ wanted: 0.85, seen: share },
    });
    for (const encoding of ['bf16', 'int8']) {
      const other = rows.find((row) => row.optimizer === optimizer && row.encoding === encoding);
      targets.push({
        ...{ what: `${optimizer}, ${encoding}, time over that of f32`, unit: '×', bound: 'atMost' },
        ...{ wanted: 1, seen: other ? other.ms / ms : null },
      });
    }
  }
  return targets;
}

// The whole system.

interface LimitedRow extends SystemRow {
  /** Round trips of plain sockets with the same bytes. */
  readonly plainPerSecond: number;
}

async function withLimits(
  cases: readonly SystemCase[],
  windows: { windows: number; windowMs: number },
  progress: (what: string) => void,
): Promise<LimitedRow[]> {
  const loads = Array.from({ length: Math.max(...cases.map((each) => each.workers)) }, startLoad);
  const peer = await startPlainPeer();
  const rows: LimitedRow[] = [];
  try {
    for (const each of cases) {
      progress(`${each.workers} × ${each.worker}, depth ${each.depth}, ${each.push}/${each.pull}`);
      const [row] = await benchSystem({ cases: [each], ...windows });
      if (!row) continue;
      const exchange = {
        up: encodedBytes(each.push, MLP_PARAMETERS),
        down: encodedBytes(each.pull, MLP_PARAMETERS),
      };
      await peer.set(exchange);
      const used = loads.slice(0, each.workers);
      for (const load of used) {
        await load.open({
          count: 1,
          inFlight: each.depth,
          to: { plain: peer.addresses.tcp, exchange },
        });
      }
      await runTogether(used, 0.2);
      const { roundTripsPerSecond } = await runTogether(used, windows.windowMs / 1000);
      await Promise.all(used.map((load) => load.disconnect()));
      rows.push({ ...row, plainPerSecond: roundTripsPerSecond });
    }
  } finally {
    await Promise.all([peer.close(), ...loads.map((load) => load.close())]);
  }
  return rows;
}

function systemTable(rows: readonly LimitedRow[]): Table {
  return {
    name: 'system',
    question: 'How many updates a second does the whole system apply?',
    columns: [
      { key: 'worker', title: 'workers' },
      { key: 'workers', title: 'count', digits: 0 },
      { key: 'depth', title: 'depth', digits: 0 },
      { key: 'encodings', title: 'gradient / parameters' },
      { key: 'updatesPerSecond', title: 'updates/s' },
      { key: 'fastest', title: 'fastest window' },
      { key: 'plainPerSecond', title: 'plain sockets, round trips/s' },
      { key: 'share', title: 'share', digits: 2 },
      { key: 'staleness', title: 'staleness p50 / p95' },
      { key: 'serverCpuMs', title: 'server CPU ms/update', digits: 2 },
      { key: 'workerCpuMs', title: 'worker CPU ms/update', digits: 2 },
    ],
    rows: rows.map((row) => ({
      ...row,
      encodings: `${row.push} / ${row.pull}`,
      share: row.updatesPerSecond / row.plainPerSecond,
      staleness: `${row.stalenessP50} / ${row.stalenessP95}`,
    })),
    note: 'The MLP 784-256-10 (203,530 parameters), minibatch 64, one server. `simulated` workers push one precomputed gradient, which SGD applies, without an average. The others compute gradients from real digits, and the server applies them with momentum and an average, as in the example. Plain sockets: the same bytes and number of workers, without any computation.',
  };
}

function systemTargets(rows: readonly LimitedRow[]): Target[] {
  const best = (kind: SystemCase['worker'], push: string, pull: string) => {
    const fitting = rows.filter(
      (row) => row.worker === kind && row.push === push && row.pull === pull,
    );
    return fitting.length > 0 ? Math.max(...fitting.map((row) => row.updatesPerSecond)) : null;
  };
  const target = (what: string, wanted: number, seen: number | null): Target => ({
    ...{ what, unit: 'updates/s', bound: 'atLeast', wanted, seen },
  });
  const targets = [
    target('precomputed gradients, f32', 1_500, best('simulated', 'f32', 'f32')),
    target('precomputed gradients, bf16 both ways', 2_500, best('simulated', 'bf16', 'bf16')),
    target('precomputed gradients, int8 and bf16', 3_500, best('simulated', 'int8', 'bf16')),
  ];
  const native = best('native', 'f32', 'f32');
  if (native !== null) {
    targets.push(
      target('with compute, native engine', 400, native),
      target('with compute, native engine, the aim', 537, native),
    );
  }
  return targets;
}
