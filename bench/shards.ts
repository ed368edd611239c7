import { medianOf, quantileOf } from '../shared/quantile.ts';
import { createRun, timed } from './exchange.ts';
import { type Load, startLoad } from './load.ts';
import { type ServerProcess, startServer } from './processes.ts';
import { formatBytes, type Table } from './report.ts';

/** Push and pull through a server with 1, 2 and 4 shards in threads, by turns. */

export interface ShardsRow {
  /** The bytes of one payload, over all shards; a round trip carries two. */
  readonly bytes: number;
  readonly workers: number;
  readonly shards: number;
  readonly roundTripsPerSecond: number;
  /** Payload of both ways together. */
  readonly gigabytesPerSecond: number;
  /** Median of the ratios of each turn to one shard. */
  readonly times: number;
  readonly p50Ms: number;
  readonly p99Ms: number;
  /** CPU seconds of all shards together for a GB pushed; null where there is no /proc. */
  readonly cpuSecondsPerGigabyte: number | null;
}

export interface ShardsOptions {
  readonly sizes: readonly number[];
  readonly workers: readonly number[];
  readonly repetitions: number;
  /** The least time of one measurement. */
  readonly seconds: number;
  readonly progress?: (what: string) => void;
}

const SHARDS = [1, 2, 4] as const;
type Turn = Awaited<ReturnType<typeof timed>>;

export async function benchShards(options: ShardsOptions): Promise<ShardsRow[]> {
  const { sizes, workers, repetitions, seconds, progress } = options;
  const loads: Load[] = Array.from({ length: Math.max(...workers) }, startLoad);
  const rows: ShardsRow[] = [];
  try {
    for (const bytes of sizes) {
      const servers: ServerProcess[] = [];
      try {
        for (const shards of SHARDS) {
          const server = await startServer({ shards });
          servers.push(server);
          await createRun(server);
        }
        for (const count of workers) {
          const seen = SHARDS.map((): Turn[] => []);
          for (let i = 0; i < repetitions; i++) {
            for (const [k, server] of servers.entries()) {
              progress?.(
                `${formatBytes(bytes)}, ${count} workers, ${SHARDS[k]} shards, turn ${i + 1} of ${repetitions}`,
              );
              const { url, pid } = server;
              const to = { url, run: 'bench', transport: 'tcp', push: 'f32' } as const;
              const used = loads.slice(0, count);
              const elements = bytes / 4;
              seen[k]!.push(await timed(used, 1, seconds, pid, { ...to, elements }));
            }
          }
          for (const [k, shards] of SHARDS.entries()) {
            rows.push(summarise({ bytes, workers: count, shards }, seen[k]!, seen[0]!));
          }
        }
      } finally {
        await Promise.all(servers.map((server) => server.close()));
      }
    }
  } finally {
    await Promise.all(loads.map((load) => load.close()));
  }
  return rows;
}

function summarise(
  cell: Pick<ShardsRow, 'bytes' | 'workers' | 'shards'>,
  turns: readonly Turn[],
  one: readonly Turn[],
): ShardsRow {
  const perSecond = medianOf(turns.map((turn) => turn.perSecond));
  const latencies = turns.flatMap((turn) => [...turn.latencies]);
  const cpu = turns.reduce((sum, turn) => sum + turn.cpuMs, 0) / 1000;
  const pushed = turns.reduce((sum, turn) => sum + turn.roundTrips, 0) * (cell.bytes / 1e9);
  return {
    ...cell,
    roundTripsPerSecond: perSecond,
    gigabytesPerSecond: perSecond * ((2 * cell.bytes) / 1e9),
    times: medianOf(turns.map((turn, i) => turn.perSecond / one[i]!.perSecond)),
    p50Ms: quantileOf(latencies, 0.5),
    p99Ms: quantileOf(latencies, 0.99),
    cpuSecondsPerGigabyte: Number.isFinite(cpu) ? cpu / pushed : null,
  };
}

export function shardsTable(rows: readonly ShardsRow[]): Table {
  return {
    name: 'shards',
    question: 'What do shards cost, and what do they gain?',
    columns: [
      { key: 'size', title: 'payload each way' },
      { key: 'workers', title: 'workers', digits: 0 },
      { key: 'shards', title: 'shards', digits: 0 },
      { key: 'gigabytesPerSecond', title: 'GB/s' },
      { key: 'times', title: 'times one shard', digits: 2 },
      { key: 'roundTripsPerSecond', title: 'round trips/s' },
      { key: 'p50Ms', title: 'p50, ms' },
      { key: 'p99Ms', title: 'p99, ms' },
      { key: 'cpuSecondsPerGigabyte', title: 'CPU s/GB pushed, all shards', digits: 2 },
    ],
    rows: rows.map((row) => ({ ...row, size: formatBytes(row.bytes) })),
    note: 'Shards are threads of one server, over TCP, with one push in flight per worker, applied by SGD. A push waits for the slowest shard and for the coordinator, so small pushes get slower. Shards are for models that are too large for one memory, one core or one network card.',
  };
}
