import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { type InitOptions, initCommand } from '../../cli/init/init.ts';
import { patternsFor } from '../../cli/init/pretrained.ts';
import { resolveConfig } from '../../shared/config.ts';
import { gather } from '../../worker/data/gather.ts';
import { openEngine } from '../../worker/engine.ts';
import { loadExperiment } from '../../worker/experiment.ts';
import { buildModel } from '../../worker/model.ts';
import { prepareExperiment } from '../../worker/prepare.ts';
import { type LayersModel, tf } from '../../worker/tf.ts';
import {
  PHOTO_BLOCKS,
  photoModel,
  writeModel,
  writePhotos,
  writtenModel,
} from '../support/pretrained-files.ts';
import { printedBy } from '../support/written-experiments.ts';

let folder: string;
let from: string;
const CLASSES = ['cats', 'dogs', "it's"];
async function save(name: string, model: LayersModel): Promise<string> {
  mkdirSync(join(folder, name), { recursive: true });
  const path = join(folder, name, 'model.json');
  writeModel(path, await writtenModel(model, 2));
  model.dispose();
  return path;
}

beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), 'downpour-init-pretrained-'));
  await openEngine({ engine: 'wasm' });
  from = await save('net', photoModel());
  writePhotos(join(folder, 'photos'), CLASSES);
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

async function init(file: string, options: InitOptions) {
  const path = join(folder, file);
  const data = join(folder, 'photos');
  const said = await printedBy(() => initCommand(path, { data, ...options, yes: true }));
  return { path, said, source: readFileSync(path, 'utf8') };
}

/** The written experiment, its model built and at its initial parameters. */
async function built(path: string) {
  const experiment = await loadExperiment(path);
  const config = resolveConfig(experiment.config ?? {}, { seed: 1 });
  const where = { folder, log: () => {} };
  const { prepared } = await prepareExperiment('x', experiment, config, where);
  const model = await buildModel(experiment, config, prepared);
  const values = await model.initialise(1);
  model.load(values.slice());
  const roles = new Map(model.layout.tensors.map(({ name, role }) => [name, role]));
  return { config, prepared, model, roles, values };
}

