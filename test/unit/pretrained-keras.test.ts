import '@tensorflow/tfjs-backend-cpu';
import { createHash } from 'node:crypto';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { layers } from '../../worker/layers.ts';
import { openPretrained } from '../../worker/pretrained/open.ts';
import { loadPretrained, type Pretrained } from '../../worker/pretrained/pretrained.ts';
import { type Tensor, tf } from '../../worker/tf.ts';

/** Models that Keras 3 wrote, with its own answers: fixtures/keras/models.py. */
interface KerasModel {
  readonly title: string;
  readonly modelTopology: {
    config: { layers: { class_name: string; name: string; config: Record<string, unknown> }[] };
  };
  readonly weights: readonly { readonly name: string; readonly shape: readonly number[] }[];
  readonly outputs: { readonly shape: readonly number[]; readonly values: readonly number[] };
}
const MODELS: readonly KerasModel[] = JSON.parse(
  readFileSync(join(import.meta.dirname, '../fixtures/keras/models.json'), 'utf8'),
);
/** The file has six decimals; sums of float32 differ in the seventh. */
const TOLERANCE_DIGITS = 5;

let folder: string;
beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), 'downpour-keras-'));
  await tf.setBackend('cpu');
});
afterAll(() => rmSync(folder, { recursive: true }));

/** As models.py fills weights and inputs. */
function filled(name: string, shape: readonly number[], k: number): Float32Array {
  const size = shape.reduce((product, d) => product * d, 1);
  const isVariance = name.endsWith('variance');
  return Float32Array.from({ length: size }, (_, i) => {
    const value = 0.7 * Math.sin((i + 1) * k);
    return isVariance ? 0.1 + Math.abs(value) : value;
  });
}

/** @returns the path and the hash. */
function write(
  { modelTopology, weights }: Pick<KerasModel, 'modelTopology' | 'weights'>,
  name: string,
): [string, string] {
  const values = weights.map((each, i) => filled(each.name, each.shape, 0.37 + 0.11 * i));
  const bytes = Buffer.concat(values.map(({ buffer }) => new Uint8Array(buffer as ArrayBuffer)));
  const file = `${name.replaceAll(/\W/g, '-')}.bin`;
  writeFileSync(join(folder, file), bytes);
  const text = JSON.stringify({
    format: 'layers-model',
    modelTopology,
    weightsManifest: [
      { paths: [file], weights: weights.map((each) => ({ ...each, dtype: 'float32' })) },
    ],
  });
  const path = join(folder, `${file}.json`);
  writeFileSync(path, text);
  return [path, createHash('sha256').update(text).update(bytes).digest('hex')];
}

async function load(model: KerasModel, cut: Pick<Pretrained, 'until' | 'inputShape'> = {}) {
  const [path, sha256] = write(model, model.title);
  const opened = await openPretrained(path, { sha256, ...cut });
  const mayDiffer = cut.inputShape !== undefined;
  return (await loadPretrained(opened, path, { fresh: false, mayDiffer }))!.model;
}

const inputsFor = (shape: readonly (number | null)[]): Tensor => {
  const sizes = [2, ...shape.slice(1)] as number[];
  return tf.tensor(filled('', sizes, 0.53), sizes);
};

const named = (title: string) => structuredClone(MODELS.find((each) => each.title === title)!);

