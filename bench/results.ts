import { spawn } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { cpus, tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { parseArgs } from 'node:util';
import type { RunSummary } from '../shared/rest.ts';

/**
 * `npm run results`: trains the MNIST examples with 1, 2 and 4 asynchronous workers by the same
 * command that a user types, and writes what came out between the markers of docs/results.md.
 * Takes some 25 minutes on 2 cores with the native engine.
 */

const ROOT = join(import.meta.dirname, '..');
const PAGE = join(ROOT, 'docs/results.md');

const { values } = parseArgs({
  options: {
    examples: { type: 'string', default: 'mnist-mlp,mnist-cnn' },
    workers: { type: 'string', default: '1,2,4' },
    engine: { type: 'string', default: 'auto' },
    /** Prints the table only. */
    print: { type: 'boolean', default: false },
  },
});

interface Row {
  readonly example: string;
  readonly workers: number;
  readonly run: RunSummary;
}

async function train(example: string, workers: number, state: string): Promise<RunSummary> {
  const args = ['train', `examples/${example}.ts`, '--workers', String(workers), '--state', state];
  const engine = values.engine === 'auto' ? [] : ['--engine', values.engine];
  const child = spawn(
    process.execPath,
    [join(ROOT, 'bin/downpour.js'), ...args, ...engine, '--json'],
    {
      cwd: ROOT,
      stdio: ['ignore', 'pipe', 'inherit'],
    },
  );
  let run: RunSummary | null = null;
  let epoch = -1;
  for await (const line of createInterface({ input: child.stdout })) {
    const event = JSON.parse(line) as { run?: RunSummary };
    if (!event.run) continue;
    run = event.run;
    if (run.validation && run.validation.epoch !== epoch) {
      epoch = run.validation.epoch;
      const error = ((run.validation.error ?? 1) * 100).toFixed(2);
      console.error(`  ${example} × ${workers}: epoch ${epoch}, validation error ${error} %`);
    }
  }
  if (run?.phase !== 'finished') throw new Error(`${example} × ${workers} ended as ${run?.phase}`);
  return run;
}

function table(rows: readonly Row[]): string {
  const lines = [
    '| example | workers | test accuracy | test loss | best at step | steps | staleness p50 / p95 / max | examples/s | minutes |',
    '|---|---|---|---|---|---|---|---|---|',
  ];
  for (const { example, workers, run } of rows) {
    const { staleness, test, best } = run;
    const cells = [
      example,
      workers,
      `${((1 - (test?.error ?? 1)) * 100).toFixed(2)} %`,
      test?.loss?.toFixed(4) ?? '–',
      best?.step ?? '–',
      run.step,
      staleness ? `${staleness.p50} / ${staleness.p95} / ${staleness.max}` : '–',
      Math.round(run.examples / run.seconds),
      (run.seconds / 60).toFixed(1),
    ];
    lines.push(`| ${cells.join(' | ')} |`);
  }
  return lines.join('\n');
}

const folder = mkdtempSync(join(tmpdir(), 'downpour-results-'));
try {
  const rows: Row[] = [];
  for (const example of values.examples.split(',')) {
    for (const workers of values.workers.split(',').map(Number)) {
      rows.push({
        example,
        workers,
        run: await train(example, workers, join(folder, `${example}-${workers}`)),
      });
    }
  }
  const machine = `${cpus().length} cores (${cpus()[0]?.model.trim()}), Node ${process.versions.node}`;
  const text = `Data: ${rows[0]?.run.data?.source.replace(/ from .*/, '')}. Machine: ${machine}; server and workers share it.\n\n${table(rows)}`;
  console.log(text);
  if (!values.print) {
    const page = readFileSync(PAGE, 'utf8');
    writeFileSync(
      PAGE,
      page.replace(/(<!-- results -->\n)[\s\S]*(<!-- \/results -->)/, `$1\n${text}\n\n$2`),
    );
  }
} finally {
  rmSync(folder, { recursive: true, force: true });
}