describe('init --from', () => {
  test('writes an experiment that trains a new head, then the upper layers by a tenth of the rate', async () => {
    const { path, said, source } = await init('photos.ts', { from });
    expect(said).toContain("the layers up to 'block_4_relu'");
    expect(said).toContain('4 features at 12 × 12 places');
    expect(said).toContain('trains the new head for 200 steps');
    const { config, prepared, model, roles } = await built(path);
    expect(prepared.classes).toEqual(CLASSES);
    expect(prepared.train.inputs.shape.slice(1)).toEqual([12, 12, 3]);
    // At first the head alone is trained.
    const trained = [...roles].filter(([, role]) => role === 'trainable').map(([name]) => name);
    expect(trained).toEqual(['head/kernel', 'head/bias']);
    expect(model.pretrained!.taken.length).toBe(PHOTO_BLOCKS.length * 6);
    expect(model.pretrained!.fresh).toEqual(['head/kernel', 'head/bias']);
    const { groups = {} } = config;
    expect(groups.top).toMatchObject({
      pattern: ['net/block_3_conv/*', 'net/block_4_conv/*'],
      frozen: { untilStep: 200 },
      learningRate: 0.1,
    });
    expect(groups.middle).toMatchObject({
      pattern: ['net/block_1_conv/*', 'net/block_2_conv/*'],
      frozen: { untilStep: 400 },
    });
    // Batch normalisation never thaws.
    expect(groups.pretrained).toMatchObject({ pattern: ['*_norm/*'], frozen: true });
    // Early stopping waits until the last group has thawed.
    const epochSteps = Math.ceil(prepared.train.count / config.minibatchSize);
    expect(config.earlyStopping.patience * epochSteps).toBeGreaterThan(400);
    expect(config.epochsMax! * epochSteps).toBeGreaterThanOrEqual(800);
    const minibatch = gather(prepared, 'train', [0, 1, 2, 3]);
    const before = model.layout.exchangedSize;
    expect((await model.step(minibatch, 1)).gradient.length).toBe(before);
    expect(before).toBe(4 * 3 + 3);
    model.freeze(['pretrained', 'middle']);
    expect(model.layout.exchangedSize).toBe(before + 2 * (3 * 3 * 4 * 4 + 4));
    model.dispose();
    expect(source).toContain('pretrained!,');
  });

  test('takes images of another size, an earlier layer, other pixels, and JavaScript', async () => {
    const options = {
      from,
      size: 8,
      until: 'block_2_norm',
      pixels: [-1, 1] as const,
      frozen: true,
    };
    const { path, source } = await init('small.mjs', options);
    expect(source).not.toContain('groups');
    const { prepared, model, roles, values } = await built(path);
    expect(prepared.train.inputs.shape.slice(1)).toEqual([8, 8, 3]);
    expect([...roles].filter(([, role]) => role !== 'frozen').map(([name]) => name)).toEqual([
      'head/kernel',
      'head/bias',
    ]);
    // Pixels p of 0 to 1 reach the first layer as 2p − 1.
    const minibatch = gather(prepared, 'train', [0, 5]);
    const seen = await model.activations(minibatch);
    const scaled = seen.find(({ layer }) => /rescaling/i.test(layer))!;
    const raw = minibatch.inputs as Float32Array;
    for (const [i, value] of scaled.values.entries()) expect(value).toBeCloseTo(2 * raw[i]! - 1, 5);
    expect(values.length).toBe(model.layout.size);
    model.dispose();
  });

  test('with --fresh takes the layers alone and trains all of them', async () => {
    const { path } = await init('fresh.ts', { from, fresh: true });
    const { model, roles } = await built(path);
    expect(model.pretrained).toBeNull();
    expect([...roles.values()].filter((role) => role === 'frozen')).toEqual([]);
    model.dispose();
  });

  test('a model for images of any size gets the size of the pictures', async () => {
    const any = await save('any', photoModel(null));
    const { path } = await init('any.ts', { from: any });
    const { prepared, model } = await built(path);
    expect(prepared.train.inputs.shape.slice(1)).toEqual([16, 16, 3]);
    model.dispose();
  });

  test('a model that divides bytes itself gets bytes, and one without convolutions keeps its last hidden layer', async () => {
    const image = { inputShape: [6, 6, 3] };
    const bytes = tf.sequential({
      layers: [
        tf.layers.rescaling({ ...image, scale: 1 / 255, name: 'scale' } as never),
        tf.layers.flatten({ name: 'flat' }),
        tf.layers.dense({ units: 5, name: 'hidden' }),
        tf.layers.dense({ units: 4, name: 'answers' }),
      ],
    });
    const { path, said, source } = await init('bytes.ts', { from: await save('bytes', bytes) });
    expect(said).toContain("up to 'hidden'");
    expect(source).toContain('scale: 255, offset: 0');
    const { model } = await built(path);
    model.dispose();
  });

  test.each<[string, InitOptions, string]>([
    ['no model', { until: 'x' }, '--until is about a pretrained model'],
    ['two models', { from: '?', model: 'cnn' }, '--model cnn and --from are two models'],
    ['nothing trained', { from: '?', fresh: true, frozen: true }, 'would leave random layers'],
    ['no folder of images', { from: '?', data: 'mnist' }, '--from is for a folder of images'],
    ['tensors alone', { from: 'w.safetensors' }, 'needs the layers of a model'],
    ['a missing file', { from: 'lost.json' }, 'lost.json'],
    ['an unknown layer', { from: '?', until: 'block_9_relu' }, "did you mean 'block_1_relu'?"],
    ['a size too small', { from: '?', size: 3, until: 'pool' }, 'pool'],
    ['a dense layer of another size', { from: '?', size: 24, until: 'hidden' }, 'leave --size out'],
  ])('refuses %s', async (_, options, message) => {
    const given = options.from === '?' ? { ...options, from } : options;
    await expect(init('refused.ts', given)).rejects.toThrow(message);
  });

  test.each<[string, () => LayersModel, string]>([
    [
      'a table',
      () => tf.sequential({ layers: [tf.layers.dense({ units: 2, inputShape: [4] })] }),
      'takes inputs of shape [4]',
    ],
    [
      'five channels',
      () =>
        tf.sequential({
          layers: [tf.layers.conv2d({ filters: 2, kernelSize: 1, inputShape: [6, 6, 5] })],
        }),
      'images of 5 channels; allowed: 1 or 3',
    ],
    [
      'only a last layer',
      () =>
        tf.sequential({
          layers: [tf.layers.flatten({ inputShape: [6, 6, 3] }), tf.layers.dense({ units: 2 })],
        }),
      'no layer with weights before its last one',
    ],
  ])('refuses a model of %s', async (name, make, message) => {
    const path = await save(name, make());
    await expect(init('refused.ts', { from: path })).rejects.toMatchObject({
      code: 'DP_USAGE',
      message: expect.stringContaining(message),
    });
  });

  test('refuses a graph model with the way out', async () => {
    const path = join(folder, 'graph.json');
    writeFileSync(path, JSON.stringify({ format: 'graph-model', modelTopology: { node: [] } }));
    await expect(init('refused.ts', { from: path })).rejects.toThrow(
      /graph model.*tfjs_layers_model/,
    );
  });
});

test('patterns match the given names and none of the others, as few as possible', () => {
  const names = ['a_1_conv', 'a_1_norm', 'a_2_conv', 'a_2_norm', 'b_norm'];
  expect(patternsFor(names, ['head'])).toEqual(['a_*', 'b_norm/*']);
  expect(patternsFor(['a_1_norm', 'a_2_norm', 'b_norm'], ['a_1_conv', 'a_2_conv'])).toEqual([
    '*_norm/*',
  ]);
  expect(patternsFor(['a_1_conv'], ['a_1_norm', 'a_2_conv'])).toEqual(['a_1_conv/*']);
  expect(patternsFor([], ['head'])).toEqual([]);
  // One name begins with the other.
  expect(patternsFor(['a_1'], ['a_10', 'a_1_b'])).toEqual(['a_1/*']);
});
