import { createFusedOptimizer, optimizerBytes } from '../server/core/fused.ts';
import { createKernels } from '../server/core/kernels.ts';
import { RunTables } from '../server/core/tables/run-tables.ts';
import { resolveConfig } from '../shared/config.ts';
import { errorText } from '../shared/errors.ts';
import { Memory, regionBytes } from '../shared/memory.ts';
import { medianOf } from '../shared/quantile.ts';
import { createRun, RUN, timed } from './exchange.ts';
import { startLoad, type TouchedRows, touchedRows } from './load.ts';
import { startServer } from './processes.ts';
import { formatBytes, type Table, type Target } from './report.ts';
import { openRowPeer, ROW_PEERS, type RowPeer } from './row-peers.ts';

/** A push of the rows that a minibatch touches beside a push of the whole table, by turns. */

/** Rows, width, and rows that a minibatch touches, as measured on the data. */
export const TOUCHED = {
  'ML-100k, 64 ratings': { rows: 2_625, width: 16, touched: 121 },
  'flights, 256 rows': { rows: 8_033, width: 16, touched: 586 },
  'Brown word2vec, 512 pairs': { rows: 24_752, width: 100, touched: 2_017 },
  'GloVe, 64 mails': { rows: 341_479, width: 100, touched: 2_889 },
} as const;
const LARGEST = 'GloVe, 64 mails';
/** Parameters of the model behind the rows: one output of a mean of them. */
const DENSE = 101;

// Through the whole server.

export interface RowPushRow {
  readonly table: string;
  readonly touched: number;
  /** Bytes of a push. */
  readonly denseBytes: number;
  readonly rowBytes: number;
  readonly densePerSecond: number;
  readonly rowsPerSecond: number;
  /** Median of the ratios of each turn. */
  readonly times: number;
}

export async function benchRowPushes(options: {
  readonly tables: readonly (keyof typeof TOUCHED)[];
  readonly repetitions: number;
  readonly seconds: number;
  readonly progress?: (what: string) => void;
}): Promise<RowPushRow[]> {
  const load = startLoad();
  const found: RowPushRow[] = [];
  try {
    for (const table of options.tables) {
      const touched: TouchedRows = TOUCHED[table];
      const { rows, width } = touched;
      const servers = [await startServer(), await startServer()] as const;
      try {
        const optimizer = { kind: 'adagrad' } as const;
        await createRun(servers[0], { optimizer });
        await createRun(servers[1], { optimizer, tables: { word: { rows, width } } });
        const ends = [
          { url: servers[0].url, elements: DENSE + rows * width },
          { url: servers[1].url, elements: DENSE, rows: touched },
        ];
        const seen: [number, number][] = [];
        // In the first turn rows get their memory, and code is compiled.
        for (let i = 0; i <= options.repetitions; i++) {
          options.progress?.(`${table}, turn ${i} of ${options.repetitions}`);
          const perSecond: number[] = [];
          for (const end of ends) {
            const to = { ...end, run: RUN, transport: 'tcp', push: 'f32' } as const;
            perSecond.push((await timed([load], 1, options.seconds, null, to)).perSecond);
          }
          if (i > 0) seen.push([perSecond[0]!, perSecond[1]!]);
        }
        found.push({
          table,
          touched: touched.touched,
          denseBytes: 4 * (DENSE + rows * width),
          rowBytes: 4 * DENSE + touchedRows(touched, 0).tail.length,
          densePerSecond: medianOf(seen.map(([dense]) => dense)),
          rowsPerSecond: medianOf(seen.map(([, sparse]) => sparse)),
          times: medianOf(seen.map(([dense, sparse]) => sparse / dense)),
        });
      } finally {
        await Promise.all(servers.map((server) => server.close()));
      }
    }
  } finally {
    await load.close();
  }
  return found;
}