describe('models of Keras 3', () => {
  test.each(MODELS)('$title answers as in Keras', async (given) => {
    const model = await load(given);
    const outputs = model.predict(inputsFor(model.inputs[0]!.shape)) as Tensor;
    expect(outputs.shape).toEqual(given.outputs.shape);
    const values = await outputs.data();
    for (const [i, value] of given.outputs.values.entries()) {
      expect(values[i]).toBeCloseTo(value, TOLERANCE_DIGITS);
    }
    // What an export writes is the same model again.
    const again = await tf.loadLayersModel(
      tf.io.fromMemory(JSON.parse(JSON.stringify({ modelTopology: model.toJSON(null, false) }))),
    );
    again.setWeights(model.getWeights());
    const repeated = again.predict(inputsFor(model.inputs[0]!.shape)) as Tensor;
    expect([...(await repeated.data())]).toEqual([...values]);
    model.dispose();
    again.dispose();
  });

  test('the layers up to one of them, for images of another size', async () => {
    const model = await load(named('residual'), { until: 'last', inputShape: [9, 7, 2] });
    expect(model.outputs[0]!.shape).toEqual([null, 9, 7, 4]);
    expect(model.layers.map(({ name }) => name)).toEqual([
      'image',
      'first',
      'first_norm',
      'first_relu',
      'depthwise',
      'sum',
      'last',
    ]);
    // The last layers of the file, computed by hand, give the answers of the whole.
    const given = named('residual');
    const cut = await load(given, { until: 'last' });
    const pooled = tf.mean(cut.predict(inputsFor(cut.inputs[0]!.shape)) as Tensor, [1, 2]);
    const [kernel, bias] = given.weights
      .map(({ name, shape }, i) => tf.tensor(filled(name, shape, 0.37 + 0.11 * i), [...shape]))
      .slice(-2) as [Tensor, Tensor];
    const answers = await tf.softmax(tf.add(tf.matMul(pooled, kernel), bias)).data();
    for (const [i, value] of given.outputs.values.entries()) {
      expect(answers[i]).toBeCloseTo(value, TOLERANCE_DIGITS);
    }
    const rows = await load(named('sequential'), { until: 'pool', inputShape: [8, 8, 2] });
    expect(rows.outputs[0]!.shape).toEqual([null, 3, 3, 3]);
    for (const each of [model, cut, rows]) each.dispose();
  });

  test('a dense layer for another size begins fresh', async () => {
    const model = await load(named('sequential'), { inputShape: [8, 8, 2] });
    expect(model.layers.at(-1)!.getWeights()[0]!.shape).toEqual([27, 5]);
    model.dispose();
  });

  test('a last layer that is nowhere is refused with names that there are', async () => {
    const cut = (until: string) => load(named('residual'), { until });
    await expect(cut('lost')).rejects.toMatchObject({
      code: 'DP_EXPERIMENT_INVALID',
      message: expect.stringMatching(/until is 'lost', .* did you mean 'last'\?/),
    });
    await expect(cut('x'.repeat(200))).rejects.toThrow('its last layers are depthwise, sum, last');
  });

  test('a layer that TensorFlow.js does not have is named, with the way out', async () => {
    const model = named('residual');
    model.modelTopology.config.layers[4]!.class_name = 'SpectralNormalization';
    await expect(load(model)).rejects.toMatchObject({
      code: 'DP_EXPERIMENT_INVALID',
      message: expect.stringMatching(
        /layer 'depthwise' .* class SpectralNormalization, .*until: 'first_relu'/,
      ),
    });
  });
});

describe('resetAfterGru', () => {
  const gru = () =>
    layers.resetAfterGru({
      units: 3,
      inputShape: [5, 2],
      recurrentActivation: 'sigmoid',
      name: 'gru',
    });

  test('a gradient reaches all of its weights, with dropout too', () => {
    const model = tf.sequential({
      layers: [
        layers.resetAfterGru({
          ...{ units: 3, inputShape: [5, 2], biasInitializer: 'ones' },
          ...{ dropout: 0.4, recurrentDropout: 0.3 },
        }),
      ],
    });
    expect(model.getWeights().map(({ shape }) => shape)).toEqual([
      [2, 9],
      [3, 9],
      [2, 9],
    ]);
    const x = tf.tensor(filled('', [4, 5, 2], 0.9), [4, 5, 2]);
    const variables = model.trainableWeights.map((weight) => weight.read() as never);
    const before = tf.memory().numTensors;
    const { value, grads } = tf.variableGrads(
      () => tf.sum(model.apply(x, { training: true }) as Tensor) as never,
      variables,
    );
    for (const gradient of Object.values(grads)) {
      expect(tf.sum(tf.abs(gradient)).dataSync()[0]).toBeGreaterThan(0);
    }
    expect(Object.keys(grads).length).toBe(3);
    const sum = (training: boolean) =>
      tf.sum(model.apply(x, { training }) as Tensor).dataSync()[0]!;
    // Without training nothing is dropped; in training another mask each time.
    expect(sum(false)).toBe(sum(false));
    expect(new Set([sum(true), sum(true), sum(true), value.dataSync()[0]]).size).toBeGreaterThan(1);
    tf.dispose([value, grads]);
    expect(tf.memory().numTensors).toBeGreaterThanOrEqual(before);
    model.dispose();
  });

  test('differs from the older unit, and equals it where the reset gate is open', async () => {
    const newer = tf.sequential({ layers: [gru()] });
    const older = tf.sequential({
      layers: [tf.layers.gru({ units: 3, inputShape: [5, 2], recurrentActivation: 'sigmoid' })],
    });
    const kernel = tf.tensor(filled('', [2, 9], 0.3), [2, 9]);
    const recurrent = tf.tensor(filled('', [3, 9], 0.7), [3, 9]);
    const answers = async (reset: number) => {
      const bias = tf.tensor([0, 0, 0, reset, reset, reset, 0, 0, 0]);
      newer.setWeights([kernel, recurrent, tf.stack([bias, tf.zerosLike(bias)])]);
      older.setWeights([kernel, recurrent, bias]);
      const x = tf.tensor(filled('', [4, 5, 2], 0.9), [4, 5, 2]);
      return [await (newer.predict(x) as Tensor).data(), await (older.predict(x) as Tensor).data()];
    };
    const [open, openOlder] = await answers(60);
    for (const [i, value] of open!.entries()) expect(value).toBeCloseTo(openOlder![i]!, 6);
    const [half, halfOlder] = await answers(0);
    expect(Math.max(...half!.map((value, i) => Math.abs(value - halfOlder![i]!)))).toBeGreaterThan(
      1e-3,
    );
    newer.dispose();
    older.dispose();
  });
});
