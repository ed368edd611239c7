import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type PartialConfig, resolveConfig } from '../../shared/config.ts';
import { dataDigest } from '../../shared/digest.ts';
import { ERRORS } from '../../shared/errors.ts';
import { fragmentPieces, fragmentsProblem } from '../../shared/fragments.ts';
import { createLayout, type Layout, type TensorSpec } from '../../shared/layout.ts';
import { partition, type Range } from '../../shared/partition.ts';
import type { Lease } from '../../shared/protocol.ts';
import { mix, permutation, random, STREAMS } from '../../shared/random.ts';
import { shardOfRow } from '../../shared/row-shards.ts';
import { type Column, kindOf } from '../../worker/data/columns.ts';
import type { ExperimentData, PreparedData } from '../../worker/data/examples.ts';
import { dataSummary, factsOf } from '../../worker/data/facts.ts';
import { gather } from '../../worker/data/gather.ts';
import { prepareData } from '../../worker/data/prepare-data.ts';
import { split } from '../../worker/data/split.ts';
import { hashExperiment } from '../../worker/experiment.ts';
import { createOrders } from '../../worker/minibatches.ts';

/**
 * What of docs/protocol.md is no message, as vectors: each is computed by the code that trains, from what is written
 * beside it, so that a worker in another language can compare its own.
 */

export async function factVectors() {
  return {
    mix: mixVectors(),
    random: randomVectors(),
    orders: orderVectors(),
    leases: leaseVectors(),
    splits: splitVectors(),
    digests: digestVectors(),
    data: dataVectors(),
    experimentHashes: await hashVectors(),
    partitions: partitionVectors(),
    rowShards: rowShardVectors(),
    errors: errorVectors(),
  };
}

export const times = <T>(n: number, f: (i: number) => T): T[] =>
  Array.from({ length: n }, (_, i) => f(i));

function mixVectors() {
  const pairs = [
    [0, 0],
    [1, 2],
    [0xffffffff, 0x9e3779b1],
    [123_456_789, 0x10000000],
  ] as const;
  return pairs.map(([a, b]) => ({ a, b, mixed: mix(a, b) }));
}

/** Each list of numbers is drawn from a generator of its own. */
function randomVectors() {
  const streams = [
    [0, STREAMS.split],
    [1, STREAMS.epoch],
    // Above 32 bits.
    [2 ** 40 + 5, STREAMS.bootstrap],
  ] as const;
  return streams.map(([seed, stream]) => {
    const drawn = <T>(count: number, draw: (from: ReturnType<typeof random>) => T) => {
      const from = random(seed, stream);
      return times(count, () => draw(from));
    };
    // Half of all draws are too large for the second bound, and are drawn again.
    const below = [10, 2 ** 31 + 1].map((bound) => ({
      ...{ bound, numbers: drawn(8, (from) => from.below(bound)) },
    }));
    const bits = drawn(6, (from) => from.bits());
    const uniform = drawn(2, (from) => from.uniform());
    return {
      seed,
      stream,
      bits,
      uniform,
      below,
      normal: drawn(3, (from) => shorter(from.normal())),
    };
  });
}

function orderVectors() {
  const orders = [
    [1, 0, 10],
    [1, 1, 10],
    [2 ** 40 + 5, 7, 100],
    [0, 0, 1],
  ] as const;
  return orders.map(([seed, epoch, count]) => ({
    ...{ seed, epoch, count },
    examples: [...permutation(seed, STREAMS.epoch + epoch, count)],
  }));
}

/** Which rows of which part a lease means. */
function leaseVectors() {
  const counts = { train: 12, validation: 5, test: 4 };
  const part = (count: number) => ({ count });
  const prepared = {
    train: part(counts.train),
    validation: part(counts.validation),
    test: part(counts.test),
  } as unknown as PreparedData;
  const leases: Lease[] = [
    { id: 1, epoch: 0, start: 0, count: 4, part: 'train' },
    { id: 6, epoch: 1, start: 10, count: 2, part: 'train' },
    { id: 9, epoch: 3, start: 8, count: 8, part: 'trainAndValidation' },
  ];
  const seed = 42;
  return leases.map((lease) => ({
    ...{ seed, ...counts, lease },
    rows: [...createOrders(seed, prepared)(lease)].map((index) =>
      index < counts.train
        ? { part: 'train', row: index }
        : { part: 'validation', row: index - counts.train },
    ),
  }));
}

