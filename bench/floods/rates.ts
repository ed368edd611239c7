import { setTimeout as wait } from 'node:timers/promises';
import { medianOf } from '../../shared/quantile.ts';
import { createRun, RUN } from '../exchange.ts';
import { EXPERIMENT, type Load, startLoad } from '../load.ts';
import { type ServerProcess, startServer, TOKENS } from '../processes.ts';
import type { Table, Target } from '../report.ts';
import {
  type Flooder,
  MESSAGE_FLOODS,
  type MessageFloodOptions,
  type ReadFloodOptions,
  startFlooder,
} from './flooder.ts';

/**
 * What an honest worker keeps while somebody floods the server: with a worker's token by messages, with an observer's
 * by questions beside many runs. Server, worker and flooder are processes of their own; turns without the flood come
 * before and after each turn with it, so that the share holds on a busy machine.
 */

export interface FloodRow {
  readonly flood: string;
  readonly runs: number;
  /** Updates of the honest worker in a second. */
  readonly without: number;
  readonly with: number;
  /** Median of the shares of each turn. */
  readonly share: number;
  /** What the flood reached: MB/s that the server took, or answers/s. */
  readonly taken: number;
}

export interface FloodOptions {
  /** Beside which readers ask. */
  readonly runs: number;
  readonly repetitions: number;
  /** Seconds of a turn; the flood has begun before. */
  readonly seconds: number;
  /** How long the flood has lasted when the turn begins: what may be spent at once is spent. */
  readonly leadSeconds: number;
  /** Those whose name holds this text. */
  readonly only?: string;
  readonly progress?: (what: string) => void;
}

const ELEMENTS = 250;
const HONEST = { count: 1, inFlight: 4 };
const CONNECTIONS = [1, 8];
const READERS = 2;
/** What two observers ask for. */
const READS: readonly (readonly [name: string, paths: readonly string[]])[] = [
  ['GET /runs', ['/runs']],
  ['GET /status', ['/status']],
  ['GET /metrics', ['/metrics']],
  ['GET /runs/:id/metrics', [`/runs/${RUN}/metrics`]],
  ['GET /runs/:id/workers', [`/runs/${RUN}/workers`]],
  ['GET /feed, opened again', ['/feed']],
];
/** Runs that are made at the same time, beside the one that is trained. */
const CREATED_AT_ONCE = 16;

export async function benchRates(options: FloodOptions): Promise<FloodRow[]> {
  const { runs, only = '' } = options;
  const load = startLoad();
  const flooder = startFlooder();
  const rows: FloodRow[] = [];
  const end = { run: RUN, elements: ELEMENTS };
  const messages = MESSAGE_FLOODS.flatMap((flood) =>
    CONNECTIONS.map((connections) => ({
      name: `${flood}, ${connections} connection${connections > 1 ? 's' : ''}`,
      options: { flood, connections, ...end },
    })),
  );
  const reads = READS.map(([name, paths]) => ({ name, options: { paths, readers: READERS } }));
  const wanted = <F extends { name: string }>(floods: readonly F[]) =>
    floods.filter(({ name }) => name.includes(only));
  try {
    for (const [floods, count] of [
      [wanted(messages), 1],
      [wanted(reads), runs],
    ] as const) {
      if (floods.length === 0) continue;
      const server = await startServer({ tokens: true });
      try {
        await createRun(server, { consistency: { depth: HONEST.inFlight } });
        options.progress?.(`${count} runs are made`);
        await createOthers(server, count - 1);
        for (const flood of floods) {
          const begin = { ...flood.options, url: server.url };
          rows.push({ flood: flood.name, runs: count, ...(await one(begin, server)) });
        }
      } finally {
        await server.close();
      }
    }
  } finally {
    await Promise.all([load.close(), flooder.close()]);
  }
  return rows;

  async function one(begin: MessageFloodOptions | ReadFloodOptions, server: ServerProcess) {
    const turns: Awaited<ReturnType<typeof turn>>[] = [];
    for (let i = 0; i < options.repetitions; i++) {
      const name = 'flood' in begin ? `${begin.flood} × ${begin.connections}` : begin.paths[0];
      options.progress?.(`${name}, turn ${i + 1} of ${options.repetitions}`);
      turns.push(await turn(begin, { server, load, flooder, ...options }));
    }
    const median = (of: (turn: (typeof turns)[number]) => number) => medianOf(turns.map(of));
    return {
      without: median((t) => t.without),
      with: median((t) => t.with),
      share: median((t) => t.with / t.without),
      taken: median((t) => t.taken),
    };
  }
}

/** Runs that nobody works for. */
async function createOthers({ client }: ServerProcess, count: number): Promise<void> {
  let made = 0;
  const make = async () => {
    while (made < count) await client.createRun({ id: `other-${made++}`, ...EXPERIMENT });
  };
  await Promise.all(Array.from({ length: CREATED_AT_ONCE }, make));
}

async function turn(
  begin: MessageFloodOptions | ReadFloodOptions,
  {
    server: { url },
    load,
    flooder,
    seconds,
    leadSeconds,
  }: Pick<FloodOptions, 'seconds' | 'leadSeconds'> & {
    readonly server: ServerProcess;
    readonly load: Load;
    readonly flooder: Flooder;
  },
) {
  const end = {
    url,
    run: RUN,
    transport: 'tcp',
    elements: ELEMENTS,
    push: 'f32',
    token: TOKENS.honest,
  } as const;
  await load.open({ ...HONEST, to: end });
  try {
    await load.run(seconds / 3);
    const before = await load.run(seconds);
    await flooder.begin(begin);
    const from = performance.now();
    await wait(1000 * leadSeconds);
    const during = await load.run(seconds);
    const taken = await flooder.end();
    const tookSeconds = (performance.now() - from) / 1000;
    const after = await load.run(seconds);
    return {
      without: (before.roundTripsPerSecond + after.roundTripsPerSecond) / 2,
      with: during.roundTripsPerSecond,
      taken: taken / tookSeconds / ('flood' in begin ? 1e6 : 1),
    };
  } finally {
    await load.disconnect();
  }
}

export function ratesTable(rows: readonly FloodRow[]): Table {
  return {
    name: 'rates',
    question: 'What share of its updates does an honest worker keep during a flood?',
    columns: [
      { key: 'flood', title: 'flood' },
      { key: 'runs', title: 'runs', digits: 0 },
      { key: 'without', title: 'updates/s without', digits: 0 },
      { key: 'with', title: 'updates/s with', digits: 0 },
      { key: 'share', title: 'share', digits: 2 },
      { key: 'taken', title: 'flood, MB/s or answers/s' },
    ],
    rows: rows.map((row) => ({ ...row })),
    note: `One worker with ${HONEST.inFlight} pushes of ${ELEMENTS} numbers in flight. The flooder has the token of a worker, or two connections with the token of an observer, and sends as fast as the server accepts. All three share the cores of one machine.`,
  };
}

export function ratesTargets(rows: readonly FloodRow[]): Target[] {
  return rows.map(({ flood, share }) => ({
    ...{ what: `updates under a flood of ${flood}, share of those without`, unit: '' },
    ...{ bound: 'atLeast', wanted: 0.5, seen: share },
  }));
}
