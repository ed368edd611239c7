import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { PNG } from 'pngjs';
import { afterAll, beforeAll, describe, expect, test, vi } from 'vitest';
import type { ExportOptions } from '../../cli/trained/export.ts';
import { exportCommand } from '../../cli/trained/export.ts';
import { checkpointFolder } from '../../files/checkpoint.ts';
import { readTensors } from '../../files/tensor-file.ts';
import type { CheckpointSummary, Metrics, RunDetail } from '../../shared/rest.ts';
import { openEngine } from '../../worker/engine.ts';
import { Cluster, FIXTURES } from '../support/cluster.ts';
import { askPython, python, pythonTest, readBoard } from '../support/python.ts';

/** What `export` writes of a real training, read by the programs that it is for. */

const STEPS = 60;
const folder = mkdtempSync(join(tmpdir(), 'downpour-export-'));
let cluster: Cluster;
let run: RunDetail;
let metrics: Metrics;
let checkpoints: CheckpointSummary[];

beforeAll(async () => {
  cluster = await Cluster.start(await openEngine({ engine: 'cpu' }), {
    token: 'operate',
    observerToken: 'look',
  });
  const config = {
    stepsMax: STEPS,
    evaluateEverySteps: 20,
    observe: { everySteps: 10, costMax: 1 },
  };
  await cluster.createRun('cars', join(FIXTURES, 'cars.ts'), config);
  await cluster.work('cars', 'w').done;
  const { client } = cluster;
  await vi.waitFor(
    async () => {
      checkpoints = await client.checkpoints('cars');
      expect(checkpoints.map(({ kind }) => kind)).toContain('final');
    },
    { timeout: 110_000, interval: 50 },
  );
  run = await client.run('cars');
  metrics = await client.metrics('cars');
});
afterAll(async () => {
  await cluster?.close();
  rmSync(folder, { recursive: true, force: true });
});

/** @param what a run or a file. @returns where it was written. */
async function exported(
  format: ExportOptions['format'],
  { what = 'cars', to = format }: { what?: string; to?: string } = {},
): Promise<string> {
  const path = join(folder, to);
  const written: string[] = [];
  const stdout = vi.spyOn(process.stdout, 'write').mockImplementation((text) => {
    written.push(String(text));
    return true;
  });
  const options = {
    to: path,
    format,
    kind: 'best',
    server: cluster.url,
    token: 'look',
    json: true,
  } as const;
  try {
    await exportCommand(what, { ...options, state: cluster.state, stateGiven: false });
  } finally {
    stdout.mockRestore();
  }
  const { files } = JSON.parse(written.join('')) as { files: string[] };
  expect(files.map((file) => file.slice(path.length + 1)).sort()).toEqual(readdirSync(path).sort());
  return path;
}

const lastFile = () =>
  join(
    checkpointFolder(cluster.state, 'cars'),
    checkpoints.findLast(({ kind }) => kind === 'last')!.file,
  );

pythonTest(['safetensors'])('safetensors are read by their own library', async () => {
  const file = join(await exported('safetensors'), 'cars.safetensors');
  const read = await askPython<
    Record<string, { shape: number[]; dtype: string; values: number[] }>
  >(
    `
import json, sys
from safetensors.numpy import load_file
print(json.dumps({name: dict(shape=list(t.shape), dtype=str(t.dtype), values=t.flatten().tolist()) for name, t in load_file(sys.argv[1]).items()}))`,
    [file],
  );
  const { tensors } = await readTensors(file);
  expect(tensors.length).toBe(2);
  const ours = tensors.map(({ name, shape, values }) => [
    name,
    { shape: [...shape], dtype: 'float32', values: Array.from(values) },
  ]);
  expect(read).toEqual(Object.fromEntries(ours));
});

