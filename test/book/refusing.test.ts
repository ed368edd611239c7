import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { openEngine } from '../../worker/engine.ts';
import { Cluster, FIXTURES } from '../support/cluster.ts';
import { outputOf } from '../support/command.ts';

// Deep Learning §11.1: "a natural performance metric to use in this situation is coverage … the fraction of
// examples for which the machine learning system is able to produce a response. It is possible to trade coverage
// for accuracy." On real digits.

const DIGITS = join(FIXTURES, 'few-digits.ts');
let cluster: Cluster;
let out: string;
beforeAll(async () => {
  out = await mkdtemp(join(tmpdir(), 'downpour-refusals-'));
  cluster = await Cluster.start(await openEngine({ engine: 'wasm' }));
});
afterAll(async () => {
  await cluster.close();
  await rm(out, { recursive: true, force: true });
});

test('§11.1: "It is possible to trade coverage for accuracy", and the confidence becomes honest', async () => {
  await cluster.createRun('over', DIGITS, {
    // Learnt by heart, the model is far too sure: its only evaluation is at the end.
    ...{ epochsMax: 60, evaluateEverySteps: 10_000, learningRate: 0.3, testAtEnd: false },
    ...{ validationFraction: 0.8, hyperparameters: { count: 2000, units: 64 } },
  });
  await cluster.work('over', 'worker').done;
  const { step } = await cluster.client.run('over');
  await expect
    .poll(() => cluster.client.checkpoints('over'))
    .toContainEqual(expect.objectContaining({ kind: 'best', step }));
  const args = ['--server', cluster.url, '--data', cluster.folder, '--engine', 'wasm', '--json'];
  const what = ['--accuracy', '0.93,1', '--coverage', '0.8', '--out', out];
  const report = JSON.parse(await outputOf('refuse', DIGITS, ...args, ...what));
  const { all, choices, calibrationError, temperature } = report;
  const [accurate, , covering] = choices;
  // Chosen on one half, kept on the other: the promise holds within the width of its interval.
  expect(accurate.high).toBeGreaterThan(0.93);
  expect(accurate.accuracy).toBeGreaterThan(all.accuracy + 0.02);
  expect(accurate.coverage).toBeGreaterThan(0.4);
  expect(accurate.coverage).toBeLessThan(0.99);
  expect(covering.coverage).toBeCloseTo(0.8, 1);
  expect(covering.accuracy).toBeGreaterThan(all.accuracy + 0.02);
  expect(temperature).toBeGreaterThan(1.2);
  expect(calibrationError.after).toBeLessThan(calibrationError.before / 2);
  expect(await readFile(join(out, 'coverage.svg'), 'utf8')).toContain('coverage');
  expect(await readFile(join(out, 'report.md'), 'utf8')).toContain('Deep Learning §11.1');
});
