import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { FIXTURES } from '../support/cluster.ts';
import { ROOT } from '../support/deployment.ts';
import {
  Newcomer,
  newcomerFollowsThePage,
  newcomerTrains,
  OTHER_NODES,
} from '../support/newcomer.ts';

// What somebody does who has just cloned the project: all its processes and threads run the sources. package.test.ts has who installs it, with other lines of Node.js.

let newcomer: Newcomer;
beforeAll(() => {
  const folder = mkdtempSync(join(tmpdir(), 'downpour-newcomer-'));
  newcomer = new Newcomer({ folder, program: join(ROOT, 'bin/downpour.js') });
});
afterAll(async () => {
  await newcomer.kill();
  rmSync(newcomer.folder, { recursive: true, force: true });
});

const EXAMPLE = join(ROOT, 'examples/mnist-mlp.ts');
const downpour = (...args: string[]) => newcomer.downpour(...args);

describe('a newcomer', () => newcomerTrains(() => ({ newcomer, experiment: EXAMPLE })));

describe('a newcomer who errs', () => {
  test('in the name of the experiment is told so, with exit code 2', async () => {
    const training = downpour('train', 'examples/mnist-mpl.ts');
    expect(await training.code).toBe(2);
    expect(training.text()).toContain('error DP_EXPERIMENT_UNKNOWN');
  });

  test('in a field of the configuration is told the right one, with exit code 2', async () => {
    const training = downpour('train', EXAMPLE, '--set', 'learningrate=1');
    expect(await training.code).toBe(2);
    expect(training.text()).toContain("did you mean 'learningRate'?");
  });

  test('in the engine: no worker is started again and again, the command ends', async () => {
    const training = downpour('train', EXAMPLE, '--port', '0', '--engine', 'wsam');
    expect(await training.code).toBe(2);
    expect(training.text()).toContain("there is no engine 'wsam'");
  });

  test('and whose training diverges gets exit code 4 and the reason', async () => {
    const { folder } = newcomer;
    // In a folder without package.json, whose modules Node would take for CommonJS.
    writeFileSync(join(folder, 'diverging.ts'), DIVERGING);
    writeFileSync(join(folder, 'rate.ts'), 'export const learningRate: number = 1000;');
    const training = downpour('train', 'diverging.ts', '--workers', '1', '--port', '0');
    expect(await training.code, training.text()).toBe(4);
    expect(training.text()).toMatch(/error DP_(RUN_FAILED|DIVERGED)/);
  });
});

// Where there are other lines of Node.js, a user of the installed package follows the page with one of them.
if (OTHER_NODES.length === 0) newcomerFollowsThePage(() => newcomer);

test('npm start passes its arguments on and prints the result', async () => {
  const npmStart = newcomer.start(join(ROOT, 'scripts/start.js'), [
    ...['--epochs', '1', '--port', '0', '--state', join(newcomer.folder, 'npm-start')],
  ]);
  expect(await npmStart.code, npmStart.text()).toBe(0);
  for (const part of [/test: error .* accuracy/, /final checkpoint: .*safetensors/, /export/]) {
    expect(npmStart.text()).toMatch(part);
  }
  const files = /final checkpoint: (\S+)/.exec(npmStart.text())!;
  expect(existsSync(join(ROOT, files[1]!))).toBe(true);
});

test('a server of a checkout has its shards in threads and the page that browsers train with', async () => {
  const args = [
    '--port',
    '0',
    '--json',
    '--shards',
    '2',
    '--join',
    join(FIXTURES, 'few-digits.ts'),
  ];
  const serving = downpour('serve', ...args, '--state', 'shards');
  const { url } = await serving.until(({ event }) => event === 'listening');
  // By its other stream.
  await expect.poll(serving.text).toMatch(/2 shards.*127\.0\.0\.1:\d+/);
  for (const path of ['/join', '/join/files/worker.js', '/join/files/few-digits.data']) {
    expect((await fetch(url + path)).status, path).toBe(200);
  }
  serving.child.kill('SIGTERM');
  expect(await serving.code, serving.text()).toBe(0);
});

const DIVERGING = `
import { defineExperiment } from 'downpour';
import { learningRate } from './rate.ts';
const numbers = Float32Array.from({ length: 64 }, (_, i) => i);
export default defineExperiment({
  data: () => ({
    train: {
      count: 64,
      inputs: { values: numbers, shape: [64, 1] },
      targets: { values: numbers, shape: [64] },
    },
    source: '64 numbers',
  }),
  model: ({ tf, inputShape }) =>
    tf.sequential({ layers: [tf.layers.dense({ inputShape, units: 1 })] }),
  loss: 'meanSquaredError',
  config: { learningRate, minibatchSize: 8 },
});
`;
