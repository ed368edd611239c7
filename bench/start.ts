import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { join } from 'node:path';
import { performance } from 'node:perf_hooks';
import { installed } from '../scripts/installed.ts';
import { medianOf } from '../shared/quantile.ts';
import { ENVIRONMENT, end, keep, PROGRAM, startServer, temporaryFolder } from './processes.ts';
import type { Table, Target } from './report.ts';

/** How long a command takes until it does what it was called for: of the built package, and of the sources of a checkout. */

export interface StartRow {
  readonly what: string;
  /** Medians. */
  readonly packageSeconds: number;
  readonly checkoutSeconds: number;
  /** What the package is to take at most. */
  readonly wantedSeconds: number;
}

interface Case {
  readonly what: string;
  readonly wantedSeconds: number;
  readonly args: (server: string, folder: string) => readonly string[];
  /** The line by which it is there; absent: its end. */
  readonly until?: RegExp;
}

const CASES: readonly Case[] = [
  { what: '--version', wantedSeconds: 0.2, args: () => ['--version'] },
  { what: '--help', wantedSeconds: 0.2, args: () => ['--help'] },
  { what: 'status', wantedSeconds: 0.4, args: (server) => ['status', '--server', server] },
  {
    ...{ what: 'serve, listening', wantedSeconds: 0.7, until: /listens on/ },
    args: (_server, folder) => ['serve', '--port', '0', '--state', join(folder, 'state')],
  },
  {
    ...{ what: 'work with wasm, asking for work', wantedSeconds: 1.2, until: /waiting/ },
    args: (server) => ['work', '--server', server, '--engine', 'wasm'],
  },
];

export async function benchStart(options: {
  readonly repetitions: number;
  readonly progress: (what: string) => void;
}): Promise<StartRow[]> {
  const { repetitions, progress } = options;
  const folder = temporaryFolder();
  progress('building the package');
  const program = installed(folder.path);
  const server = await startServer();
  try {
    const rows: StartRow[] = [];
    for (const { what, wantedSeconds, args, until } of CASES) {
      progress(what);
      const measured = { package: [] as number[], checkout: [] as number[] };
      // In turn, so that what else the machine does meets both.
      for (let i = 0; i < repetitions; i++) {
        const given = args(server.url, folder.path);
        measured.package.push(await seconds(program, given, folder.path, until));
        measured.checkout.push(await seconds(PROGRAM, given, folder.path, until));
      }
      rows.push({
        ...{ what, wantedSeconds },
        packageSeconds: medianOf(measured.package),
        checkoutSeconds: medianOf(measured.checkout),
      });
    }
    return rows;
  } finally {
    await server.close();
    folder.remove();
  }
}

async function seconds(
  program: string,
  args: readonly string[],
  cwd: string,
  until: RegExp | undefined,
): Promise<number> {
  const from = performance.now();
  const child = keep(
    spawn(process.execPath, [program, ...args], { cwd, env: ENVIRONMENT, stdio: 'pipe' }),
  );
  let text = '';
  const there = new Promise<void>((resolve, reject) => {
    const hear = (chunk: Buffer) => {
      text += chunk;
      if (until?.test(text)) resolve();
    };
    child.stdout?.on('data', hear);
    child.stderr?.on('data', hear);
    child.once('exit', (code) => {
      if (until === undefined && code === 0) resolve();
      else reject(new Error(`downpour ${args.join(' ')} ended with ${code}:\n${text}`));
    });
  });
  await there;
  const took = (performance.now() - from) / 1000;
  if (until) {
    child.removeAllListeners('exit');
    const ended = once(child, 'exit');
    child.kill('SIGTERM');
    await Promise.race([ended, new Promise((resolve) => setTimeout(resolve, 5_000))]);
    await end(child);
  }
  return took;
}

export function startTable(rows: readonly StartRow[]): Table {
  return {
    name: 'start',
    question: 'How long does a command take to start?',
    columns: [
      { key: 'what', title: 'command' },
      { key: 'packageSeconds', title: 'package s', digits: 2 },
      { key: 'checkoutSeconds', title: 'checkout s', digits: 2 },
    ],
    rows: rows.map((row) => ({ ...row })),
    note: 'Medians. The package is the output of `npm run build`. The checkout reads its TypeScript each time.',
  };
}

export const startTargets = (rows: readonly StartRow[]): Target[] =>
  rows.map(({ what, packageSeconds: seen, wantedSeconds: wanted }) => ({
    ...{ what: `start: ${what}`, unit: 's', bound: 'atMost', wanted, seen },
  }));
