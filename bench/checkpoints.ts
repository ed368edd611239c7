import { medianOf, quantileOf } from '../shared/quantile.ts';
import { createRun, RUN, timed } from './exchange.ts';
import { type Load, startLoad } from './load.ts';
import { type ServerProcess, startServer } from './processes.ts';
import { formatBytes, type Table, type Target } from './report.ts';

/**
 * What a checkpoint costs those who train meanwhile: the latency of pushes while checkpoints are written one
 * right after the other, and without any. One worker; two servers, which take turns.
 */

export interface CheckpointRow {
  /** The bytes of the parameters, and of a push. */
  readonly bytes: number;
  /** The bytes of one checkpoint: parameters and velocity. */
  readonly fileBytes: number;
  readonly checkpointsPerSecond: number;
  readonly p50Ms: number;
  readonly p50DuringMs: number;
  readonly p99Ms: number;
  readonly p99DuringMs: number;
  /** Median of the ratios of each turn. */
  readonly p99Ratio: number;
}

export interface CheckpointOptions {
  readonly sizes: readonly number[];
  readonly repetitions: number;
  /** The least time of one measurement, and in which this many pushes are measured at least. */
  readonly seconds: number;
  readonly progress?: (what: string) => void;
}

export async function benchCheckpoints(options: CheckpointOptions): Promise<CheckpointRow[]> {
  const load = startLoad();
  const rows: CheckpointRow[] = [];
  try {
    for (const bytes of options.sizes) rows.push(await benchSize(bytes, load, options));
  } finally {
    await load.close();
  }
  return rows;
}

async function benchSize(
  bytes: number,
  load: Load,
  { repetitions, seconds, progress }: CheckpointOptions,
): Promise<CheckpointRow> {
  const optimizer = { kind: 'momentum' } as const;
  const quiet = await startServer();
  const busy = await startServer();
  try {
    await createRun(quiet, { optimizer });
    // Due again with each push, so the next one begins when one has ended.
    await createRun(busy, { optimizer, checkpoint: { everySteps: 1, keepLast: 1 } });
    const without: number[][] = [];
    const during: number[][] = [];
    let written = 0;
    let wall = 0;
    for (let turn = 1; turn <= repetitions; turn++) {
      progress?.(`${formatBytes(bytes)}, turn ${turn} of ${repetitions}`);
      without.push([...(await push(quiet, load, bytes, seconds)).latencies]);
      const before = await sequence(busy);
      const { latencies, took } = await push(busy, load, bytes, seconds);
      written += (await sequence(busy)) - before;
      wall += took;
      during.push([...latencies]);
    }
    const ratios = during.map((each, i) => quantileOf(each, 0.99) / quantileOf(without[i]!, 0.99));
    return {
      bytes,
      fileBytes: 2 * bytes,
      checkpointsPerSecond: (1000 * written) / wall,
      p50Ms: quantileOf(without.flat(), 0.5),
      p50DuringMs: quantileOf(during.flat(), 0.5),
      p99Ms: quantileOf(without.flat(), 0.99),
      p99DuringMs: quantileOf(during.flat(), 0.99),
      p99Ratio: medianOf(ratios),
    };
  } finally {
    await Promise.all([quiet.close(), busy.close()]);
  }
}

function push(server: ServerProcess, load: Load, bytes: number, seconds: number) {
  const { url, pid } = server;
  return timed([load], 1, seconds, pid, {
    ...{ url, run: RUN, transport: 'tcp', elements: bytes / 4, push: 'f32' },
  });
}

/** The number of the newest checkpoint: they are counted in their names. */
async function sequence(server: ServerProcess): Promise<number> {
  const { checkpoint } = await server.client.run(RUN);
  return Number(/-(\d+)\.safetensors$/.exec(checkpoint?.file ?? '')?.[1] ?? 0);
}

export function checkpointsTable(rows: readonly CheckpointRow[]): Table {
  return {
    name: 'checkpoints',
    question: 'How much does a checkpoint slow down the pushes that arrive meanwhile?',
    columns: [
      { key: 'size', title: 'push' },
      { key: 'file', title: 'checkpoint' },
      { key: 'checkpointsPerSecond', title: 'checkpoints/s' },
      { key: 'p50Ms', title: 'p50 without, ms' },
      { key: 'p50DuringMs', title: 'p50 during, ms' },
      { key: 'p99Ms', title: 'p99 without, ms' },
      { key: 'p99DuringMs', title: 'p99 during, ms' },
      { key: 'p99Ratio', title: 'p99 during / without', digits: 2 },
    ],
    rows: rows.map((row) => ({
      ...row,
      size: formatBytes(row.bytes),
      file: formatBytes(row.fileBytes),
    })),
    note: 'One worker over TCP with one push in flight. During: checkpoints are written one after the other without a pause.',
  };
}

export function checkpointsTargets(rows: readonly CheckpointRow[]): Target[] {
  return rows.map(({ bytes, p99Ratio }) => ({
    what: `p99 of a push during a checkpoint, times that without, ${formatBytes(bytes)}`,
    ...{ unit: '×', bound: 'atMost', wanted: 2, seen: p99Ratio },
  }));
}
