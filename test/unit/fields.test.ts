import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { aboutModel } from '../../cli/trained/checkpoint-copy.ts';
import { decide, probabilitiesOf } from '../../shared/answers.ts';
import { resolveConfig } from '../../shared/config.ts';
import { decodeFacts, encodeFacts } from '../../shared/data-facts.ts';
import { LIMITS } from '../../shared/limits.ts';
import { answersOf, answersOfEach } from '../../worker/answers.ts';
import { checkExperiment as checkAll } from '../../worker/check/check.ts';
import { dataSummary, examplesLike, factsOf, mustBeDataOf } from '../../worker/data/facts.ts';
import { gather } from '../../worker/data/gather.ts';
import { dataOf, type GivenData, type GivenExamples } from '../../worker/data/given.ts';
import { packData, unpackData } from '../../worker/data/packed.ts';
import { prepareData } from '../../worker/data/prepare-data.ts';
import { viewerOf } from '../../worker/data/views.ts';
import { evaluate } from '../../worker/evaluate.ts';
import { type Experiment, mustBeExperiment, type Tensor } from '../../worker/experiment.ts';
import { buildModel } from '../../worker/model.ts';
import { prepareOptions } from '../../worker/prepare.ts';
import { seenMinibatch } from '../../worker/seen-minibatch.ts';
import { type AboutField, encodeFields } from '../../worker/serving/fields.ts';
import { useModels } from '../support/models.ts';

const COUNT = 40;
const rows = <T>(of: (i: number) => T): T[] => Array.from({ length: COUNT }, (_, i) => of(i));

/** A shop: the id of a town, a time in ms and an area; a price, and one of three kinds. */
const shop = (): GivenData & { readonly train: GivenExamples } => ({
  train: {
    inputs: {
      town: { values: Int32Array.from(rows((i) => i % 5)), shape: [COUNT] },
      sold: {
        values: Float64Array.from(rows((i) => [1.7e12 + 1000 * i, 20 + (i % 7)]).flat()),
        shape: [COUNT, 2],
        names: ['time', 'area'],
      },
    },
    targets: {
      price: { values: Float32Array.from(rows((i) => (i % 7) / 7)), shape: [COUNT, 1] },
      kind: {
        values: Int32Array.from(rows((i) => (i % 5) % 3)),
        shape: [COUNT],
        classes: ['flat', 'house', 'hut'],
      },
    },
  },
});

const twoInTwoOut: Experiment = {
  data: shop,
  standardise: 'feature',
  model: ({ tf }) => {
    const town = tf.input({ shape: [], name: 'town', dtype: 'int32' });
    const sold = tf.input({ shape: [2], name: 'sold' });
    const towns = tf.layers
      .embedding({ inputDim: 5, outputDim: 3 })
      .apply(tf.layers.reshape({ targetShape: [1] }).apply(town)) as never;
    const both = tf.layers
      .concatenate()
      .apply([tf.layers.flatten().apply(towns) as never, sold]) as never;
    const hidden = tf.layers.dense({ units: 6, activation: 'tanh' }).apply(both) as never;
    const price = tf.layers.dense({ units: 1, name: 'price' }).apply(hidden) as never;
    const kind = tf.layers.dense({ units: 3, name: 'kind' }).apply(hidden) as never;
    return tf.model({ inputs: [town, sold], outputs: [price, kind] });
  },
  loss: { price: 'meanSquaredError', kind: 'softmaxCrossEntropy' },
  lossWeights: { kind: 0.5 },
  metrics: { price: { absolute: (t, p) => t.sub(p).abs() } },
};

const config = resolveConfig({ seed: 4, minibatchSize: 8, learningRate: 0.05 });
const prepare = (experiment: Experiment, given: unknown = experiment.data({} as never)) =>
  prepareData(dataOf(given), prepareOptions(experiment, config));

const models = useModels();
async function build(changes: Partial<Experiment> = {}, given: unknown = shop()) {
  const experiment = { ...twoInTwoOut, ...changes };
  const prepared = prepare(experiment, given);
  const model = await buildModel(experiment, config, prepared);
  models.push(model);
  return { experiment, prepared, model };
}

const problemOf = (f: () => unknown): Promise<string> =>
  Promise.resolve()
    .then(f)
    .then(
      () => 'nothing was refused',
      (error) => `${error.code}: ${error.message}`,
    );

