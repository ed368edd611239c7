import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { initCommand } from '../../cli/init/init.ts';
import { exportCommand } from '../../cli/trained/export.ts';
import { predictCommand } from '../../cli/trained/predict.ts';
import { checkpointFolder } from '../../files/checkpoint.ts';
import { resolveConfig } from '../../shared/config.ts';
import { type Engine, openEngine } from '../../worker/engine.ts';
import { loadExperiment } from '../../worker/experiment.ts';
import { tf } from '../../worker/tf.ts';
import { Cluster } from '../support/cluster.ts';
import { photoModel, writeModel, writePhotos, writtenModel } from '../support/pretrained-files.ts';
import { until } from '../support/until.ts';
import { printedBy } from '../support/written-experiments.ts';

// From `init --from` to predictions, with no line written by hand; at the end the pretrained file is gone.

const CLASSES = ['cats', 'dogs'];
const STEPS = 12;

const folder = mkdtempSync(join(tmpdir(), 'downpour-pretrained-'));
const model = join(folder, 'net', 'model.json');
const photos = join(folder, 'photos');
const file = join(folder, 'photos.ts');
let engine: Engine;
let cluster: Cluster;
beforeAll(async () => {
  engine = await openEngine({ engine: 'wasm' });
  cluster = await Cluster.start(engine);
  mkdirSync(join(folder, 'net'));
  writeModel(model, await writtenModel(photoModel()));
  writePhotos(photos, CLASSES);
  await printedBy(() => initCommand(file, { from: model, data: photos, size: 6, yes: true }));
});
afterAll(async () => {
  await cluster?.close();
  rmSync(folder, { recursive: true });
});

test('init, train, thaw, predict and export; without the pretrained file from then on', async () => {
  const { config = {} } = await loadExperiment(file);
  const { groups = {} } = resolveConfig(config);
  // As written, but with few steps.
  const top = { ...groups.top!, frozen: { untilStep: STEPS / 2 } };
  const { middle: _, ...others } = groups;
  const still = { ...others.pretrained!, pattern: ['net/block_1*', 'net/block_2*', '*_norm/*'] };
  await cluster.createRun('photos', file, {
    ...config,
    ...{ stepsMax: STEPS, evaluateEverySteps: STEPS, minibatchSize: 4 },
    groups: { top, pretrained: still },
  });
  const lines: string[] = [];
  const log = (line: string) => void lines.push(line);
  await cluster.work('photos', 'worker', { folders: [folder], log }).done;
  expect(lines.join('\n')).toMatch(/24 tensors from .*model\.json; 2 begin fresh: head\/kernel/);
  expect(await cluster.client.run('photos')).toMatchObject({ phase: 'finished', step: STEPS });
  await until('the last checkpoint is written', async () =>
    (await cluster.client.checkpoints('photos')).some(({ kind }) => kind === 'final'),
  );
  await cluster.stopServer();
  rmSync(join(folder, 'net'), { recursive: true });

  const checkpoints = checkpointFolder(cluster.state, 'photos');
  const final = readdirSync(checkpoints).find((name) => /final.*safetensors$/.test(name))!;
  const where = { ...{ state: cluster.state, stateGiven: true }, experiments: [folder] };
  const told = await printedBy(() =>
    predictCommand(join(checkpoints, final), [photos], { ...where, engine: 'wasm', json: true }),
  );
  const answers = told
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line) as { probabilities: Record<string, number> });
  expect(answers.length).toBe(20);
  const to = join(folder, 'exported');
  await printedBy(() =>
    exportCommand(join(checkpoints, final), { ...where, to, format: 'tfjs', json: true }),
  );
  // Plain TensorFlow.js opens what was exported, and answers alike.
  const json = JSON.parse(readFileSync(join(to, 'model.json'), 'utf8'));
  const { buffer } = new Uint8Array(readFileSync(join(to, 'weights.bin')));
  const exported = await tf.loadLayersModel(
    tf.io.fromMemory({
      modelTopology: json.modelTopology,
      weightSpecs: json.weightsManifest[0].weights,
      weightData: buffer,
    }),
  );
  expect(exported.countParams()).toBeGreaterThan(100);
  // A picture of one colour stays so, whatever its size.
  const [red, green, blue] = [0, 9, 200].map((byte) => byte / 255) as [number, number, number];
  const picture = tf.tile(tf.tensor4d([red, green, blue], [1, 1, 1, 3]), [1, 6, 6, 1]);
  const logits = exported.predict(picture) as ReturnType<typeof tf.tensor>;
  const expected = await tf.softmax(logits).data();
  const first = Object.values(answers[0]!.probabilities);
  for (const [i, value] of first.entries()) expect(value).toBeCloseTo(expected[i]!, 4);
  exported.dispose();
});
