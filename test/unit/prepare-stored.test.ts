import { mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { LIMITS } from '../../shared/limits.ts';
import type { ExperimentData, PreparedData, PrepareOptions } from '../../worker/data/examples.ts';
import { gather } from '../../worker/data/gather.ts';
import { dataOf, type GivenExamples } from '../../worker/data/given.ts';
import { prepareData } from '../../worker/data/prepare-data.ts';
import { prepareAny } from '../../worker/data/prepare-stored.ts';
import type { ExampleSource } from '../../worker/data/source.ts';
import { collect } from '../../worker/data/stored.ts';
import { keepResult, recallResult } from '../../worker/kept.ts';
import { sourceOfArrays } from '../support/array-source.ts';

/** Data that are read by pieces are prepared as data in memory are, to the bit. */

const log = () => {};
const OPTIONS = { seed: 7, validationFraction: 0.2, standardise: 'none' } as const;

async function sameBoth(
  given: {
    train: GivenExamples;
    validation?: GivenExamples;
    test?: GivenExamples;
    classCount?: number;
  },
  options: PrepareOptions,
): Promise<{ inMemory: PreparedData; read: PreparedData }> {
  const inMemory = prepareData(dataOf(given), options);
  const { train, ...rest } = given;
  const read = await prepareAny(dataOf({ ...rest, train: sourceOfArrays(train) }), options, {
    log,
  });
  for (const part of ['train', 'validation', 'test'] as const) {
    const all = inMemory[part];
    expect(read[part]?.count).toBe(all?.count);
    if (!all || all.count === 0) continue;
    const rows = Int32Array.from({ length: all.count }, (_, i) => i);
    expect(await collect(read, part, rows)).toEqual(gather(inMemory, part, rows));
  }
  expect(read.transform).toEqual(inMemory.transform);
  expect(read.transforms).toEqual(inMemory.transforms);
  expect(read.train.stored).toBeDefined();
  const facts = ({ classCount, classes, inputNames, targetNames }: PreparedData) => ({
    ...{ classCount, classes, inputNames, targetNames },
  });
  expect(facts(read)).toEqual(facts(inMemory));
  return { inMemory, read };
}

const N = 90;
const table: GivenExamples = {
  inputs: {
    values: Float64Array.from({ length: 3 * N }, (_, i) =>
      i % 3 === 0 ? 1.7e12 + 1000 * i : Math.sin(i),
    ),
    shape: [N, 3],
    names: ['time', 'a', 'b'],
  },
  targets: { values: Float64Array.from({ length: N }, (_, i) => Math.cos(i)), shape: [N] },
};
const pictures: GivenExamples = {
  inputs: {
    values: Uint8Array.from({ length: 4 * N }, (_, i) => (i * 37) % 256),
    shape: [N, 2, 2],
  },
  targets: {
    values: Int32Array.from({ length: N }, (_, i) => i % 3),
    shape: [N],
    classes: ['a', 'b', 'c'],
  },
};

describe('data of a source are prepared as the same arrays are', () => {
  test.each<[string, GivenExamples, Partial<PrepareOptions>]>([
    ['a table by its features', table, { standardise: 'feature', loss: 'meanSquaredError' }],
    ['pictures under one mean', pictures, { standardise: 'global', loss: 'softmaxCrossEntropy' }],
    ['pictures as they are', pictures, {}],
    ['pictures that are whitened', pictures, { standardise: 'zca' }],
    ['a table that is whitened', table, { standardise: { kind: 'zca', epsilon: 1e-3 } }],
    ['without a validation part', pictures, { validationFraction: 0 }],
    [
      'with a bootstrap of half',
      table,
      { standardise: 'feature', trainFraction: 0.5, bootstrap: true },
    ],
    [
      'a fold of each class',
      pictures,
      { standardise: 'global', validation: { folds: 4, fold: 1, stratified: true, apart: 2 } },
    ],
    ['another split seed', table, { standardise: 'feature', splitSeed: 3 }],
  ])('%s', async (_, train, more) => {
    await sameBoth({ train }, { ...OPTIONS, ...more });
  });

  test('with parts of its own, which may be arrays', async () => {
    const { read } = await sameBoth(
      { train: pictures, validation: pictures, test: pictures },
      { ...OPTIONS, standardise: 'global' },
    );
    expect(read.validation.stored).toBeDefined();
  });

  test('with missing numbers', async () => {
    const values = Float64Array.from({ length: 2 * N }, (_, i) =>
      i % 7 === 0 ? Number.NaN : i / 3,
    );
    const inputs = { values, shape: [N, 2], missing: 'mean' } as const;
    await sameBoth({ train: { ...table, inputs } }, { ...OPTIONS, standardise: 'feature' });
  });

  test('with rows of 0 and 1 for the classes, and with labels that look so in part', async () => {
    const oneHot = Int32Array.from({ length: 3 * N }, (_, i) =>
      i % 3 === Math.floor(i / 3) % 3 ? 1 : 0,
    );
    const shares = { ...pictures, targets: { values: oneHot, shape: [N, 3] } };
    const loss = 'softmaxCrossEntropy';
    const { read } = await sameBoth({ train: shares, classCount: 3 }, { ...OPTIONS, loss });
    expect(read.train.targets.values).toBeInstanceOf(Float32Array);
    const labels = { ...pictures, targets: { values: oneHot.with(-1, 2), shape: [N, 3] } };
    const other = await sameBoth({ train: labels, classCount: 3 }, { ...OPTIONS, loss });
    expect(other.read.train.targets.values).toBeInstanceOf(Int32Array);
  });

  test('with fields, ids among them', async () => {
    const train: GivenExamples = {
      inputs: {
        town: { values: Int32Array.from({ length: N }, (_, i) => i % 5), shape: [N, 1] },
        house: table.inputs as GivenExamples['inputs'] & { values: Float64Array },
      } as GivenExamples['inputs'],
      targets: {
        price: { values: Float32Array.from({ length: N }, (_, i) => i / 7), shape: [N, 1] },
        kind: {
          values: Int32Array.from({ length: N }, (_, i) => i % 3),
          shape: [N],
          classCount: 3,
        },
      },
    };
    await sameBoth(
      { train },
      {
        ...OPTIONS,
        standardise: { house: 'feature' },
        losses: { price: 'meanSquaredError', kind: 'softmaxCrossEntropy' },
      },
    );
  });

  test('over several pieces', async () => {
    const n = 70_000;
    const values = Float64Array.from({ length: 2 * n }, (_, i) => 1e9 + Math.sin(i) * 1000);
    const labels = Int32Array.from({ length: n }, (_, i) => (i < n - 3 ? 0 : 1));
    let reads = 0;
    const train = {
      inputs: { values, shape: [n, 2] },
      targets: { values: labels, shape: [n] },
    };
    const options = { ...OPTIONS, standardise: 'feature', loss: 'softmaxCrossEntropy' } as const;
    const inMemory = prepareData(dataOf({ train, classCount: 2 }), options);
    const source = sourceOfArrays(train);
    const counting: ExampleSource = {
      ...source,
      read: (indices, how) => {
        reads += indices.length;
        return source.read(indices, how);
      },
    };
    const data = dataOf({ train: counting, classCount: 2 });
    const read = await prepareAny(data, options, { log });
    expect(read.transform).toEqual(inMemory.transform);
    // The head, a first pass over all, and a second one over the training part.
    expect(reads).toBe(1000 + n + inMemory.train.count);
    await prepareAny(data, options, { log });
    // This process knows what it found: only the first examples are read again.
    expect(reads).toBe(2000 + n + inMemory.train.count);
  });
});

describe('data of a source are refused as the same arrays are', () => {
  const late = <T extends { values: ArrayLike<number> }>(column: T, value: number): T => ({
    ...column,
    values: Object.assign((column.values as Float64Array).slice(), {
      [column.values.length - 1]: value,
    }),
  });
  const labels = { values: Int32Array.from({ length: 3000 }, (_, i) => i % 3), shape: [3000] };
  const inputs = { values: Float32Array.from({ length: 3000 }, (_, i) => i / 3000), shape: [3000] };
  const loss = 'softmaxCrossEntropy';
  test.each<[string, GivenExamples, Partial<PrepareOptions>, RegExp]>([
    [
      'a label out of range',
      { inputs, targets: late(labels, 3) },
      { loss },
      /train part, row 2999: label 3; allowed/,
    ],
    [
      'one label only',
      { inputs, targets: { ...labels, values: new Int32Array(3000) } },
      { loss },
      /all 3000 training examples have label 0/,
    ],
    [
      'a target that is no yes or no',
      { inputs, targets: late({ ...labels, values: new Float32Array(3000) }, 2) },
      { loss: 'sigmoidCrossEntropy' },
      /row 2999: target 2; loss 'sigmoidCrossEntropy'/,
    ],
    [
      'differences that float32 loses',
      {
        inputs: { values: Float64Array.from(inputs.values, (v) => 1e12 + v), shape: [3000] },
        targets: labels,
      },
      { loss },
      /inputs of the train part, numbers: numbers such as .* differ too little for their size/,
    ],
    [
      'targets that float32 loses',
      {
        inputs,
        targets: { values: Float64Array.from(inputs.values, (v) => 1e12 + v), shape: [3000] },
      },
      { loss: 'meanSquaredError' },
      /targets of the train part.* differ too little for their size/,
    ],
    [
      'float32 that has lost its digits',
      {
        inputs: { values: Float32Array.from(inputs.values, (v) => 1e9 + 100 * v), shape: [3000] },
        targets: labels,
      },
      { loss },
      /Their differences are lost/,
    ],
    [
      'a number beyond float32',
      {
        inputs: late({ ...inputs, values: Float64Array.from(inputs.values) }, 1e300),
        targets: labels,
      },
      { loss },
      /is beyond the range of float32/,
    ],
  ])('%s', async (_, train, more, message) => {
    const isRegression = more.loss !== loss;
    const given = { train, ...(isRegression ? {} : { classCount: 3 }) };
    const options = { ...OPTIONS, ...more };
    expect(() => prepareData(dataOf(given), options)).toThrow(message);
    const data = dataOf({ ...given, train: sourceOfArrays(train) });
    await expect(prepareAny(data, options, { log })).rejects.toThrow(message);
  });

  test('parts of different types', async () => {
    const data = dataOf({
      train: sourceOfArrays(pictures),
      validation: { ...pictures, inputs: table.inputs },
    });
    await expect(prepareAny(data, OPTIONS, { log })).rejects.toThrow(
      /inputs of the validation part are float64, but those of the train part are uint8/,
    );
  });

  test('stratified folds of numbers', async () => {
    const validation = { folds: 3, fold: 0, stratified: true } as const;
    const data = dataOf({ train: sourceOfArrays(table) });
    await expect(prepareAny(data, { ...OPTIONS, validation }, { log })).rejects.toThrow(
      /validation.stratified needs one class for each example/,
    );
  });

  test('an abort while all examples are read', async () => {
    const stopping = new AbortController();
    const source = sourceOfArrays(pictures);
    let reads = 0;
    const read: ExampleSource['read'] = (indices, how) => {
      if (++reads === 2) stopping.abort(new Error('stopped'));
      return source.read(indices, how);
    };
    const data = dataOf({ train: { ...source, read } });
    const { signal } = stopping;
    await expect(prepareAny(data, OPTIONS, { log, signal })).rejects.toThrow('stopped');
  });
});

describe('what was found of a source with a key', () => {
  let folder = '';
  const before = process.env.XDG_CACHE_HOME;
  beforeEach(() => {
    folder = mkdtempSync(join(tmpdir(), 'downpour-kept-'));
    process.env.XDG_CACHE_HOME = folder;
  });
  afterEach(() => {
    if (before === undefined) delete process.env.XDG_CACHE_HOME;
    else process.env.XDG_CACHE_HOME = before;
    rmSync(folder, { recursive: true });
  });
  const files = () => readdirSync(join(folder, 'downpour', 'sources'));

  test('is kept for other processes, and only under that key', async () => {
    const source = { ...sourceOfArrays(table), key: 'table 1' };
    const options = { ...OPTIONS, standardise: 'feature' } as const;
    const { fingerprint } = await prepareAny(dataOf({ train: source }), options, { log });
    expect(files()).toHaveLength(2);
    const again = await prepareAny(dataOf({ train: { ...source, key: 'table 2' } }), options, {
      log,
    });
    expect(again.fingerprint).toBe(fingerprint);
    expect(files()).toHaveLength(4);
  });

  test('is dropped where there is too much of it, the oldest first', () => {
    for (let i = 0; i < LIMITS.keptSourcesMax; i++) keepResult(`key ${i}`, i);
    expect(files()).toHaveLength(LIMITS.keptSourcesMax);
    keepResult('one more', { a: [1] });
    expect(files()).toHaveLength(LIMITS.keptSourcesMax);
    expect(recallResult('one more')).toEqual({ a: [1] });
    expect(recallResult('another')).toBeNull();
  });
});

test('a change of one number changes the fingerprint', async () => {
  const prepared = (train: GivenExamples) =>
    prepareAny(dataOf({ train: sourceOfArrays(train) }) as ExperimentData, OPTIONS, { log });
  const { rawFingerprint } = await prepared(pictures);
  const values = (pictures.inputs.values as Uint8Array).with(17, 3);
  const other = await prepared({ ...pictures, inputs: { ...pictures.inputs, values } as never });
  expect(rawFingerprint).toMatch(/^2:[0-9a-f]{32}$/);
  expect(other.rawFingerprint).not.toBe(rawFingerprint);
});