describe('a model of two inputs and two outputs', () => {
  test('answers one by one, by each output: the means are those of an evaluation', async () => {
    const absolute = (t: Tensor, p: Tensor) => t.sub(p).abs().mean();
    const { experiment, model, prepared } = await build({
      loss: { price: absolute as never, kind: 'softmaxCrossEntropy' },
    });
    const parameters = await model.initialise(4);
    const { metrics } = await evaluate(model, parameters, prepared, 'validation');
    model.load(parameters);
    const { each, rows } = await answersOfEach(model, experiment, prepared, { part: 'validation' });
    expect([...rows]).toEqual([...rows.keys()]);
    expect(each.map(({ output }) => output.name)).toEqual(['price', 'kind']);
    for (const { output, answers } of each) {
      expect(answers.count).toBe(prepared.validation.count);
      const mean = answers.losses.reduce((a, b) => a + b, 0) / answers.count;
      expect(mean).toBeCloseTo(metrics[`${output.name}/loss`]!, 5);
    }
    const kinds = each[1]!;
    expect(kinds.output.classes).toEqual(['flat', 'house', 'hut']);
    const { classes } = decide(probabilitiesOf(kinds.answers), 3);
    const wrong = classes.filter((answer, i) => answer !== kinds.answers.truths[i]).length;
    expect(wrong / kinds.answers.count).toBeCloseTo(metrics['kind/error']!, 5);
    const one = await answersOf(model, experiment, prepared, {
      ...{ part: 'validation', output: 'kind' },
    });
    expect(one.answers.outputs).toEqual(kinds.answers.outputs);
  });

  test.each([
    [undefined, 'DP_USAGE: the experiment has the outputs price, kind: choose one, for example'],
    ['pricee', "DP_USAGE: --output is 'pricee', which is no output .*did you mean 'price'"],
    ['town', 'DP_USAGE: .*its outputs are price, kind'],
  ])('tells which outputs there are when it is asked for %s', async (output, words) => {
    const { experiment, model, prepared } = await build();
    const answer = () => answersOf(model, experiment, prepared, { part: 'validation', output });
    expect(await problemOf(answer)).toMatch(new RegExp(words));
  });

  test('shows an example by its fields, and a minibatch as the model sees it', async () => {
    const { model, prepared } = await build({
      batch: ({ town, sold, ...targets }) => ({ town, sold: sold!.mul(0), ...targets }) as never,
    });
    expect(viewerOf(prepared, 'validation')(0)).toMatchObject({
      kind: 'text',
      text: expect.stringMatching(
        /^town: \d\ntime: 1\.7e12|^town: \d\ntime: 1700000\d*\narea: \d+$/,
      ),
    });
    const [seen] = await seenMinibatch(model, prepared, config, 1);
    expect(seen).toMatchObject({
      shown: { kind: 'text', text: expect.stringMatching(/^town: \d\ntime: 0\narea: 0$/) },
      target: [expect.any(Number)],
    });
  });

  test('trains: the loss is the weighted sum of those of the outputs', async () => {
    const { model, prepared } = await build();
    const parameters = (await model.initialise(4)).slice();
    const before = await evaluate(model, parameters, prepared, 'validation');
    const minibatch = gather(
      prepared,
      'train',
      Array.from({ length: 32 }, (_, i) => i),
    );
    for (let step = 0; step < 200; step++) {
      model.load(parameters.slice());
      const { gradient } = await model.step(minibatch, step);
      for (let i = 0; i < gradient.length; i++) parameters[i]! -= 0.3 * gradient[i]!;
    }
    const after = await evaluate(model, parameters, prepared, 'validation');
    expect(after.loss).toBeLessThan(0.7 * before.loss!);
    const names = ['kind/error', 'kind/loss', 'price/absolute', 'price/loss'];
    expect(Object.keys(after.metrics).sort()).toEqual(names);
    const { metrics } = after;
    expect(after.loss).toBeCloseTo(metrics['price/loss']! + 0.5 * metrics['kind/loss']!, 5);
    expect(after.error).toBe(after.loss);
  });

  test('reports the error of the output that it names', async () => {
    const { model, prepared } = await build({ error: { kind: 'misclassification' } });
    const measured = await model.measure(gather(prepared, 'train', [0, 1, 2]));
    expect(measured.error).toBe(measured.metrics['kind/error']);
    expect(model.errorMeasure).toBe('misclassification');
  });

  test('has the gradient that finite differences have, and passes the checks', async () => {
    const experiment = twoInTwoOut;
    const prepared = prepare(experiment);
    const findings = await checkAll({
      ...{ experiment, config, prepared, steps: 20 },
      updater: (layout, initial) => ({
        parameters: initial.slice(0, layout.exchangedSize),
        rows: null,
        apply({ gradient }) {
          gradient.forEach((g, i) => {
            this.parameters[i]! -= 0.1 * g;
          });
          return true;
        },
      }),
    });
    const verdicts = Object.fromEntries(findings.map(({ check, verdict }) => [check, verdict]));
    expect(verdicts).toMatchObject({ gradient: 'ok', independence: 'ok', fields: 'advice' });
    expect(findings.filter(({ verdict }) => verdict === 'problem')).toEqual([]);
  });

  test('gets ids as whole numbers, and large numbers centred before they become float32', async () => {
    const seen: string[] = [];
    const { model, prepared } = await build({
      batch: (fields) => {
        seen.push(...Object.entries(fields).map(([name, { dtype }]) => `${name} ${dtype}`));
        return fields;
      },
    });
    const minibatch = gather(prepared, 'train', [0, 1, 2, 3]);
    seen.length = 0;
    await model.step(minibatch, 1);
    expect(seen).toEqual(['town int32', 'sold float32', 'price float32', 'kind int32']);
    const { values } = minibatch.fields!.sold!;
    // A second is 1,000 of 11,500 ms: it would be lost at 1.7e12, where float32 numbers are 131,072 apart.
    expect(values[2]! - values[0]!).toBeGreaterThan(0.05);
  });

  test('keeps a schema of its fields, which survives encoding and builds the same model', async () => {
    const { experiment, prepared, model } = await build();
    const facts = factsOf(prepared);
    expect(decodeFacts(encodeFacts(facts))).toEqual(facts);
    expect(facts.fields!.map(({ name, role, classes }) => [name, role, classes])).toEqual([
      ['town', 'input', null],
      ['sold', 'input', null],
      ['price', 'target', null],
      ['kind', 'target', ['flat', 'house', 'hut']],
    ]);
    const again = await buildModel(experiment, config, examplesLike(facts));
    models.push(again);
    expect(again.layout).toEqual(model.layout);
    const known = { run: 'r', summary: dataSummary(prepared, []), facts };
    expect(() => mustBeDataOf(known, prepared)).not.toThrow();
    const other = shop();
    (other.train.inputs as { town: { values: Int32Array } }).town.values[3] = 0;
    expect(() => mustBeDataOf(known, prepare(experiment, other))).toThrow(/have changed/);
    // The run's own standardisation is used, not that of the rows that there are now.
    const used = prepareData(dataOf(shop()), { ...prepareOptions(experiment, config), facts });
    expect(used.transforms).toEqual(prepared.transforms);
  });

  test('reaches a page as it is', () => {
    const data = dataOf(shop());
    const pieces = packData(data);
    const file = new Uint8Array(pieces.reduce((sum, piece) => sum + piece.length, 0));
    let at = 0;
    for (const piece of pieces) {
      file.set(piece, at);
      at += piece.length;
    }
    expect(unpackData(file).train).toEqual(data.train);
    expect(prepare(twoInTwoOut, unpackData(file)).fingerprint).toBe(
      prepare(twoInTwoOut).fingerprint,
    );
  });

  test('reaches a page without targets, too', () => {
    const data = dataOf({ train: { inputs: { values: [[1], [2], [3]] } } });
    const pieces = packData(data);
    const file = new Uint8Array(pieces.reduce((sum, piece) => sum + piece.length, 0));
    pieces.reduce((at, piece) => {
      file.set(piece, at);
      return at + piece.length;
    }, 0);
    expect(dataOf(unpackData(file))).toEqual(data);
  });

  test('may be a function of variables', async () => {
    const { model } = await build({
      model: ({ tf }) => {
        const w = tf.variable(tf.ones([2, 1]));
        const towns = tf.variable(tf.ones([5, 3]));
        return {
          variables: { w, towns },
          predict: (inputs: unknown) => {
            const { town, sold } = inputs as Record<string, Tensor>;
            return {
              price: tf.matMul(sold!, w as never),
              kind: tf.matMul(tf.cast(tf.oneHot(town!, 5), 'float32'), towns as never),
            };
          },
        };
      },
    });
    const { gradient } = await model.step(gather(prepare(twoInTwoOut), 'train', [0, 1, 2]), 1);
    expect(gradient.some((g) => g !== 0)).toBe(true);
  });

  test('leaves no tensor behind', async () => {
    const { model, prepared } = await build();
    const { tf } = await import('../../worker/tf.ts');
    const minibatch = gather(prepared, 'train', [0, 1, 2]);
    await model.step(minibatch, 1);
    const before = tf.memory().numTensors;
    for (let seed = 0; seed < 3; seed++) {
      await model.step(minibatch, seed);
      await model.measure(minibatch);
      await model.predict(minibatch);
      await model.activations(minibatch);
    }
    expect(tf.memory().numTensors).toBe(before);
  });
});

