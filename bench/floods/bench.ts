import { setTimeout as wait } from 'node:timers/promises';
import { medianOf } from '../../shared/quantile.ts';
import { createRun, RUN } from '../exchange.ts';
import { EXPERIMENT, MLP_PARAMETERS, runTogether, type ServerEnd, startLoad } from '../load.ts';
import { startServer, TOKENS } from '../processes.ts';
import type { Table, Target } from '../report.ts';
import { ATTACKS, type Attack, startAttacker } from './attacks.ts';

/**
 * What honest workers reach while others flood the server: updates/s with and without, by turns, and the memory that
 * the server takes at most. Flooders, workers and server are processes of their own.
 */

export interface FloodRow {
  readonly flood: string;
  readonly connections: number;
  readonly without: number;
  readonly with: number;
  /** Median of the ratios of each turn. */
  readonly share: number;
  /** The server's resident memory while it lasts, MB; null where there is no /proc. */
  readonly rssMegabytes: number;
  readonly rssBefore: number;
  /** Close codes of the flooders, and how often. */
  readonly closed: string;
}

export interface FloodOptions {
  readonly attacks?: readonly Attack[];
  readonly workers?: number;
  readonly repetitions: number;
  readonly seconds: number;
  readonly progress?: (what: string) => void;
}

/** The flood has reached its full size by then. */
const SWELL_MS = 1_500;
const LOOK_MS = 100;

export async function benchFloods(options: FloodOptions): Promise<FloodRow[]> {
  const { attacks = ATTACKS, workers = 4, repetitions, seconds, progress = () => {} } = options;
  const rows: FloodRow[] = [];
  for (const attack of attacks) {
    progress(attack.name);
    rows.push(await benchFlood(attack, { workers, repetitions, seconds }));
  }
  return rows;
}

async function benchFlood(
  attack: Attack,
  { workers, repetitions, seconds }: { workers: number; repetitions: number; seconds: number },
): Promise<FloodRow> {
  const server = await startServer({ tokens: true });
  const load = startLoad();
  const attacker = startAttacker();
  const { url } = server;
  const rss = async () => (await server.client.status()).memoryBytes.rss / 1e6;
  try {
    await createRun(server);
    const run = { run: RUN, ...EXPERIMENT, elements: MLP_PARAMETERS };
    const to: ServerEnd = {
      url,
      run: RUN,
      transport: 'tcp',
      elements: MLP_PARAMETERS,
      push: 'f32',
      token: TOKENS.honest,
    };
    await load.open({ count: workers, to });
    await runTogether([load], seconds);
    const rssBefore = await rss();
    let most = rssBefore;
    const turns: { without: number; with: number }[] = [];
    const codes: Record<string, number> = {};
    for (let i = 0; i < repetitions; i++) {
      const { roundTripsPerSecond: without } = await runTogether([load], seconds);
      await attacker.start(attack.name, { url, token: TOKENS.hostile, ...run });
      let watching = true;
      const watch = async () => {
        while (watching) {
          most = Math.max(most, await rss().catch(() => 0));
          await wait(LOOK_MS);
        }
      };
      const watched = watch();
      await wait(SWELL_MS);
      const flooded = await runTogether([load], seconds);
      watching = false;
      for (const [code, count] of Object.entries(await attacker.stop())) {
        codes[code] = (codes[code] ?? 0) + count;
      }
      await watched;
      turns.push({ without, with: flooded.roundTripsPerSecond });
    }
    return {
      ...{ flood: attack.name, connections: attack.connections },
      without: medianOf(turns.map((turn) => turn.without)),
      with: medianOf(turns.map((turn) => turn.with)),
      share: medianOf(turns.map((turn) => turn.with / turn.without)),
      ...{ rssBefore, rssMegabytes: most },
      closed: Object.entries(codes)
        .map(([code, count]) => `${count} with ${code}`)
        .join(', '),
    };
  } finally {
    await Promise.all([server.close(), load.close(), attacker.close()]);
  }
}

export function floodsTable(rows: readonly FloodRow[]): Table {
  return {
    name: 'floods',
    question: 'How much do hostile clients slow down honest workers?',
    columns: [
      { key: 'flood', title: 'flood' },
      { key: 'connections', title: 'connections', digits: 0 },
      { key: 'without', title: 'updates/s without' },
      { key: 'with', title: 'with' },
      { key: 'share', title: 'share', digits: 2 },
      { key: 'rssBefore', title: 'server MB before', digits: 0 },
      { key: 'rssMegabytes', title: 'at most', digits: 0 },
      { key: 'closed', title: 'connections closed, by code' },
    ],
    rows: rows.map((row) => ({ ...row })),
    note: 'Four workers of the MLP 784-256-10 (0.81 MB each way in f32) over TCP, flooders in a separate process with the lowest priority, which reopens each connection when the server closes it. `refused`: the handshake failed. All share the machine’s cores, so a flood that sends much also takes processor time from the workers.',
  };
}

/** What honest workers must keep. */
const SHARE_MIN = 0.5;

export function floodsTargets(rows: readonly FloodRow[]): Target[] {
  return rows.map(({ flood, share }) => ({
    what: `updates of honest workers while others flood the server: ${flood}`,
    ...{ unit: '', bound: 'atLeast', wanted: SHARE_MIN, seen: share },
  }));
}