export function rowPushesTable(rows: readonly RowPushRow[]): Table {
  return {
    name: 'rows',
    question:
      'How fast are pushes of the rows that a minibatch touches, next to pushes of the table?',
    columns: [
      { key: 'table', title: 'table' },
      { key: 'touched', title: 'rows of a push', digits: 0 },
      { key: 'dense', title: 'dense push' },
      { key: 'sparse', title: 'push of rows' },
      { key: 'densePerSecond', title: 'dense, updates/s' },
      { key: 'rowsPerSecond', title: 'rows, updates/s' },
      { key: 'times', title: 'times', digits: 1 },
    ],
    rows: rows.map((row) => ({
      ...row,
      dense: formatBytes(row.denseBytes),
      sparse: formatBytes(row.rowBytes),
    })),
    note: 'One worker over TCP on loopback, one push under way. A push of rows wants as many for the next one, and its answer brings them. A dense push has the whole table in the parameters, and so has its answer. Adagrad in both. The keys are drawn evenly, so hardly any row is in a cache.',
  };
}

export function rowPushesTargets(rows: readonly RowPushRow[]): Target[] {
  const largest = rows.find(({ table }) => table === LARGEST);
  return [
    {
      ...{ what: "a push of rows of GloVe's table, updates/s of a dense push", unit: '×' },
      ...{ bound: 'atLeast', wanted: 10, seen: largest?.times ?? null },
    },
    {
      ...{ what: 'the same, share of the bytes of a dense push', unit: '' },
      ...{ bound: 'atMost', wanted: 0.02 },
      seen: largest ? largest.rowBytes / largest.denseBytes : null,
    },
  ];
}

// Beside other systems.

export interface RowPeerRow {
  readonly system: string;
  readonly perSecond: number;
  readonly rowsPerSecond: number;
  /** Updates/s of Downpour over those of this system: the median of the turns. */
  readonly times: number;
}

/** Those that are installed, by turns with Downpour. @param skipped is said who is not, and why. */
export async function benchRowPeers(options: {
  readonly repetitions: number;
  readonly seconds: number;
  readonly progress?: (what: string) => void;
  readonly skipped: (why: string) => void;
}): Promise<RowPeerRow[]> {
  const { repetitions, seconds, progress } = options;
  const shape: TouchedRows = TOUCHED[LARGEST];
  const peers: RowPeer[] = [];
  for (const peer of ROW_PEERS) {
    progress?.(peer.what);
    try {
      peers.push(await openRowPeer(peer, shape));
    } catch (error) {
      options.skipped(`${peer.what}: ${errorText(error)}`);
    }
  }
  if (peers.length === 0) return [];
  const load = startLoad();
  const server = await startServer();
  try {
    const { rows, width } = shape;
    await createRun(server, {
      optimizer: { kind: 'adagrad' },
      tables: { word: { rows, width } },
    });
    const to = { url: server.url, run: RUN, elements: DENSE, rows: shape } as const;
    const systems: { readonly what: string; perSecond(seconds: number): Promise<number> }[] = [
      {
        what: 'Downpour',
        perSecond: async () =>
          (await timed([load], 1, seconds, null, { ...to, transport: 'tcp', push: 'f32' }))
            .perSecond,
      },
      ...peers,
    ];
    const seen = systems.map((): number[] => []);
    for (let i = 0; i <= repetitions; i++) {
      for (const [at, { what, perSecond }] of systems.entries()) {
        progress?.(`${what}, turn ${i} of ${repetitions}`);
        const found = await perSecond(seconds);
        if (i > 0) seen[at]!.push(found);
      }
    }
    return systems.map(({ what: system }, at) => {
      const perSecond = medianOf(seen[at]!);
      const times = medianOf(seen[at]!.map((other, i) => seen[0]![i]! / other));
      return { system, perSecond, rowsPerSecond: shape.touched * perSecond, times };
    });
  } finally {
    await Promise.all([load.close(), server.close(), ...peers.map((peer) => peer.close())]);
  }
}

export function rowPeersTable(rows: readonly RowPeerRow[], skipped: readonly string[]): Table {
  const missing = skipped.length > 0 ? ` Not measured: ${skipped.join('; ')}.` : '';
  return {
    name: 'rows beside others',
    question: "How fast are pushes of 2,889 rows of GloVe's table, next to other systems?",
    columns: [
      { key: 'system', title: 'system' },
      { key: 'perSecond', title: 'updates/s' },
      { key: 'rowsPerSecond', title: 'rows/s' },
      { key: 'times', title: 'Downpour, times', digits: 2 },
    ],
    rows: rows.map((row) => ({ ...row })),
    note: `One worker and one server on the same machine, one update under way, which brings as many other rows. All systems took turns. ps-lite has Adagrad by rows, as Downpour; TensorFlow and PyTorch have one number of state for each element.${missing}`,
  };
}