describe('what does not fit is refused, and the message names the field', () => {
  const changed = (change: (data: ReturnType<typeof shop>) => unknown) => {
    const data = shop();
    change(data);
    return data;
  };
  type Any = { train: { inputs: Record<string, never>; targets: Record<string, never> } };
  const cases: [string, Partial<Experiment>, unknown, RegExp][] = [
    [
      'an input without a field',
      {
        model: ({ tf }) =>
          tf.sequential({ layers: [tf.layers.dense({ units: 1, inputShape: [2], name: 'out' })] }),
      },
      undefined,
      /input '.*', and the data have no such field; .*'town', 'sold'.*tf\.input/,
    ],
    [
      'another shape',
      {},
      changed(
        (d) =>
          ((d as unknown as Any).train.inputs.sold = {
            values: new Float32Array(COUNT),
            shape: [COUNT, 1],
          } as never),
      ),
      /input 'sold' of shape \[n,2\], but the data have \[n,1\]/,
    ],
    [
      'rows that are missing',
      {},
      changed(
        (d) =>
          ((d as unknown as Any).train.targets.price = {
            values: new Float32Array(3),
            shape: [3],
          } as never),
      ),
      /field 'price' of the train part: shape \[3\] means 3 examples, but there are 40/,
    ],
    [
      'text',
      {},
      changed(
        (d) => ((d as unknown as Any).train.inputs.sold = { values: rows(() => 'x') } as never),
      ),
      /field 'sold' of the train part, row 0: the text 'x' is not a number/,
    ],
    [
      'NaN',
      {},
      changed(
        (d) => ((d.train.inputs as { sold: { values: Float64Array } }).sold.values[5] = Number.NaN),
      ),
      /DP_DATA_CORRUPT: field 'sold': .*row 2, column 1 \('area'\)/,
    ],
    [
      'a label that is no class',
      {},
      changed((d) => ((d.train.targets as { kind: { values: Int32Array } }).kind.values[1] = 7)),
      /DP_DATA_LABEL: field 'kind': train part, row 1: label 7/,
    ],
    [
      'an id without a row',
      {},
      changed((d) => ((d.train.inputs as { town: { values: Int32Array } }).town.values[1] = 9)),
      /field 'town': .*: 9 is not an id of the embedding/,
    ],
    [
      'a loss of no target',
      { loss: { prize: 'meanSquaredError', kind: 'softmaxCrossEntropy' } as never },
      undefined,
      /loss names 'prize'.*did you mean 'price'/,
    ],
    [
      'a target without a loss',
      { loss: { kind: 'softmaxCrossEntropy' } as never },
      undefined,
      /none for the target 'price'/,
    ],
    [
      'one loss for two',
      { loss: 'meanSquaredError' },
      undefined,
      /targets 'price', 'kind': give each its loss, loss: \{ price: …, kind: … \}/,
    ],
    [
      'a weight of no target',
      { lossWeights: { kinds: 2 } },
      undefined,
      /lossWeights names 'kinds'.*did you mean 'kind'/,
    ],
    [
      'metrics of no output',
      { metrics: { price: (t) => t.mean() } },
      undefined,
      /function for the output 'price'; give an object/,
    ],
    [
      'a standardisation of no input',
      { standardise: { towns: 'feature' } },
      undefined,
      /'towns', which is no input.*did you mean 'town'/,
    ],
    [
      'a name that is taken',
      {},
      changed(
        (d) => ((d as unknown as Any).train.targets.town = { values: rows(() => 1) } as never),
      ),
      /field 'town' .*inputs and targets both/,
    ],
    [
      'a name that no field may have',
      {},
      changed(
        (d) => ((d as unknown as Any).train.inputs['a b'] = { values: rows(() => 1) } as never),
      ),
      /field 'a b' .*allowed: letters/,
    ],
    [
      'classes of an input',
      {},
      changed(
        (d) =>
          ((d as unknown as Any).train.inputs.sold = {
            values: rows(() => [1, 2]),
            classes: ['a'],
          } as never),
      ),
      /field 'sold' .*only targets have classes/,
    ],
  ];
  test.each(cases)('%s', async (_, changes, given, message) => {
    expect(await problemOf(() => build(changes, given ?? shop()))).toMatch(message);
  });

  test('more fields than are allowed', async () => {
    const inputs = (count: number) => ({
      train: {
        inputs: Object.fromEntries(
          Array.from({ length: count }, (_, i) => [`f${i}`, { values: [1, 2] }]),
        ),
        targets: { values: [1, 2] },
      },
    });
    expect(() => dataOf(inputs(LIMITS.fieldsMax))).not.toThrow();
    expect(() => dataOf(inputs(LIMITS.fieldsMax + 1))).toThrow(
      /has 65 fields, masks included; at most 64 are allowed/,
    );
  });

  test('parts with other fields', async () => {
    const { town } = shop().train.inputs as { town: never };
    const test = { inputs: { town }, targets: shop().train.targets as never };
    expect(await problemOf(() => prepare(twoInTwoOut, { ...shop(), test }))).toMatch(
      /DP_DATA_MISMATCH: the test part has no field sold \(input\); the train part has it/,
    );
  });

  test('no targets, where a loss needs them', async () => {
    const { inputs } = shop().train;
    expect(await problemOf(() => prepare(twoInTwoOut, { train: { inputs } }))).toMatch(
      /has no targets; it has 'town', 'sold'\. Give targets.*objective/,
    );
  });

  test('wrong forms of losses, weights and metrics by output', () => {
    const check = (changes: object) => () => mustBeExperiment({ ...twoInTwoOut, ...changes }, 'x');
    expect(check({})).not.toThrow();
    expect(check({ loss: {} })).toThrow(/loss is \{\}; allowed: .*object with one of these/);
    expect(check({ lossWeights: { kind: 0 } })).toThrow(/lossWeights .*above 0/);
    expect(check({ error: { a: 'loss', b: 'loss' } })).toThrow(/error .*for one output/);
    expect(check({ metrics: { a: { b: 1 } } })).toThrow(/metrics is/);
    expect(check({ standardise: { a: 'all' } })).toThrow(/standardise is/);
  });
});

