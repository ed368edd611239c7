import '@tensorflow/tfjs-backend-cpu';
import { createHash, randomBytes } from 'node:crypto';
import { mkdtempSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { resolveConfig } from '../../shared/config.ts';
import { LIMITS } from '../../shared/limits.ts';
import { encodeSafetensorsHeader } from '../../shared/safetensors.ts';
import { gather } from '../../worker/data/gather.ts';
import { dataOf } from '../../worker/data/given.ts';
import { prepareData } from '../../worker/data/prepare-data.ts';
import { type Experiment, mustBeExperiment } from '../../worker/experiment.ts';
import { buildModel, type Model } from '../../worker/model.ts';
import { prepareOptions } from '../../worker/prepare.ts';
import { openPretrained, packArchitecture } from '../../worker/pretrained/open.ts';
import { matchText, type Pretrained } from '../../worker/pretrained/pretrained.ts';
import { type LayersModel, type Tensor, tf } from '../../worker/tf.ts';
import {
  type ModelJson,
  type WrittenModel,
  writeModel,
  writtenModel,
} from '../support/pretrained-files.ts';

let folder: string;
let file: string;
const models: Model[] = [];
beforeEach(async () => {
  folder = mkdtempSync(join(tmpdir(), 'downpour-'));
  file = join(folder, 'model.json');
  await tf.setBackend('cpu');
});
afterEach(() => {
  for (const model of models.splice(0)) model.dispose();
  rmSync(folder, { recursive: true });
});

/** A trunk with every kind of weight, and a head for ten classes. */
const original = (name = 'origin') =>
  tf.sequential({
    name,
    layers: [
      tf.layers.dense({ name: 'trunk', units: 4, inputShape: [3], activation: 'tanh' }),
      tf.layers.batchNormalization({ name: 'norm' }),
      tf.layers.dense({ name: 'head', units: 10 }),
    ],
  });

/** Values of its own for each weight; moving averages unlike those of a new layer. */
function withValues(model: LayersModel): LayersModel {
  let k = 0;
  for (const weight of model.weights) {
    const size = weight.shape.reduce<number>((product, d) => product * d!, 1);
    const values = Float32Array.from({ length: size }, () => 0.1 + Math.abs(Math.sin(++k)) / 2);
    weight.write(tf.tensor(values, weight.shape as number[]));
  }
  return model;
}

/** @returns the hash that the experiment needs. */
const write = (files: WrittenModel) => writeModel(file, files);

const inputs = {
  values: Float32Array.from({ length: 60 }, (_, i) => Math.sin(i) + (i % 3)),
  shape: [20, 3],
};

/** Five classes, so the head of the file does not fit. */
const experimentWith = (pretrained: Omit<Pretrained, 'from'> & { from?: string }): Experiment => ({
  data: () => ({
    train: {
      inputs,
      targets: { values: Int32Array.from({ length: 20 }, (_, i) => i % 5), shape: [20] },
    },
    classCount: 5,
  }),
  model: ({ tf, classCount }) =>
    tf.sequential({
      layers: [
        tf.layers.dense({ name: 'trunk', units: 4, inputShape: [3], activation: 'tanh' }),
        tf.layers.batchNormalization({ name: 'norm' }),
        tf.layers.dense({ name: 'head', units: classCount }),
      ],
    }),
  loss: 'softmaxCrossEntropy',
  pretrained: { from: 'model.json', ...pretrained },
});

async function build(given: Experiment) {
  const experiment = mustBeExperiment(given, join(folder, 'experiment.ts'));
  const config = resolveConfig(experiment.config ?? {}, { seed: 3, minibatchSize: 5 });
  const prepared = prepareData(
    dataOf(await experiment.data({} as never)),
    prepareOptions(experiment, config),
  );
  const model = await buildModel(experiment, config, prepared);
  models.push(model);
  const values = await model.initialise(3);
  const tensor = (name: string) => {
    const { offset, size } = model.layout.tensors.find((each) => each.name === name)!;
    return [...values.slice(offset, offset + size)];
  };
  return { model, tensor, values, prepared, experiment, config };
}

const valuesOf = (model: LayersModel, name: string) => {
  const weight = model.weights.find(({ originalName }) => originalName === name)!;
  return [...weight.read().dataSync()];
};

describe('pretrained', () => {
  test('initial parameters come from a model of several files, and what fits nowhere is said', async () => {
    const model = withValues(original());
    const sha256 = write(await writtenModel(model, 3));
    const built = await build(experimentWith({ sha256 }));
    for (const name of ['trunk/kernel', 'trunk/bias', 'norm/gamma', 'norm/moving_variance']) {
      expect(built.tensor(name)).toEqual(valuesOf(model, name));
    }
    const { taken, fresh, unused } = built.model.pretrained!;
    expect(taken.length).toBe(6);
    expect(fresh).toEqual([
      'head/kernel (shape [4,5], in the file [4,10])',
      'head/bias (shape [5], in the file [10])',
    ]);
    expect(unused).toEqual([]);
    expect(matchText(built.model.pretrained!, 'model.json')).toContain(
      '6 tensors from model.json; 2 begin fresh: head/kernel (shape',
    );
    // Another seed, as another attempt has it, changes what is fresh and nothing else.
    const other = await built.model.initialise(4);
    const { offset, size } = built.model.layout.tensors.find((t) => t.name === 'trunk/kernel')!;
    expect([...other.slice(offset, offset + size)]).toEqual(valuesOf(model, 'trunk/kernel'));
    expect(other).not.toEqual(built.values);
  });

  test('frozen parameters take no part in pushes, and their averages are used and stay', async () => {
    const model = withValues(original());
    const sha256 = write(await writtenModel(model));
    const freeze = ['trunk/*', 'norm/*'];
    const { model: built, prepared } = await build(experimentWith({ sha256, freeze }));
    const { layout } = built;
    expect(layout.tensors.filter(({ role }) => role === 'frozen').length).toBe(6);
    // The head alone: no byte of a frozen parameter is pushed.
    expect(layout.exchangedSize).toBe(4 * 5 + 5);
    const whole = (await built.initialise(3)).slice();
    built.load(whole);
    for (let step = 0; step < 3; step++) {
      const minibatch = gather(prepared, 'train', [0, 1, 2, 3, step + 4]);
      const { gradient, loss } = await built.step(minibatch, step);
      expect(gradient.length).toBe(layout.exchangedSize);
      expect(loss).toBeCloseTo((await built.measure(minibatch)).loss, 5);
    }
    // Its outputs are those of the file's own model, so its moving statistics are.
    const minibatch = gather(prepared, 'train', [0, 1, 2, 3, 4]);
    const norm = (await built.activations(minibatch)).find(({ layer }) => layer === 'norm')!;
    const part = tf.model({ inputs: model.inputs, outputs: model.layers[1]!.output as never });
    const rows = tf.tensor(minibatch.inputs as Float32Array, [5, 3]);
    const expected = (part.predict(rows) as Tensor).dataSync();
    for (const [i, value] of norm.values.entries()) expect(value).toBeCloseTo(expected[i]!, 5);
  });

  test('model() gets the model of the file, to replace its head', async () => {
    const model = withValues(original());
    const sha256 = write(await writtenModel(model));
    const given: Experiment = {
      ...experimentWith({ sha256, freeze: ['trunk/*', 'norm/*'] }),
      model: ({ tf, classCount, pretrained }) => {
        const trunk = pretrained!.getLayer('norm').output as never;
        const head = tf.layers.dense({ name: 'new_head', units: classCount });
        return tf.model({ inputs: pretrained!.inputs, outputs: head.apply(trunk) as never });
      },
    };
    const tensors = () => tf.memory().numTensors;
    const built = await build(given);
    expect(built.tensor('trunk/kernel')).toEqual(valuesOf(model, 'trunk/kernel'));
    expect(built.model.pretrained!.fresh).toEqual(['new_head/kernel', 'new_head/bias']);
    expect(built.model.pretrained!.unused).toEqual(['head/kernel', 'head/bias']);
    // The old head goes with each build.
    const before = tensors();
    await built.model.initialise(5);
    expect(tensors()).toBe(before);
  });

  test('fresh: true takes the architecture alone', async () => {
    const sha256 = write(await writtenModel(withValues(original())));
    const given: Experiment = {
      ...experimentWith({ sha256, fresh: true }),
      model: ({ pretrained }) =>
        tf.sequential({ layers: [pretrained!, tf.layers.dense({ units: 5 })] }),
    };
    const built = await build(given);
    expect(built.model.pretrained).toBeNull();
    expect(built.tensor('origin/trunk/bias')).toEqual([0, 0, 0, 0]);
    const again = await build(given);
    expect(again.values).toEqual(built.values);
  });

  test('safetensors with elements of half the size, and with whole numbers', async () => {
    // 1, −2, the smallest and the largest half, and thirds as far as each type has them.
    const halves = Uint16Array.of(0x3c00, 0xc000, 0x0001, 0x7bff);
    const brains = Uint16Array.of(0x3f80, 0xc000, 0x0001, 0x3eab);
    const parts = [
      ['a', 'F16', halves, [1, -2, 2 ** -24, 65_504]],
      ['b', 'BF16', brains, [1, -2, 2 ** -133, 0.333984375]],
      ['c', 'I8', Int8Array.of(-128, 127, 0, 3), [-128, 127, 0, 3]],
      ['d', 'I16', Int16Array.of(-32_768, 7, 0, 1), [-32_768, 7, 0, 1]],
      ['e', 'BOOL', Uint8Array.of(1, 0, 1, 1), [1, 0, 1, 1]],
      ['f', 'I64', BigInt64Array.of(3n, -4n, 2n ** 40n, 0n), [3, -4, 2 ** 40, 0]],
    ] as const;
    const header = encodeSafetensorsHeader(
      parts.map(([name, dtype, { byteLength }]) => ({ name, dtype, shape: [4], byteLength })),
    );
    const bytes = Buffer.concat([
      header,
      ...parts.map(([, , { buffer }]) => new Uint8Array(buffer)),
    ]);
    const path = join(folder, 'w.safetensors');
    writeFileSync(path, bytes);
    const sha256 = createHash('sha256').update(bytes).digest('hex');
    const { tensors } = await openPretrained(path, { sha256 });
    for (const [name, , , values] of parts) {
      expect([...tensors.get(name)!.values]).toEqual(values);
    }
    // An infinite half is no parameter.
    halves[2] = 0x7c00;
    const infinite = Buffer.concat([
      header,
      ...parts.map(([, , { buffer }]) => new Uint8Array(buffer)),
    ]);
    writeFileSync(path, infinite);
    const other = createHash('sha256').update(infinite).digest('hex');
    await expect(openPretrained(path, { sha256: other })).rejects.toThrow(
      'element 2 of tensor "a" is Infinity',
    );
  });

  test('a model for a checkpoint needs the layers alone, which the run keeps', async () => {
    const saved = withValues(original());
    const sha256 = write(await writtenModel(saved));
    const until = 'norm';
    const given: Experiment = {
      ...experimentWith({ sha256, until }),
      model: ({ pretrained }) =>
        tf.sequential({ layers: [pretrained!, tf.layers.dense({ units: 5 })] }),
    };
    const { model, values, prepared, experiment, config } = await build(given);
    const { architecture } = model;
    rmSync(file);
    const again = await buildModel(experiment, config, prepared, {
      later: { architecture: architecture! },
    });
    models.push(again);
    expect(again.layout).toEqual(model.layout);
    model.load(values.slice());
    again.load(values.slice());
    const minibatch = gather(prepared, 'train', [0, 1, 2]);
    expect((await again.predict(minibatch)).values).toEqual(
      (await model.predict(minibatch)).values,
    );
    // A run of an older release has not kept them.
    await expect(buildModel(experiment, config, prepared, { later: {} })).rejects.toMatchObject({
      code: 'DP_DATA_MISSING',
      message: expect.stringContaining('The layers of the model are in this file'),
    });
    const later = { architecture: Buffer.from('nothing').toString('base64') };
    await expect(buildModel(experiment, config, prepared, { later })).rejects.toMatchObject({
      code: 'DP_CHECKPOINT_CORRUPT',
    });
    // Layers whose text is too long, even compressed, are not kept.
    const random = randomBytes(LIMITS.keptArchitectureBytesMax).toString('base64');
    const most = Math.floor(LIMITS.keptArchitectureBytesMax / 4) * 3;
    expect(packArchitecture({ random })).toBeNull();
    expect(packArchitecture({ random: random.slice(0, most / 2) })).not.toBeNull();
  });

  test('safetensors, with names that differ', async () => {
    const kernel = Float32Array.from({ length: 12 }, (_, i) => i / 7);
    const bias = Float64Array.from({ length: 4 }, (_, i) => i / 3);
    const header = encodeSafetensorsHeader([
      { name: 'encoder.0/kernel', shape: [3, 4], byteLength: 48 },
      { name: 'offset', dtype: 'F64', shape: [4], byteLength: 32 },
    ]);
    const bytes = Buffer.concat([
      header,
      new Uint8Array(kernel.buffer),
      new Uint8Array(bias.buffer),
    ]);
    writeFileSync(join(folder, 'w.safetensors'), bytes);
    const sha256 = createHash('sha256').update(bytes).digest('hex');
    const from = 'w.safetensors';
    const map = { trunk: 'encoder.0', 'trunk/bias': 'offset' };
    const { tensor } = await build(experimentWith({ from, sha256, map }));
    expect(tensor('trunk/kernel')).toEqual([...kernel]);
    expect(tensor('trunk/bias')).toEqual([...Float32Array.from(bias)]);

    const failing = (changes: Partial<Pretrained>) =>
      build(experimentWith({ from, sha256, map, ...changes }));
    await expect(failing({ map: { trunks: 'encoder.0' } })).rejects.toThrow(
      "pretrained.map has 'trunks', and the model has no tensor and no layer of this name; did you mean 'trunk'?",
    );
    await expect(failing({ map: {} })).rejects.toThrow('no tensor of the model has values in');
    await expect(failing({ freeze: ['norm/*'] })).rejects.toThrow(
      "pretrained.freeze names 'norm/gamma', which has no values in",
    );
  });

  test('quantised weights', async () => {
    const model = withValues(original());
    const { json } = await writtenModel(model);
    const [{ weights }] = json.weightsManifest as [ModelJson['weightsManifest'][0]];
    const types = ['uint8', 'uint16', 'float16', 'uint8', 'uint16', 'float16', 'uint8', 'uint8'];
    const halves: Record<string, number> = { 0.5: 0x3800, 1: 0x3c00, '-2': 0xc000 };
    const expected = new Map<string, number[]>();
    const parts = weights.map((spec, i) => {
      const size = spec.shape.reduce((product, d) => product * d, 1);
      const dtype = types[i] as 'uint8';
      const isHalf = types[i] === 'float16';
      Object.assign(spec, { quantization: isHalf ? { dtype } : { dtype, min: -1, scale: 0.25 } });
      const codes = Array.from({ length: size }, (_, k) =>
        isHalf ? Object.values(halves)[k % 3]! : (k * 37) % 200,
      );
      const toNumber = (code: number) =>
        isHalf ? Number(Object.entries(halves).find(([, c]) => c === code)![0]) : code / 4 - 1;
      expected.set(spec.name, codes.map(toNumber));
      return types[i] === 'uint8'
        ? Uint8Array.from(codes)
        : new Uint8Array(Uint16Array.from(codes).buffer);
    });
    const sha256 = write({ json, shards: [new Uint8Array(Buffer.concat(parts))] });
    const { tensors } = await openPretrained(file, { sha256 });
    expect(tensors.size).toBe(8);
    for (const [name, values] of expected) expect([...tensors.get(name)!.values]).toEqual(values);
  });

  test("Keras 3's way of writing a model", async () => {
    const model = withValues(original());
    const { json, shards } = await writtenModel(model);
    const tensor = (layer: string) => ({
      class_name: '__keras_tensor__',
      config: { shape: [null, 4], dtype: 'float32', keras_history: [layer, 0, 0] },
    });
    const dtype = {
      ...{ module: 'keras', class_name: 'DTypePolicy', registered_name: null },
      config: { name: 'float32' },
    };
    const layer = (class_name: string, config: object, from?: string) => ({
      ...{ module: 'keras.layers', class_name, registered_name: null },
      name: (config as { name: string }).name,
      config: { ...config, dtype, trainable: true },
      inbound_nodes: from ? [{ args: [tensor(from)], kwargs: { training: false } }] : [],
    });
    const modelTopology = {
      keras_version: '3.5.0',
      model_config: {
        class_name: 'Functional',
        config: {
          name: 'origin',
          layers: [
            layer('InputLayer', { name: 'input', batch_shape: [null, 3], sparse: false }),
            layer('Dense', { name: 'trunk', units: 4, activation: 'tanh' }, 'input'),
            layer('BatchNormalization', { name: 'norm', axis: -1, synchronized: false }, 'trunk'),
            layer('Dense', { name: 'head', units: 10 }, 'norm'),
          ],
          input_layers: ['input', 0, 0],
          output_layers: ['head', 0, 0],
        },
      },
    };
    for (const { weights } of json.weightsManifest) {
      for (const spec of weights) Object.assign(spec, { name: `origin/${spec.name}` });
    }
    const sha256 = write({ json: { ...json, modelTopology }, shards });
    let answers: number[] = [];
    const x = tf.tensor(inputs.values.slice(0, 6), [2, 3]);
    const given: Experiment = {
      ...experimentWith({ sha256 }),
      model: ({ tf, pretrained }) => {
        answers = [...(pretrained!.predict(x) as Tensor).dataSync()];
        const head = tf.layers.dense({ name: 'new_head', units: 5 });
        return tf.model({
          inputs: pretrained!.inputs,
          outputs: head.apply(pretrained!.outputs[0]!) as never,
        });
      },
    };
    await build(given);
    const expected = (model.predict(x) as Tensor).dataSync();
    expect(answers.length).toBe(20);
    for (const [i, value] of expected.entries()) expect(answers[i]).toBeCloseTo(value, 4);
  });
});

describe('a file that cannot be used', () => {
  const spec = (json: ModelJson) => json.weightsManifest[0]!.weights[0]!;
  const topology = (json: ModelJson) => json.modelTopology as { config: { layers: object[] } };
  /** What is changed, the code, and words of the message. */
  const cases: [
    string,
    (written: { json: ModelJson; shards: Uint8Array[] }) => unknown,
    string,
    string,
  ][] = [
    [
      'a graph model',
      ({ json }) => Object.assign(json, { format: 'graph-model' }),
      ...(['DP_EXPERIMENT_INVALID', 'is a graph model'] as const),
    ],
    [
      'a graph model that does not say so',
      ({ json }) => Object.assign(json, { format: undefined, modelTopology: { node: [] } }),
      ...(['DP_EXPERIMENT_INVALID', 'tensorflowjs_converter'] as const),
    ],
    [
      'no manifest',
      ({ json }) => Object.assign(json, { weightsManifest: [] }),
      ...(['DP_DATA_CORRUPT', 'no list weightsManifest'] as const),
    ],
    [
      'no topology',
      ({ json }) => Object.assign(json, { modelTopology: {} }),
      ...(['DP_DATA_CORRUPT', 'no modelTopology with class_name'] as const),
    ],
    [
      'weights cut off',
      ({ shards }) => shards.splice(0, 1, shards[0]!.slice(0, -1)),
      ...(['DP_DATA_CORRUPT', 'its tensors take 328 bytes'] as const),
    ],
    [
      'weights that are too long',
      ({ shards }) => shards.splice(0, 1, new Uint8Array(999)),
      ...(['DP_DATA_CORRUPT', 'which has 999'] as const),
    ],
    [
      'a shape that lies',
      ({ json }) => Object.assign(spec(json), { shape: [4, 3] }),
      ...([
        'DP_DATA_CORRUPT',
        "'trunk/kernel' of shape [3,4], and its weights have it of shape [4,3]",
      ] as const),
    ],
    [
      'a shape that is none',
      ({ json }) => Object.assign(spec(json), { shape: [-3, 4] }),
      ...(['DP_DATA_CORRUPT', 'has the shape'] as const),
    ],
    [
      'an unknown type',
      ({ json }) => Object.assign(spec(json), { dtype: 'complex64' }),
      ...(['DP_DATA_CORRUPT', 'is "complex64"; read are float32'] as const),
    ],
    [
      'an unknown quantisation',
      ({ json }) => Object.assign(spec(json), { quantization: { dtype: 'int4' } }),
      ...(['DP_DATA_CORRUPT', 'is "int4"; read are uint8'] as const),
    ],
    [
      'quantisation without a scale',
      ({ json }) => Object.assign(spec(json), { quantization: { dtype: 'uint8', min: 1 } }),
      ...(['DP_DATA_CORRUPT', 'without numbers min and scale'] as const),
    ],
    [
      'a tensor twice',
      ({ json }) => Object.assign(spec(json), { name: 'trunk/bias' }),
      ...(['DP_DATA_CORRUPT', 'two tensors "trunk/bias"'] as const),
    ],
    [
      'a tensor of another name',
      ({ json }) => Object.assign(spec(json), { name: 'other/kernel' }),
      ...(['DP_DATA_CORRUPT', 'not at all'] as const),
    ],
    [
      'not a number',
      ({ shards }) => new DataView(shards[0]!.buffer).setFloat32(8, Number.NaN, true),
      ...(['DP_DATA_CORRUPT', 'element 2 of tensor "trunk/kernel" is NaN'] as const),
    ],
    [
      'an unknown layer',
      ({ json }) => Object.assign(topology(json).config.layers[0]!, { class_name: 'Strange' }),
      ...(['DP_EXPERIMENT_INVALID', 'class Strange, which TensorFlow.js does not have'] as const),
    ],
    [
      'no list of layers',
      ({ json }) => Object.assign(topology(json), { config: { name: 'empty' } }),
      ...(['DP_DATA_CORRUPT', 'without a list of layers'] as const),
    ],
    [
      'two directions that differ',
      ({ json }) =>
        Object.assign(topology(json).config.layers[0]!, {
          class_name: 'Bidirectional',
          config: {
            name: 'both',
            layer: { class_name: 'LSTM', config: { name: 'forward_l', units: 2 } },
            backward_layer: { class_name: 'LSTM', config: { name: 'backward_l', units: 3 } },
          },
        }),
      ...(['DP_EXPERIMENT_INVALID', "'both' has a backward_layer with other settings"] as const),
    ],
  ];
  test.each(cases)('%s', async (_, change, code, message) => {
    const files = await writtenModel(original());
    const { json, shards } = structuredClone(files) as { json: ModelJson; shards: Uint8Array[] };
    change({ json, shards });
    const sha256 = write({ json, shards });
    const failed = await build(experimentWith({ sha256 })).then(
      () => null,
      (error: unknown) => error as { code: string; message: string },
    );
    expect(failed?.message).toContain(message);
    expect(failed?.code).toBe(code);
  });

  test.each([
    '/etc/passwd',
    '../weights.bin',
    'a/../../b',
    'https://example.org/w.bin',
    'C:\\w',
    '',
  ])('weights at %j are not looked for', async (path) => {
    const { json, shards } = await writtenModel(original());
    const sha256 = write({ json, shards });
    json.weightsManifest[0]!.paths[0] = path;
    writeFileSync(file, JSON.stringify(json));
    await expect(openPretrained(file, { sha256 })).rejects.toMatchObject({
      code: 'DP_DATA_CORRUPT',
      message: expect.stringContaining('within its own folder'),
    });
  });

  test('files that are missing, and other ones', async () => {
    const sha256 = write(await writtenModel(original()));
    await expect(openPretrained(join(folder, 'no.json'), { sha256 })).rejects.toMatchObject({
      code: 'DP_DATA_MISSING',
    });
    const other = '0'.repeat(64);
    await expect(openPretrained(file, { sha256: other })).rejects.toMatchObject({
      code: 'DP_DATA_MISMATCH',
      message: expect.stringContaining(sha256),
    });
    await expect(openPretrained(file, { sha256: '' })).rejects.toMatchObject({
      code: 'DP_EXPERIMENT_INVALID',
      message: expect.stringContaining(`write sha256: '${sha256}'`),
    });
    // One bit of the weights, which no size tells.
    const shard = join(folder, 'group1-shard1of1.bin');
    const bytes = readFileSync(shard);
    bytes[5]! ^= 1;
    writeFileSync(shard, bytes);
    await expect(openPretrained(file, { sha256 })).rejects.toThrow('have the SHA-256');
    rmSync(shard);
    await expect(openPretrained(file, { sha256 })).rejects.toThrow('a weight file of');
    writeFileSync(file, '{"format":');
    await expect(openPretrained(file, { sha256 })).rejects.toThrow('it is not JSON');
    const junk = new Uint8Array(20).fill(7);
    writeFileSync(join(folder, 'w.safetensors'), junk);
    const itsHash = createHash('sha256').update(junk).digest('hex');
    await expect(
      openPretrained(join(folder, 'w.safetensors'), { sha256: itsHash }),
    ).rejects.toMatchObject({
      code: 'DP_DATA_CORRUPT',
      message: expect.stringContaining('not a safetensors file'),
    });
  });

  test('sizes at the limits', async () => {
    const sha256 = '0'.repeat(64);
    // Files with holes: they take no room, and what is too large is not read.
    writeFileSync(file, ' ');
    truncateSync(file, LIMITS.topologyBytesMax + 1);
    await expect(openPretrained(file, { sha256 })).rejects.toThrow(
      `has ${LIMITS.topologyBytesMax + 1} bytes, at most ${LIMITS.topologyBytesMax} are read`,
    );
    truncateSync(file, LIMITS.topologyBytesMax);
    await expect(openPretrained(file, { sha256 })).rejects.toThrow('it is not JSON');
    const weights = join(folder, 'w.safetensors');
    writeFileSync(weights, '');
    truncateSync(weights, LIMITS.pretrainedBytesMax + 1);
    await expect(openPretrained(weights, { sha256 })).rejects.toThrow(
      `at most ${LIMITS.pretrainedBytesMax} are read`,
    );
    const elements = LIMITS.pretrainedBytesMax / 4 + 1;
    const manifest = [
      { paths: ['w.bin'], weights: [{ name: 'a', shape: [elements], dtype: 'float32' }] },
    ];
    writeFileSync(file, JSON.stringify({ modelTopology: {}, weightsManifest: manifest }));
    writeFileSync(join(folder, 'w.bin'), '');
    truncateSync(join(folder, 'w.bin'), elements * 4);
    await expect(openPretrained(file, { sha256 })).rejects.toThrow(
      `at most ${LIMITS.pretrainedBytesMax} are read`,
    );
  });

  test('fields of pretrained are checked', () => {
    const check = (pretrained: object) => () =>
      mustBeExperiment({ ...experimentWith({ sha256: '' }), pretrained }, 'x.ts');
    expect(check({ from: 'https://example.org/model.json', sha256: '' })).toThrow(
      'pretrained: from is "https://example.org/model.json"; allowed: the path of a file',
    );
    expect(check({ from: 'model.h5', sha256: '' })).toThrow('pretrained: from is "model.h5"');
    expect(check({ from: 'model.json' })).toThrow('pretrained: sha256 is missing');
    expect(check({ from: 'model.json', sha256: '', freze: [] })).toThrow("did you mean 'freeze'?");
    expect(check({ from: 'model.json', sha256: '', until: 3 })).toThrow(
      'until is 3; allowed: the name',
    );
    expect(check({ from: 'model.json', sha256: '', inputShape: [0] })).toThrow(
      'inputShape is [0]; allowed: a list of whole numbers',
    );
    expect(check({ from: 'model.json', sha256: '', freeze: 'trunk' })).toThrow('freeze is "trunk"');
    const browser = { ...experimentWith({ sha256: '' }), browser: true };
    expect(() => mustBeExperiment(browser, 'x.ts')).toThrow(
      'browser: true is not allowed beside pretrained',
    );
  });
});