// The work of the server alone.

/** What the server does for one push, with the answer. Adagrad in both: of a row here, of an element there. */
export interface RowsRow {
  readonly table: string;
  readonly touched: number;
  readonly denseMs: number;
  readonly rowsMs: number;
  /** Updates of rows in a second, each read, updated and sent again. */
  readonly rowsPerSecond: number;
}

export function benchRows({ repetitions = 64 } = {}): RowsRow[] {
  return Object.entries(TOUCHED).map(([table, shape]) => {
    const dense = denseOf(shape.rows * shape.width);
    const sparse = sparseOf(shape);
    const times = { dense: [] as number[], sparse: [] as number[] };
    for (let round = 0; round < repetitions; round++) {
      const [a, b] = [timeOf(dense.push), timeOf(sparse)];
      // Afterwards the rows of all pushes have values of their own.
      if (round < 16) continue;
      times.dense.push(a);
      times.sparse.push(b);
    }
    const rowsMs = medianOf(times.sparse);
    const { touched } = shape;
    return {
      ...{ table, touched, denseMs: medianOf(times.dense), rowsMs },
      rowsPerSecond: (1000 * touched) / rowsMs,
    };
  });
}

export function rowsTable(rows: readonly RowsRow[]): Table {
  return {
    name: 'rows of a push',
    question: 'What does the server compute for a push of rows?',
    columns: [
      { key: 'table', title: 'table' },
      { key: 'touched', title: 'rows of a push', digits: 0 },
      { key: 'denseMs', title: 'dense update, ms' },
      { key: 'rowsMs', title: 'rows with their answer, ms' },
      { key: 'rowsPerSecond', title: 'rows/s' },
    ],
    rows: rows.map((row) => ({ ...row })),
    note: 'Time of the processor, without the wire. The rows are decoded, checked, updated, and those of the answer are read. The dense update is the kernel alone.',
  };
}

/** The fused update of a vector, where its payload has landed: workers are sent the vector itself. */
function denseOf(n: number): { push(): void } {
  const config = resolveConfig({ optimizer: { kind: 'adagrad' } }).optimizer;
  const region = regionBytes(4 * n);
  const memory = new Memory(2 * region + optimizerBytes(config, n) + region);
  const kernels = createKernels(memory.memory);
  const theta = memory.take(4 * n);
  const fused = createFusedOptimizer(config, n, [], { memory, kernels, theta });
  const address = memory.take(4 * n);
  memory.floats(address, n).fill(1e-3);
  const gradient = { decoding: 'f32', address, scales: address } as const;
  const clip = { limit: Infinity, factor: 1 };
  return { push: () => void fused.apply(gradient, clip, { step: 10, learningRate: 1e-6 }) };
}

/** All that the server does with the rows of a push, and the rows of its answer. */
function sparseOf(shape: TouchedRows): () => void {
  const { rows, width } = shape;
  const tables = new RunTables(resolveConfig({ tables: { word: { rows, width } } }));
  const pushes = Array.from({ length: 16 }, (_, i) => touchedRows(shape, i));
  let at = 0;
  return () => {
    const { tail, bytes, wanted } = pushes[at++ % pushes.length]!;
    tables.stage(tail, { step: tables.rowStep, encoding: 'f32', bytes, wanted });
    tables.squares(Infinity);
    tables.staleness();
    tables.apply(1e-3, { limit: Infinity, factor: 1 }, () => 1);
    tables.read(tables.readKeys(tail.subarray(bytes)), 'f32', null);
  };
}

/** Time of the processor, ms: on a busy machine others take theirs in between. */
function timeOf(run: () => void): number {
  const start = process.cpuUsage();
  run();
  const { user, system } = process.cpuUsage(start);
  return (user + system) / 1000;
}