test('sequences are padded to the longest, and a mask says where they have numbers', () => {
  fc.assert(
    fc.property(
      fc.array(fc.array(fc.integer({ min: 1, max: 99 }), { maxLength: 6 }), {
        minLength: 2,
        maxLength: 12,
      }),
      fc.boolean(),
      (sequences, typed) => {
        fc.pre(sequences.some(({ length }) => length > 0));
        const values = typed ? sequences.map((s) => Int32Array.from(s)) : sequences;
        const { train } = dataOf({
          train: {
            inputs: { words: { values, pad: 0 } },
            targets: { values: sequences.map((_, i) => i), shape: [sequences.length] },
          },
        });
        const { words, words_mask: mask } = train.fields!;
        const longest = Math.max(...sequences.map(({ length }) => length));
        expect(words!.shape).toEqual([sequences.length, longest]);
        expect(mask).toMatchObject({ role: 'mask', shape: [sequences.length, longest] });
        expect(words!.values instanceof Int32Array).toBe(typed);
        sequences.forEach((sequence, row) => {
          for (let step = 0; step < longest; step++) {
            const at = row * longest + step;
            expect(words!.values[at]).toBe(sequence[step] ?? 0);
            expect(mask!.values[at]).toBe(step < sequence.length ? 1 : 0);
          }
        });
      },
    ),
    { numRuns: 40 },
  );
});