describe('an event file', () => {
  const board = pythonTest(['tensorboard']);

  board('has the curves of the run', async () => {
    const { scalars, histograms } = await readBoard(await exported('tensorboard'));
    expect(scalars['train/loss']!.map(({ step }) => step)).toEqual(metrics.training.step);
    expect(scalars['validation/loss']!.at(-1)!.value).toBe(Math.fround(run.validation!.loss!));
    expect(Object.keys(histograms).some((tag) => tag.startsWith('gradients/'))).toBe(true);
  });

  board('of a checkpoint has those up to it', async () => {
    const to = await exported('tensorboard', { what: lastFile(), to: 'of-a-file' });
    expect((await readBoard(to)).scalars['train/loss']).toHaveLength(STEPS);
  });
});

describe('JSON lines', () => {
  test('have a line a step, with what was evaluated there', async () => {
    const to = await exported('jsonl');
    const lines = readFileSync(join(to, 'history.jsonl'), 'utf8').trim().split('\n');
    const history = lines.map((line) => JSON.parse(line) as Record<string, number>);
    expect(history.map(({ _step }) => _step)).toEqual(
      Array.from({ length: STEPS }, (_, i) => i + 1),
    );
    const { training } = metrics;
    expect(history[9]).toMatchObject({
      _runtime: training.seconds[9],
      _timestamp: Date.parse(run.createdAt) / 1000 + training.seconds[9]!,
      'train/loss': training.loss[9],
      'train/learning_rate': training.learningRate[9],
    });
    const validations = history.filter((line) => line['validation/loss'] !== undefined);
    const known = metrics.evaluations.filter(({ part }) => part === 'validation');
    expect(validations.map(({ _step }) => _step)).toEqual(known.map(({ step }) => step));
    expect(history.map((line) => line._runtime!)).toEqual(
      history.map((line) => line._runtime!).sort((a, b) => a - b),
    );
    const facts = (name: string) => JSON.parse(readFileSync(join(to, name), 'utf8'));
    expect(facts('config.json')).toEqual(run.config);
    expect(facts('summary.json')).toMatchObject({
      _step: STEPS,
      'validation/loss': run.validation!.loss,
      run: { id: 'cars', phase: 'finished' },
    });
  });

  test('of a checkpoint are the same', async () => {
    const [ofRun, ofFile] = [
      await exported('jsonl', { to: 'of-the-run' }),
      await exported('jsonl', { what: lastFile(), to: 'of-the-file' }),
    ];
    const read = (to: string, name: string) => readFileSync(join(to, name), 'utf8');
    expect(read(ofFile, 'history.jsonl')).toBe(read(ofRun, 'history.jsonl'));
    expect(JSON.parse(read(ofFile, 'config.json'))).toEqual(run.config);
  });
});

pythonTest(['matplotlib'])(
  'examples/python/curve.py plots the curve in at most 40 lines',
  async () => {
    const script = join(import.meta.dirname, '../../examples/python/curve.py');
    expect(readFileSync(script, 'utf8').trim().split('\n').length).toBeLessThanOrEqual(40);
    const out = join(folder, 'curve.png');
    const env = { DOWNPOUR_TOKEN: 'look', MPLCONFIGDIR: folder };
    const args = [script, '--server', cluster.url, '--out', out];
    const { status, stdout, stderr } = await python(args, env);
    expect(status, stderr).toBe(0);
    expect(stdout).toContain(`cars: finished at step ${STEPS}, training loss ${run.trainingLoss}`);
    const { width, height, data } = PNG.sync.read(readFileSync(out));
    expect([width, height]).toEqual([640, 480]);
    // The two colours that matplotlib draws with first are on it.
    for (const [red, green, blue] of [
      [31, 119, 180],
      [255, 127, 14],
    ]) {
      let pixels = 0;
      for (let i = 0; i < data.length; i += 4) {
        if (data[i] === red && data[i + 1] === green && data[i + 2] === blue) pixels++;
      }
      expect(pixels).toBeGreaterThan(100);
    }
  },
);