/** Which rows of the training examples train and which validate. */
function splitVectors() {
  const count = 20;
  // Ten examples are of class 0.
  const classes = times(count, (i) => (i % 2 === 0 ? 0 : 1 + (i % 3)));
  const data: ExperimentData = {
    train: {
      count,
      inputs: { values: Uint8Array.from({ length: count }, (_, i) => i), shape: [count, 1] },
      targets: { values: Uint8Array.from(classes), shape: [count] },
    },
    classCount: 4,
    source: '',
  };
  const configs: PartialConfig[] = [
    {},
    { seed: 3, validationFraction: 0.33 },
    { seed: 3, splitSeed: 2 ** 33, validationFraction: 0.125 },
    { seed: 3, trainFraction: 0.4 },
    { seed: 3, trainFraction: 0.5, bootstrap: true },
    { seed: 4, validation: { folds: 5, fold: 1 } },
    { seed: 4, validation: { folds: 3, fold: 0, stratified: true, apart: 2 } },
  ];
  return configs.map((config) => {
    const { rows } = split(data, {
      ...resolveConfig(config),
      standardise: 'none',
    });
    const listed = (chosen: Int32Array | null) => chosen && [...chosen];
    return {
      ...{ config: splitFields(config), count, classes },
      train: listed(rows.train),
      validation: listed(rows.validation),
    };
  });
}

/** The fields that a split depends on, all of them. */
export function splitFields(config: PartialConfig) {
  const { seed, splitSeed, validationFraction, validation, trainFraction, bootstrap } =
    resolveConfig(config);
  return { seed, splitSeed, validationFraction, validation, trainFraction, bootstrap };
}

function digestVectors() {
  const bytes = (length: number) => Uint8Array.from({ length }, (_, i) => (i * 37 + 11) % 256);
  const inputs = [[], [0], [3], [16], [16, 5], [40, 0, 33]];
  return inputs.map((lengths) => {
    const sum = dataDigest();
    const pieces = lengths.map(bytes);
    for (const piece of pieces) sum.update(piece);
    return { pieces: pieces.map((piece) => Buffer.from(piece).toString('hex')), digest: sum.hex() };
  });
}

/** Little data sets: what `join` says of them, and inputs as the model sees them. */
function dataVectors() {
  const pixels: ExperimentData = {
    train: {
      count: 10,
      inputs: { values: Uint8Array.from(times(40, (i) => (i * 29) % 256)), shape: [10, 2, 2, 1] },
      targets: { values: Uint8Array.from(times(10, (i) => i % 3)), shape: [10] },
    },
    test: {
      count: 3,
      inputs: { values: Uint8Array.from(times(12, (i) => (i * 53) % 256)), shape: [3, 2, 2, 1] },
      targets: { values: Uint8Array.of(0, 1, 2), shape: [3] },
    },
    classCount: 3,
    source: 'pixels',
  };
  const table: ExperimentData = {
    train: {
      count: 6,
      inputs: {
        values: Float64Array.from(times(18, (i) => (i % 3 === 2 ? 7 : i ** 2 / 4))),
        shape: [6, 3],
        names: ['width', 'größe', 'always 7'],
      },
      targets: { values: Float32Array.from(times(6, (i) => i / 2)), shape: [6] },
    },
    validation: {
      count: 2,
      inputs: {
        values: Float64Array.of(1, 2, 7, 3, 4, 7),
        shape: [2, 3],
        names: ['width', 'größe', 'always 7'],
      },
      targets: { values: Float32Array.of(1, -1), shape: [2] },
    },
    source: 'table',
  };
  const sets = [
    [pixels, 'none'],
    [pixels, 'global'],
    [table, 'feature'],
  ] as const;
  const config = { seed: 5, validationFraction: 0.3 };
  return sets.map(([data, standardise]) => {
    const prepared = prepareData(data, { ...resolveConfig(config), standardise });
    const { inputs } = gather(prepared, 'train', [0, 1]);
    const { train, validation, test, classCount = null, classes = null } = data;
    return {
      ...{ config: splitFields(config), standardise, classCount, classes },
      parts: Object.fromEntries(
        Object.entries({ train, validation, test }).flatMap(([name, part]) =>
          part ? [[name, { inputs: columnOf(part.inputs), targets: columnOf(part.targets) }]] : [],
        ),
      ),
      summary: dataSummary(prepared, []),
      facts: factsOf(prepared),
      mean: prepared.transform.mean,
      deviation: prepared.transform.deviation,
      // Rows 0 and 1 of the training part.
      standardised: [...inputs].map(shorter),
    };
  });
}