test('new examples are padded as those of the training were, and masked', () => {
  const pairs = [
    [
      [1, 2],
      [3, 4],
      [5, 6],
    ],
    [[7, 8]],
  ];
  const words = [[4, 5, 6], [9], [], [7, 8]];
  const prepared = prepare({
    data: () => ({
      train: {
        inputs: {
          words: { values: words.map((each) => Int32Array.from(each)), pad: -1 },
          pairs: { values: words.map((_, i) => pairs[i % 2]!), pad: 0.5 },
          size: { values: [1, 2, 3, 4], shape: [4] },
        },
        targets: { values: [1, 2, 3, 4], shape: [4] },
      },
    }),
    model: () => null as never,
    loss: 'meanSquaredError',
  });
  const facts = decodeFacts(encodeFacts(factsOf(prepared)));
  const pieces = packData({ ...prepared, classCount: undefined, classes: null } as never);
  expect(unpackData(Buffer.concat(pieces)).train.fields!.words).toMatchObject({ pad: -1 });
  expect(facts.fields!.map(({ name, pad }) => [name, pad])).toEqual([
    ...[
      ['words', -1],
      ['words_mask', undefined],
    ],
    ...[
      ['pairs', 0.5],
      ['pairs_mask', undefined],
      ['size', undefined],
    ],
  ]);
  // A copy of the run's facts has the same.
  expect(factsOf({ ...prepared, ...examplesLike(facts) }).fields).toEqual(facts.fields);
  const { fields } = aboutModel({
    ...{
      facts: {} as never,
      data: { run: null as never, summary: {} as never, facts },
      note: null,
    },
  }) as unknown as { fields: AboutField[] };
  const encode = (example: object) => {
    const encoded = encodeFields(fields, [example]);
    return Object.fromEntries(
      Object.entries(encoded).map(([name, { values }]) => [name, [...values]]),
    );
  };
  const one = { size: 2, pairs: [[7, 8]] };
  const padded = { pairs: [7, 8, 0.5, 0.5, 0.5, 0.5], pairs_mask: [1, 0, 0], size: [2] };
  expect(encode({ words: [7, 8], ...one })).toEqual({
    ...{ words: [7, 8, -1], words_mask: [1, 1, 0], ...padded },
  });
  expect(encode({ words: [], ...one })).toMatchObject({
    ...{ words: [-1, -1, -1], words_mask: [0, 0, 0] },
  });
  // By columns of a table, whose last cells are empty; and with a mask that is given.
  expect(encode({ words_0: '7', words_1: '8', words_2: '', ...one })).toMatchObject({
    ...{ words: [7, 8, -1], words_mask: [1, 1, 0] },
  });
  expect(encode({ words: [7, 8], words_mask: [1, 0, 0], ...one })).toMatchObject({
    words_mask: [1, 0, 0],
  });
  const wrong: [example: object, message: string][] = [
    [{ words: [1, 2, 3, 4], ...one }, "'words' has 4 numbers; the model takes 3"],
    [{ words: [1], size: 1, pairs: [1, 2, 3] }, "'pairs' has 3 numbers; each step"],
    [{ words_0: '', words_1: '8', ...one }, "'words' lacks its column 'words_0'"],
    [{ ...one }, "'words' is missing"],
  ];
  for (const [example, message] of wrong) expect(() => encode(example)).toThrow(message);
});

