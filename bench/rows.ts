import { pathToFileURL } from 'node:url';
import { createFusedOptimizer, optimizerBytes } from '../server/core/fused.ts';
import { createKernels } from '../server/core/kernels.ts';
import { RunTables } from '../server/core/tables/run-tables.ts';
import { resolveConfig } from '../shared/config.ts';
import { Memory, regionBytes } from '../shared/memory.ts';
import { medianOf } from '../shared/quantile.ts';
import { random } from '../shared/random.ts';
import { encodeKeys, encodeRows, type TableRows } from '../shared/rows.ts';

/**
 * A push of the rows that a minibatch touches beside a push of the whole table, by turns: bytes, and what the server does for
 * one of them, with the answer. Adagrad in both: of a row here, of an element there.
 */
export interface RowsRow {
  readonly table: string;
  readonly touched: number;
  readonly denseBytes: number;
  readonly rowBytes: number;
  readonly denseMs: number;
  readonly rowsMs: number;
  /** Updates of rows in a second, each read, updated and sent again. */
  readonly rowsPerSecond: number;
}

/** Rows, width, and rows that a minibatch touches, as measured on the data. */
const TABLES = {
  'ML-100k, 64 ratings': { rows: 2_625, width: 16, touched: 121 },
  'flights, 256 rows': { rows: 8_033, width: 16, touched: 586 },
  'Brown word2vec, 512 pairs': { rows: 24_752, width: 100, touched: 2_017 },
  'GloVe, 64 mails': { rows: 341_479, width: 100, touched: 2_889 },
} as const;

export function benchRows({ repetitions = 24 } = {}): RowsRow[] {
  return Object.entries(TABLES).map(([table, { rows, width, touched }]) => {
    const dense = denseOf(rows * width);
    const sparse = sparseOf(rows, width, touched);
    const times = { dense: [] as number[], sparse: [] as number[] };
    for (let round = 0; round < repetitions; round++) {
      const [a, b] = [timed(dense.push), timed(sparse.push)];
      // Afterwards the rows of all pushes have values of their own.
      if (round < 8) continue;
      times.dense.push(a);
      times.sparse.push(b);
    }
    const rowsMs = medianOf(times.sparse);
    return {
      table,
      touched,
      denseBytes: 4 * rows * width,
      rowBytes: sparse.bytes,
      denseMs: medianOf(times.dense),
      rowsMs,
      rowsPerSecond: (1000 * touched) / rowsMs,
    };
  });
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
function sparseOf(rows: number, width: number, touched: number) {
  const tables = new RunTables(resolveConfig({ tables: { table: { rows, width } } }));
  const draw = random(1, 1);
  const pushes = Array.from({ length: 8 }, () => {
    const keys = new Set<number>();
    while (keys.size < touched) keys.add(draw.below(rows));
    const some: TableRows = {
      keys: Uint32Array.from(keys).sort(),
      values: new Float32Array(touched * width).fill(1e-3),
    };
    const gradients = encodeRows(tables.shapes, [some], 'f32');
    return Uint8Array.from([...gradients, ...encodeKeys([some.keys])]);
  });
  const wanted = 4 + 4 * touched;
  const bytes = pushes[0]!.length;
  let at = 0;
  const push = () => {
    const payload = pushes[at++ % pushes.length]!;
    const { rowStep: step } = tables;
    tables.stage(payload, { step, encoding: 'f32', bytes: bytes - wanted, wanted });
    tables.squares(Infinity);
    tables.staleness();
    tables.apply(1e-3, { limit: Infinity, factor: 1 }, () => 1);
    tables.read(tables.readKeys(payload.subarray(bytes - wanted)), 'f32', null);
  };
  return { push, bytes };
}

/** Time of the processor, ms: on a busy machine others take theirs in between. */
function timed(run: () => void): number {
  const start = process.cpuUsage();
  run();
  const { user, system } = process.cpuUsage(start);
  return (user + system) / 1000;
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? '').href) console.table(benchRows());
