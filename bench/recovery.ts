/**
 * `npx tsx bench/recovery.ts`: kills the server with SIGKILL in the middle of a training of mnist-mlp, again
 * and again, and measures how soon it applies a push again after it is back, and what was lost.
 *
 *     npx tsx bench/recovery.ts                         # 10 kills, about two minutes
 *     npx tsx bench/recovery.ts --kills 3 --workers 4
 *     npx tsx bench/recovery.ts --redis redis://127.0.0.1:6379
 *     npx tsx bench/recovery.ts --write                 # also into docs/reliability.md
 */

import type { ChildProcess } from 'node:child_process';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as wait } from 'node:timers/promises';
import { parseArgs } from 'node:util';
import { medianOf } from '../shared/quantile.ts';
import { createRestClient, type RestClient } from '../shared/rest-client.ts';
import { end, listening, ROOT, runProgram, temporaryFolder, until } from './processes.ts';
import { formatTable, writeBetween } from './report.ts';

const PAGE = join(ROOT, 'docs/reliability.md');
const EXAMPLE = join(ROOT, 'examples/mnist-mlp.ts');
/** After this the first push must have been applied. */
const TARGET_SECONDS = 2;

const { values } = parseArgs({
  options: {
    kills: { type: 'string', default: '10' },
    workers: { type: 'string', default: '2' },
    engine: { type: 'string' },
    /** How long the server stays away after each kill. */
    away: { type: 'string', default: '3' },
    redis: { type: 'string' },
    write: { type: 'boolean', default: false },
  },
});

interface Kill {
  /** From the start of the process to its first line, and from there to the first applied push. */
  readonly startSeconds: number;
  readonly pushSeconds: number;
  readonly lost: number;
}

const folder = temporaryFolder();
const run = (...args: string[]) => runProgram(folder.path, args);

async function serve(port: number): Promise<{ child: ChildProcess; client: RestClient }> {
  const redis = values.redis === undefined ? [] : ['--redis-url', values.redis];
  const state = ['--state', join(folder.path, 'state')];
  const child = run('serve', '--port', String(port), ...state, ...redis, '--json');
  return { child, client: createRestClient({ server: await listening(child) }) };
}

async function main(): Promise<void> {
  let { child, client } = await serve(0);
  const { port } = new URL(client.url);
  const engine = values.engine === undefined ? [] : ['--engine', values.engine];
  for (let i = 0; i < Number(values.workers); i++) {
    const worker = run(
      'work',
      '--server',
      client.url,
      '--threads',
      '1',
      '--experiments',
      join(ROOT, 'examples'),
      ...engine,
    );
    worker.stdout!.resume();
    worker.stderr!.resume();
  }
  const id = 'recovery';
  const settings = ['earlyStopping.enabled=false', 'epochsMax=100000', 'checkpoint.everySeconds=5'];
  const training = run(
    ...['train', EXAMPLE, '--server', client.url, '--workers', '0', '--detach', '--run', id],
    ...settings.flatMap((setting) => ['--set', setting]),
  );
  training.stdout!.resume();
  const kills: Kill[] = [];
  await until(async () => (await client.run(id)).step > 200, 100);
  for (let i = 0; i < Number(values.kills); i++) {
    // At another moment between two checkpoints each time.
    await wait(1_000 + 600 * (i % 7));
    const before = await client.run(id);
    await end(child);
    await wait(1_000 * Number(values.away));
    const started = performance.now();
    ({ child, client } = await serve(Number(port)));
    const listening = performance.now();
    const restored = await client.run(id);
    const first = await until(async () => {
      const now = await client.run(id);
      return now.pushes.applied > restored.pushes.applied && performance.now();
    }, 10);
    // Both workers have told by then what they saw.
    await wait(1_000);
    const after = await client.run(id);
    kills.push({
      startSeconds: (listening - started) / 1000,
      pushSeconds: (first - listening) / 1000,
      lost: after.stepsLost - before.stepsLost,
    });
    const { startSeconds, pushSeconds, lost } = kills.at(-1)!;
    console.error(
      `kill ${i + 1}: listens after ${startSeconds.toFixed(2)} s, first push ${pushSeconds.toFixed(2)} s later, ${lost} steps lost`,
    );
  }
  await end(child);
  report(kills);
}

function report(kills: readonly Kill[]): void {
  const push = kills.map(({ pushSeconds }) => pushSeconds);
  const start = kills.map(({ startSeconds }) => startSeconds);
  const lost = kills.map((kill) => kill.lost);
  const row = (what: string, seen: readonly number[]) => ({
    ...{ what, median: medianOf(seen), worst: Math.max(...seen) },
  });
  const table = formatTable({
    columns: [
      { key: 'what', title: 'mnist-mlp' },
      { key: 'median', title: 'median' },
      { key: 'worst', title: 'worst' },
    ],
    rows: [
      row('seconds from its start until the server listens', start),
      row('seconds from there to the first applied push', push),
      row('steps lost', lost),
    ],
  });
  const met = Math.max(...push) <= TARGET_SECONDS ? 'met' : 'missed';
  const where = values.redis === undefined ? 'state in files' : 'state in Redis';
  const text = `${kills.length} kills, ${values.workers} workers, a checkpoint every 5 s, ${values.away} s away each time, ${where}; target ${TARGET_SECONDS} s: ${met}.\n\n${table}`;
  console.log(text);
  if (values.write) {
    writeFileSync(PAGE, writeBetween(readFileSync(PAGE, 'utf8'), 'recovery', text));
  }
}

await main();
process.exit(0);