test('a model is given the mask if it has an input for it', async () => {
  const experiment: Experiment = {
    data: () => ({
      train: {
        inputs: { words: { values: [[1, 2], [3], [1, 2, 3], [2]], pad: 0 } },
        targets: { values: [1, 2, 3, 4], shape: [4] },
      },
    }),
    model: ({ tf }) => {
      const words = tf.input({ shape: [3], name: 'words' });
      const mask = tf.input({ shape: [3], name: 'words_mask' });
      const kept = tf.layers.multiply().apply([words, mask]) as never;
      return tf.model({
        inputs: [words, mask],
        outputs: tf.layers.dense({ units: 1 }).apply(kept) as never,
      });
    },
    loss: 'meanSquaredError',
  };
  const prepared = prepare(experiment);
  const model = await buildModel(experiment, config, prepared);
  models.push(model);
  expect((await model.predict(gather(prepared, 'train', [0, 1]))).shape).toEqual([2, 1]);
});

test.each([
  ['no number', { pad: 'x' }, /pad is the text 'x'; allowed: a number/],
  ['no sequences', { values: new Float32Array(2), shape: [2] }, /must be an array of sequences/],
  ['a number among sequences', { values: [[1], 2] }, /row 1: 2; allowed: an array/],
  ['nothing but empty ones', { values: [[], []] }, /longest of 2 sequences has 0 steps/],
])('padding is refused for %s', (_, change, message) => {
  const words = { values: [[1], [1, 2]], pad: 0, ...change };
  expect(() =>
    dataOf({ train: { inputs: { words }, targets: { values: [1, 2], shape: [2] } } }),
  ).toThrow(message);
});
