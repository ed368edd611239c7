/**
 * `npx tsx bench/long.ts`: a long training with workers that come and go, and what it does to the server's memory.
 * Workers are simulated (the MLP, with gradients that are ready); all else is as in any training: evaluations,
 * checkpoints every five seconds, early-stopping records. Each worker stays for some seconds, then is killed or
 * asked to end, and another one comes.
 *
 *     npx tsx bench/long.ts                          # a million steps, 10 to 20 minutes
 *     npx tsx bench/long.ts --steps 100000 --workers 4
 *     npx tsx bench/long.ts --write                  # also into docs/reliability.md
 */

import type { ChildProcess } from 'node:child_process';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as wait } from 'node:timers/promises';
import { parseArgs } from 'node:util';
import { medianOf } from '../shared/quantile.ts';
import { ROOT, startServer } from './processes.ts';
import { formatTable, writeBetween } from './report.ts';
import { createRun, startSimulated } from './system.ts';

const PAGE = join(ROOT, 'docs/reliability.md');
const SAMPLE_MS = 1_000;
/** Memory is flat when the last tenth has no more than so many times that of the second. */
const GROWTH_MAX = 1.1;

const { values } = parseArgs({
  options: {
    steps: { type: 'string', default: '1000000' },
    workers: { type: 'string', default: '3' },
    /** That one stays, seconds: between one and twice as many. */
    stay: { type: 'string', default: '5' },
    write: { type: 'boolean', default: false },
  },
});
const steps = Number(values.steps);

interface Sample {
  readonly step: number;
  readonly rss: number;
}

const server = await startServer();
const { client } = server;
const counts = { joined: 0, killed: 0, left: 0 };

/** Keeps one place taken, by one worker after the other. */
async function keepWorking(place: number, until: AbortSignal): Promise<void> {
  while (!until.aborted) {
    const worker: ChildProcess = startSimulated(
      server.url,
      'bf16',
      `w-${place}-${counts.joined++}`,
    );
    const stay = Number(values.stay) * 1000 * (1 + Math.random());
    await wait(stay, null, { signal: until }).catch(() => {});
    const kill = Math.random() < 0.5;
    counts[kill ? 'killed' : 'left']++;
    worker.kill(kill ? 'SIGKILL' : 'SIGTERM');
  }
}

const over = new AbortController();
await createRun(
  client,
  { worker: 'simulated', depth: 2, push: 'bf16', pull: 'bf16' },
  { stepsMax: steps, evaluateEverySteps: 750, checkpoint: { everySeconds: 5 }, workersMin: 1 },
);
const working = Array.from({ length: Number(values.workers) }, (_, place) =>
  keepWorking(place, over.signal),
);
const samples: Sample[] = [];
const began = performance.now();
let told = 0;
for (;;) {
  const [{ memoryBytes }, { step, phase }] = await Promise.all([
    client.status(),
    client.run('bench'),
  ]);
  samples.push({ step, rss: memoryBytes.rss });
  if (step - told >= steps / 20) {
    told = step;
    console.error(
      `step ${step}: ${(memoryBytes.rss / 1e6).toFixed(0)} MB, ${counts.joined} workers so far`,
    );
  }
  if (phase === 'finished' || phase === 'failed') break;
  await wait(SAMPLE_MS);
}
const minutes = (performance.now() - began) / 60_000;
over.abort();
await Promise.all(working);
const run = await client.run('bench');
await server.close();

const between = (from: number, to: number) =>
  medianOf(
    samples
      .filter(({ step }) => step >= from * steps && step <= to * steps)
      .map(({ rss }) => rss / 1e6),
  );
const early = between(0.1, 0.2);
const late = between(0.9, 1);
const table = formatTable({
  columns: [
    { key: 'part', title: 'steps' },
    { key: 'rss', title: 'resident memory of the server, MB', digits: 0 },
  ],
  rows: [0.1, 0.3, 0.5, 0.7, 0.9].map((from) => ({
    part: `${Math.round(from * 100)} to ${Math.round(from * 100 + 10)} %`,
    rss: between(from, from + 0.1),
  })),
});
const { applied, duplicate, rejected } = run.pushes;
const verdict = late <= GROWTH_MAX * early ? 'met' : 'missed';
const text = `${run.step.toLocaleString('en')} steps in ${minutes.toFixed(0)} minutes; ${counts.joined} workers came, ${counts.killed} were killed, ${counts.left} asked to end; pushes applied ${applied.toLocaleString('en')}, duplicate ${duplicate}, rejected ${rejected}. At the end ${(late / early).toFixed(2)} times the memory of the second tenth; at most ${GROWTH_MAX}: ${verdict}.\n\n${table}`;
console.log(text);
if (values.write) writeFileSync(PAGE, writeBetween(readFileSync(PAGE, 'utf8'), 'long', text));
process.exit(applied === run.step && verdict === 'met' ? 0 : 1);
