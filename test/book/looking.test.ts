import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import type { Observations } from '../../shared/rest.ts';
import { observationsReport } from '../../study/observations.ts';
import { openEngine } from '../../worker/engine.ts';
import { Cluster, FIXTURES } from '../support/cluster.ts';
import { outputOf } from '../support/command.ts';
import { isLacking, readBoard } from '../support/python.ts';

// Deep Learning §11.5: "Visualize the model in action", "Visualize the worst mistakes", "Monitor histograms of
// activations and gradient"; §8.2.2: the norm of the gradient over time. On real digits, trained for real.

const DIGITS = join(FIXTURES, 'few-digits.ts');
let cluster: Cluster;
let out: string;
beforeAll(async () => {
  out = await mkdtemp(join(tmpdir(), 'downpour-looks-'));
  cluster = await Cluster.start(await openEngine({ engine: 'wasm' }));
});
afterAll(async () => {
  await cluster.close();
  await rm(out, { recursive: true, force: true });
});

/** Trains to the end. @returns what was sampled. */
async function train(id: string, config: object, workers = 1): Promise<Observations> {
  await cluster.createRun(id, DIGITS, { epochsMax: 4, testAtEnd: false, ...config });
  const done = Array.from({ length: workers }, (_, i) => cluster.work(id, `${id}-${i}`).done);
  await Promise.all(done);
  // The last checkpoint is written beside the news that the run has ended.
  const kinds = async () => (await cluster.client.checkpoints(id)).map(({ kind }) => kind);
  await expect.poll(kinds).toContain('final');
  return cluster.client.observations(id);
}

async function command(...args: string[]): Promise<Record<string, unknown>> {
  const server = ['--server', cluster.url, '--data', cluster.folder, '--engine', 'wasm'];
  return JSON.parse(await outputOf(...args, ...server, '--json'));
}

test('§11.5: "Visualize the worst mistakes": a label that was set wrong is among them', async () => {
  // 50 of the digits have a label of another class: the fixture says which.
  await train('mislabelled', {
    ...{ epochsMax: 12, hyperparameters: { count: 2500, mislabelled: 50 } },
  });
  const report = await command(
    ...['look', DIGITS, '--run', 'mislabelled', '--part', 'train'],
    ...['--worst', '40', '--out', join(out, 'mislabelled')],
    ...['--tensorboard', join(out, 'board')],
  );
  const worst = report.worst as { row: number; truth: string; answer: string; loss: number }[];
  expect(worst.map(({ loss }) => loss)).toEqual(
    worst.map(({ loss }) => loss).toSorted((a, b) => b - a),
  );
  const images = await readFile(join(out, 'mislabelled', 'worst.svg'), 'utf8');
  expect(images.match(/data:image\/png;base64/g)).toHaveLength(40);
  // A wrong label is the true one plus 1: the model, which has not learnt it by heart, says the true one.
  const unmasked = worst.filter(({ truth, answer }) => Number(truth) === (Number(answer) + 1) % 10);
  expect(unmasked.length).toBeGreaterThan(15);
  const confusion = report.confusion as number[][];
  expect(confusion.flat().reduce((a, b) => a + b)).toBe(2000);
  expect(report.random).toHaveLength(40);
  if (isLacking(['tensorboard'])) return;
  const board = await readBoard(join(out, 'board'));
  expect(Object.keys(board.images)).toHaveLength(80);
  const [first] = board.images['worst/0']!;
  expect(first).toMatchObject({ step: report.step, width: 28, height: 28 });
  // The same picture as on the contact sheet.
  expect(images).toContain(first!.png);
});

test('§11.5: histograms over time, "the magnitude of gradients … to the magnitude of the parameters", 1 %', async () => {
  const observe = { everySteps: 10, costMax: 1 };
  const healthy = await train('healthy', { observe, hyperparameters: { count: 1200 } });
  const fast = await train('fast', {
    ...{ observe, learningRate: 1, hyperparameters: { count: 1200 } },
  });
  const ratio = ({ samples }: Observations) => {
    const all = samples.map(({ tensors }) => tensors[0]!.updateRatio!).sort((a, b) => a - b);
    return all[all.length >> 1]!;
  };
  // One update of a hidden layer that learns well moves it by 0.1 % to 1 %.
  expect(ratio(healthy)).toBeGreaterThan(0.0005);
  expect(ratio(healthy)).toBeLessThan(0.02);
  expect(ratio(fast)).toBeGreaterThan(3 * ratio(healthy));
  expect(observationsReport(healthy).advice).toContain('One update moved');
  for (const { tensors, layers } of healthy.samples) {
    expect(tensors.map(({ name }) => name)).toEqual([
      'dense_1/kernel',
      'dense_1/bias',
      'dense_2/kernel',
      'dense_2/bias',
    ]);
    for (const { weights, gradients, updates, elements } of tensors) {
      for (const { counts } of [weights, gradients, updates!]) {
        expect(counts.reduce((a, b) => a + b)).toBe(elements);
      }
    }
    expect(layers.map(({ layer }) => layer)).toEqual(['dense_1', 'dense_2']);
  }
  // It learns: the gradient shrinks (§8.2.2 asks for this plot where training stands still).
  const norms = healthy.samples.map(({ tensors }) => tensors[2]!.gradientNorm);
  expect(norms.at(-1)!).toBeLessThan(norms[0]!);
});

test('§11.5: "some parameters may be very rarely updated": pixels of the border are always blank', async () => {
  const observed = await train('sparse', {
    ...{ observe: { everySteps: 10, costMax: 1 }, hyperparameters: { count: 1200 } },
  });
  const [kernel] = observed.samples.at(-1)!.tensors;
  // About a tenth of MNIST's pixels are blank in all images, more in those few that were sampled.
  expect(kernel!.never / kernel!.elements).toBeGreaterThan(0.08);
  expect(kernel!.never / kernel!.elements).toBeLessThan(0.5);
  expect(observationsReport(observed).advice).toContain('dense_1/kernel');
  const { updateRatio } = observed.samples[0]!.tensors[0]!;
  expect(updateRatio).toBeGreaterThan(0);
});

test('samples cost no more than their share, are told with it, and survive the server', async () => {
  const config = { observe: { everySteps: 1, costMax: 0.05 }, hyperparameters: { count: 3000 } };
  const observed = await train('bounded', { ...config, epochsMax: 6 }, 2);
  // Each of 450 updates would be sampled; the bound lets few through. The first ones, which measure what a
  // sample costs, are free of it: on so short a run they count.
  const { share, samples } = observed.cost;
  expect(samples).toBeGreaterThan(1);
  expect(samples).toBeLessThan(150);
  expect(share).toBeGreaterThan(0);
  expect(share).toBeLessThan(0.5);
  await cluster.stopServer();
  await cluster.serve();
  expect(await cluster.client.observations('bounded')).toEqual(observed);
  await command('look', DIGITS, '--run', 'bounded', '--out', join(out, 'bounded'));
  const drawn = await readFile(join(out, 'bounded', 'weights.svg'), 'utf8');
  expect(drawn).toContain('dense_1/kernel');
});