export const columnOf = ({ values, shape, names, classes }: Column) => ({
  ...{ kind: kindOf(values), shape, names: names ?? null, classes: classes ?? null },
  values: [...values],
});

/** As many digits as name a float32: the last of float64 are each machine's own where there is a logarithm or a cosine. */
export const shorter = (value: number) => Number(value.toPrecision(8));

async function hashVectors() {
  const folder = mkdtempSync(join(tmpdir(), 'downpour-vectors-'));
  const files = {
    'digits.ts': "import { layers } from './parts.ts';\r\nexport default { layers };\r\n",
    'parts.ts': "export const layers = ['größe'];\n",
  };
  try {
    for (const [name, source] of Object.entries(files)) writeFileSync(join(folder, name), source);
    return [
      { files, hash: await hashExperiment(join(folder, 'digits.ts')) },
      {
        files: { 'parts.ts': files['parts.ts'] },
        hash: await hashExperiment(join(folder, 'parts.ts')),
      },
    ];
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

/** Where a vector is cut into shards. */
function partitionVectors() {
  const dense = (inputs: number, outputs: number, i: number): TensorSpec[] => [
    { name: `dense_${i}/kernel`, shape: [inputs, outputs], role: 'trainable' },
    { name: `dense_${i}/bias`, shape: [outputs], role: 'trainable' },
  ];
  const tensors = [...dense(784, 256, 1), ...dense(256, 10, 2)];
  // The boundary falls into a small tensor, nearer to its end.
  const small: TensorSpec[] = [
    { name: 'a', shape: [16_000], role: 'trainable' },
    { name: 'b', shape: [500], role: 'trainable' },
    { name: 'c', shape: [16_500], role: 'trainable' },
  ];
  const cuts = [
    [tensors, 2],
    [tensors, 3],
    [tensors, 64],
    [small, 2],
    [dense(10, 10, 1), 4],
  ] as const;
  return cuts.map(([specs, shards]) => {
    const layout = createLayout(specs);
    const ranges = partition(layout, shards);
    return {
      ...{ shapes: specs.map(({ shape }) => shape), shards },
      ranges: ranges.map(({ start, end }) => [start, end]),
      fragments:
        fragmentsProblem(layout, FRAGMENTS) === null ? fragmentVectors(layout, ranges) : [],
    };
  });
}

/** The shard that has the row of each key. */
function rowShardVectors() {
  const keys = [0, 1, 2, 3, 4, 5, 6, 7, 8, 1_000, 65_535, 65_536, 16_777_217, 2 ** 31 - 1];
  return [2, 3, 4, 64].map((shards) => {
    return { shards, keys, owners: keys.map((key) => shardOfRow(key, shards)) };
  });
}

const FRAGMENTS = 3;

/** Trainable elements of each of so many fragments, in each range. */
function fragmentVectors(layout: Layout, ranges: readonly Range[]) {
  return Array.from({ length: FRAGMENTS }, (_, index) =>
    fragmentPieces(layout, ranges, { index, count: FRAGMENTS }).map(({ gradient }) => [
      gradient.start,
      gradient.end,
    ]),
  );
}

/** The codes that close a connection, and whether a worker may connect again. */
function errorVectors() {
  return Object.entries(ERRORS).flatMap(([code, { close, retry }]) =>
    close === null ? [] : [{ code, close, connectAgain: retry !== 'never' }],
  );
}
