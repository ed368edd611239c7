import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { afterAll, beforeAll, expect, inject, test } from 'vitest';
import { createRestClient } from '../../shared/rest-client.ts';
import type { Trial } from '../../study/study.ts';

// A search of 20 trials on real data, as real processes: the command, the server and a worker are
// killed with SIGKILL in turn. It goes on, and ends with exactly 20 results.

const ROOT = fileURLToPath(new URL('../..', import.meta.url));
const PROGRAM = inject('program');
const EXAMPLE = join(ROOT, 'examples/csv-regression.ts');
const TRIALS = 20;
const EPOCHS = 4;

let folder: string;
const children = new Set<ChildProcess>();
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'downpour-study-crash-'));
});
afterAll(async () => {
  // Those that a failed test has left write to the folder until they have ended.
  const gone = [...children].map((child) => once(child, 'close'));
  for (const child of children) child.kill('SIGKILL');
  await Promise.all(gone);
  rmSync(folder, { recursive: true, force: true });
});

interface Line {
  readonly event?: string;
  readonly ended?: number;
  readonly url?: string;
  readonly [fact: string]: unknown;
}

/** A process of ours, and the JSON lines that it prints. */
function start(args: readonly string[]) {
  const env: NodeJS.ProcessEnv = { ...process.env, NO_COLOR: '1' };
  for (const name of Object.keys(env)) if (name.startsWith('DOWNPOUR_')) delete env[name];
  const child = spawn(process.execPath, [PROGRAM, ...args], {
    ...{ cwd: folder, env },
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  children.add(child);
  const lines: Line[] = [];
  let text = '';
  const looks = new Set<() => void>();
  for (const stream of [child.stdout, child.stderr]) {
    createInterface({ input: stream }).on('line', (line) => {
      text += `${line}\n`;
      if (line.startsWith('{')) lines.push(JSON.parse(line) as Line);
      for (const look of looks) look();
    });
  }
  const code = new Promise<number | null>((resolve) => {
    child.on('close', (exitCode) => {
      children.delete(child);
      resolve(exitCode);
      for (const look of looks) look();
    });
  });
  return {
    child,
    code,
    lines,
    /** Resolves with the first line that fits. */
    until(fits: (line: Line) => boolean): Promise<Line> {
      return new Promise((resolve, reject) => {
        const look = () => {
          const found = lines.find(fits);
          if (!found && child.exitCode === null && child.signalCode === null) return;
          looks.delete(look);
          if (found) resolve(found);
          else reject(new Error(`${args[0]} ended before: ${text}`));
        };
        looks.add(look);
        look();
      });
    },
    async kill(): Promise<void> {
      child.kill('SIGKILL');
      await code;
    },
  };
}

const serve = (port: number) =>
  start(['serve', '--json', '--state', 'state', '--port', String(port)]);

test('a search killed in the middle (command, server, worker in turn) ends with exactly 20 results', async () => {
  let server = serve(0);
  const { url } = await server.until((line) => line.url !== undefined);
  const port = Number(new URL(url!).port);
  const work = (name: string) =>
    start([
      'work',
      '--server',
      url!,
      '--name',
      name,
      '--engine',
      'cpu',
      '--experiments',
      join(ROOT, 'examples'),
    ]);
  const worker = work('first');
  const other = work('second');
  const search = () =>
    start([
      ...['search', EXAMPLE, '--server', url!, '--workers', '0', '--parallel', '2', '--json'],
      ...[
        '--trials',
        String(TRIALS),
        '--epochs',
        String(EPOCHS),
        '--metric',
        'loss',
        '--out',
        'out',
      ],
      ...['--space', 'learningRate=log:0.0003..0.3', 'optimizer.beta1=uniform:0.5..0.95'],
    ]);
  const ended = (count: number) => (line: Line) =>
    line.event === 'progress' && line.ended! >= count;

  let command = search();
  await command.until(ended(3));
  await command.kill();

  command = search();
  await command.until(ended(7));
  await server.kill();
  server = serve(port);
  await command.until(ended(11));
  await worker.kill();
  const third = work('third');
  await command.until((line) => line.event === 'ended');
  expect(await command.code).toBe(0);

  const { trials } = JSON.parse(readFileSync(join(folder, 'out/study.json'), 'utf8')) as {
    trials: Trial[];
  };
  expect(trials).toHaveLength(TRIALS);
  expect(trials.every(({ end }) => end?.kind === 'finished')).toBe(true);
  expect(new Set(trials.map(({ point }) => JSON.stringify(point))).size).toBe(TRIALS);

  const runs = await createRestClient({ server: url! }).runs();
  expect(runs.map(({ id }) => id).sort()).toEqual(trials.map(({ id }) => id).sort());
  const perEpoch = Math.ceil(trials[0]!.data!.trainCount / 16);
  // Each trial took the steps of one: nobody trained twice.
  for (const run of runs) expect([run.id, run.step]).toEqual([run.id, EPOCHS * perEpoch]);
  const report = JSON.parse(readFileSync(join(folder, 'out/report.json'), 'utf8'));
  expect(report.trials).toHaveLength(TRIALS);
  for (const process of [server, other, third]) await process.kill();
});

test('Ctrl-C leaves a search that the same command finishes, without a server of somebody else', async () => {
  const search = () =>
    start([
      ...['search', EXAMPLE, '--json', '--state', 'own', '--engine', 'cpu', '--port', '0'],
      ...['--trials', '4', '--epochs', '30', '--metric', 'loss', '--out', 'own-out'],
      ...['--space', 'learningRate=log:0.0003..0.03', '--workers', '2'],
    ]);
  const first = search();
  await first.until((line) => line.event === 'progress' && (line.examples as number) > 0);
  first.child.kill('SIGINT');
  expect(await first.code).toBe(130);
  const second = search();
  const end = await second.until((line) => line.event === 'ended');
  expect(await second.code).toBe(0);
  expect(end.trials).toHaveLength(4);
  expect(end.advice).toContain('The best of 4 trials');
});
