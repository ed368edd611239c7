import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { EXIT } from '../../cli/options.ts';
import { openEngine } from '../../worker/engine.ts';
import { Cluster } from '../support/cluster.ts';
import { runHere } from '../support/command.ts';

// Commands on a handful of rows: the real reason and an exit code, on real workers.

let folder: string;
let cluster: Cluster;
let studies = 0;

/** An experiment of so many rows, with targets that follow the inputs, or of so many classes. */
function write(name: string, rows: number, classCount?: number): string {
  const isClasses = classCount !== undefined;
  const text = `
const rows = ${rows};
const values = Float32Array.from({ length: 2 * rows }, (_, i) => Math.sin(1 + i));
const targets = ${isClasses ? 'Int32Array' : 'Float32Array'}.from({ length: rows }, (_, i) => ${isClasses ? `i % ${classCount}` : 'Math.sin(1 + 2 * i)'});
export default {
  data: () => ({
    train: { count: rows, inputs: { values, shape: [rows, 2] }, targets: { values: targets, shape: [rows] } },
    ${isClasses ? `classCount: ${classCount},` : ''}
    source: 'made',
  }),
  model: ({ tf, inputShape }) => tf.sequential({ layers: [tf.layers.dense({ units: ${classCount ?? 1}, inputShape })] }),
  loss: '${isClasses ? 'softmaxCrossEntropy' : 'meanSquaredError'}',
  config: { epochsMax: 2, minibatchSize: 32 },
};
`;
  const path = join(folder, `${name}.js`);
  writeFileSync(path, text);
  return path;
}

beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), 'downpour-small-'));
  write('few', 5);
  write('single', 1);
  write('alike', 40, 1);
  cluster = await Cluster.start(await openEngine({ engine: 'wasm' }));
  cluster.work('any', 'ada', { run: null, once: false, folders: [folder] });
  await cluster.joined(1);
});
afterAll(async () => {
  await cluster?.close();
  rmSync(folder, { recursive: true, force: true });
});

async function run(command: string, name: string, ...args: string[]) {
  const study = join(folder, `study-${studies++}`);
  const where = ['--server', cluster.url, '--workers', '0', '--out', study];
  const more = command === 'check' ? ['--engine', 'wasm'] : where;
  const ended = await runHere(command, join(folder, `${name}.js`), ...args, ...more);
  expect(ended.out + ended.err).not.toMatch(/DP_INTERNAL|NaN|undefined|\n {4}at /);
  return { ...ended, study };
}

describe('a study that cannot be', () => {
  test.each([
    ['folds', 'few', ['--folds', '10'], EXIT.usage, 'DP_EXPERIMENT_INVALID', /5 .*into 10 parts/],
    ['lr-find', 'single', [], EXIT.usage, 'DP_EXPERIMENT_INVALID', /1 training example /],
    [
      ...(['search', 'alike', ['--trials', '9', '--space', 'learningRate=log:0.001..1']] as const),
      ...([EXIT.failed, 'DP_DATA_LABEL', /only 1 class/] as const),
    ],
  ])('%s of %s %j ends with %i and the reason', async (command, name, args, code, error, words) => {
    const ended = await run(command, name, ...args);
    expect(ended.code).toBe(code);
    expect(ended.err).toMatch(new RegExp(`^error ${error}: none of . trials? was measured`, 'm'));
    expect(ended.err).toMatch(words);
    expect(ended.err).not.toMatch(/learning ?rate/i);
    // What is left to read says the same.
    expect(readFileSync(join(ended.study, 'report.md'), 'utf8')).toMatch(words);
    const states = async () => (await cluster.client.status()).workers.map(({ state }) => state);
    await expect.poll(states).toEqual(['idle']);
  });
});

describe('five rows', () => {
  test('are checked as far as they go', async () => {
    const { code, out } = await run('check', 'few', '--no-tiny', '--steps', '5');
    expect(code).toBe(EXIT.ok);
    expect(out).toMatch(/ok +activations +Not enough examples .*: 4, needs 8/);
    expect(out).toMatch(/Not done, because there are too few examples: activations, modes, /);
  });

  test('make a curve that claims little', async () => {
    const { code, out } = await run('curve', 'few', '--repeats', '1', '--fractions', '0.5,1');
    expect(code).toBe(EXIT.ok);
    expect(out).toContain('All this was measured on 1 validation example,');
    expect(out).toContain('Two sizes were measured');
  });
});
