import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { createInterface } from 'node:readline';
import { encodedBytes } from '../shared/compression.ts';
import type { RunSummary } from '../shared/rest.ts';
import { MLP_PARAMETERS } from './load.ts';
import { ENVIRONMENT, keep, PROGRAM, ROOT, temporaryFolder } from './processes.ts';
import type { Table } from './report.ts';

/**
 * What each compression sends, and what it costs in accuracy on MNIST: `downpour train` with the
 * example mnist-mlp and one worker, so that nothing but the encoding differs. All of MNIST where
 * DOWNPOUR_DATA has it, else the 10,000 digits of the npm package.
 */

export interface CompressionCase {
  readonly push: 'f32' | 'bf16' | 'int8' | 'topk';
  readonly pull: 'f32' | 'bf16';
  /** The share of the elements that are sent. */
  readonly density?: number;
}

export interface CompressionRow extends CompressionCase {
  readonly pushBytes: number;
  readonly pullBytes: number;
  /** The accuracy on the test part, after the same number of steps. */
  readonly accuracy: number;
  readonly steps: number;
  readonly data: string;
}

export const COMPRESSION_CASES: readonly CompressionCase[] = [
  { push: 'f32', pull: 'f32' },
  { push: 'bf16', pull: 'bf16' },
  { push: 'int8', pull: 'bf16' },
  { push: 'topk', density: 0.01, pull: 'bf16' },
  { push: 'topk', density: 0.001, pull: 'bf16' },
];

const MOMENTUM = 0.9;

export async function benchCompression(options: {
  readonly cases?: readonly CompressionCase[];
  readonly steps: number;
  readonly progress?: (what: string) => void;
}): Promise<CompressionRow[]> {
  const { cases = COMPRESSION_CASES, steps, progress } = options;
  const rows: CompressionRow[] = [];
  for (const each of cases) {
    progress?.(`${nameOf(each)}: ${steps} steps`);
    const run = await train(each, steps);
    rows.push({
      ...each,
      pushBytes: encodedBytes(
        each.push,
        MLP_PARAMETERS,
        Math.ceil((each.density ?? 0) * MLP_PARAMETERS),
      ),
      pullBytes: encodedBytes(each.pull, MLP_PARAMETERS),
      accuracy: 1 - (run.test?.error ?? Number.NaN),
      steps: run.step,
      data: run.data?.source.replace(/ (from |\().*/s, '') ?? '',
    });
  }
  return rows;
}

const nameOf = ({ push, pull, density }: CompressionCase) =>
  `${push}${density === undefined ? '' : ` ${100 * density} %`} / ${pull}`;

async function train({ push, pull, density }: CompressionCase, steps: number): Promise<RunSummary> {
  const folder = temporaryFolder();
  const set: Record<string, unknown> = {
    'compression.push.kind': push,
    'compression.pull': pull,
    'averaging.kind': 'none',
    'schedule.kind': 'constant',
    'earlyStopping.enabled': false,
    'hyperparameters.dropout': 0,
    stepsMax: steps,
    evaluateEverySteps: steps,
  };
  if (density !== undefined) {
    // The worker keeps the momentum (Lin et al. 2018, arXiv:1712.01887): the server must not do so again.
    set['compression.push.density'] = density;
    set['compression.push.warmupEpochs'] = 1;
    set['compression.push.momentum'] = MOMENTUM;
    set['optimizer.kind'] = 'sgd';
  }
  const changes = Object.entries(set).flatMap(([path, value]) => ['--set', `${path}=${value}`]);
  const args = ['train', 'examples/mnist-mlp.ts', '--workers', '1', '--state', folder.path];
  const child = keep(
    spawn(process.execPath, [PROGRAM, ...args, '--json', ...changes], {
      ...{ cwd: ROOT, env: ENVIRONMENT },
      stdio: ['ignore', 'pipe', 'pipe'],
    }),
  );
  const ended = once(child, 'exit');
  const said: string[] = [];
  createInterface({ input: child.stderr! }).on('line', (line) => said.push(line));
  try {
    let run: RunSummary | null = null;
    for await (const line of createInterface({ input: child.stdout! })) {
      run = (JSON.parse(line) as { run?: RunSummary }).run ?? run;
    }
    await ended;
    if (run?.phase === 'finished') return run;
    throw new Error(`${push}/${pull} ended as ${run?.phase}: ${said.slice(-5).join('\n')}`);
  } finally {
    child.kill('SIGKILL');
    folder.remove();
  }
}

export function compressionTable(rows: readonly CompressionRow[]): Table {
  const plain = rows.find(({ push, pull }) => push === 'f32' && pull === 'f32');
  const bytes = (row: CompressionRow) => row.pushBytes + row.pullBytes;
  const { steps = 0, data = '' } = rows[0] ?? {};
  return {
    name: 'compression',
    question: 'What does compression save, and what does it cost?',
    columns: [
      { key: 'name', title: 'gradient / parameters' },
      { key: 'push', title: 'push, KB', digits: 1 },
      { key: 'pull', title: 'pull, KB', digits: 1 },
      { key: 'share', title: 'bytes, of f32 (%)', digits: 1 },
      { key: 'accuracy', title: 'test accuracy, %', digits: 2 },
      { key: 'difference', title: 'points off f32', digits: 2 },
    ],
    rows: rows.map((row) => ({
      name: nameOf(row),
      push: row.pushBytes / 1e3,
      pull: row.pullBytes / 1e3,
      share: plain ? (100 * bytes(row)) / bytes(plain) : null,
      accuracy: 100 * row.accuracy,
      difference: plain ? 100 * (row.accuracy - plain.accuracy) : null,
    })),
    note: `${data}; ${steps} steps of 64 examples, one worker, one seed. The payload is that of one step. For topk it is measured after the warm-up of one epoch.`,
  };
}
