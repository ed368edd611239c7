/** Recurrent layers whose steps are one operation give what TensorFlow.js gives, values and all gradients. */
import * as fc from 'fast-check';
import { beforeAll, describe, expect, test } from 'vitest';
import { random } from '../../shared/random.ts';
import { openEngine } from '../../worker/engine.ts';
import { engineFolder, readEngine } from '../../worker/engine-folder.ts';
import { layers } from '../../worker/layers.ts';
import { layersPart } from '../../worker/model/layers-model.ts';
import { drawNoise, type NoiseRequest } from '../../worker/noise.ts';
import { adaptRecurrent } from '../../worker/recurrent/adapt.ts';
import { withFirstGradientsOnly } from '../../worker/recurrent/recurrence.ts';
import { type Layer, type Tensor, tf, type Variable } from '../../worker/tf.ts';

/** The most seen is 2e-6; float32 and another order of sums. */
const TOLERANCE = 2e-5;

interface Shape {
  readonly batch: number;
  readonly steps: number;
  readonly width: number;
}
const SMALL: Shape = { batch: 3, steps: 4, width: 2 };

function values(shape: readonly number[], seed: number): Tensor {
  const draw = random(seed, 0);
  const size = shape.reduce((product, d) => product * d, 1);
  return tf.tensor(
    Float32Array.from({ length: size }, () => draw.normal()),
    [...shape],
  );
}

interface Given {
  readonly shape?: Shape;
  readonly mask?: Tensor;
  readonly initialStates?: number;
  readonly training?: boolean;
}

/** The layer's outputs and the gradients by its input, its initial states and its weights, all drawn by seed. */
function computed(layer: Layer, given: Given, units: number) {
  const { shape = SMALL, mask, initialStates = 0, training = false } = given;
  const x = values([shape.batch, shape.steps, shape.width], 1);
  const states = Array.from({ length: initialStates }, (_, i) =>
    values([shape.batch, units], 100 + i),
  );
  if (!layer.built) {
    layer.build([shape.batch, shape.steps, shape.width] as never);
    layer.built = true;
  }
  const weights = layer.trainableWeights.map((weight) => weight.read() as Variable);
  // Larger recurrent weights would make rounding grow from step to step, in TensorFlow.js's layer as in ours.
  for (const [i, weight] of weights.entries()) {
    const drawn = values(weight.shape, 10 + i);
    weight.assign(tf.div(drawn, weight.shape.length > 1 ? Math.sqrt(weight.shape[0]!) : 1));
  }
  const outputs = (input: Tensor, ...initial: Tensor[]) =>
    [
      layer.call(input, {
        training,
        ...(mask ? { mask } : {}),
        ...(initial.length > 0 ? { initialState: initial } : {}),
      }),
    ].flat();
  const computed = outputs(x, ...states);
  const cotangents = computed.map((output, i) => values(output.shape, 1000 + i));
  const loss = (...xs: Tensor[]) =>
    tf.addN(outputs(...(xs as [Tensor])).map((y, i) => tf.sum(tf.mul(y, cotangents[i]!))));
  const byInputs = tf.grads(loss)([x, ...states]);
  const byWeights = tf.variableGrads(() => loss(x, ...states) as never, weights).grads;
  return [...computed, ...byInputs, ...weights.map(({ name }) => byWeights[name]!)];
}

function agree(make: () => Layer, given: Given, units: number): void {
  tf.tidy(() => {
    const fused = make();
    adaptRecurrent(fused, { noise: drawNoise });
    const inner = (fused as unknown as { forwardLayer?: Layer }).forwardLayer ?? fused;
    expect(Object.hasOwn(inner, 'call')).toBe(true);
    expectClose(computed(fused, given, units), computed(make(), given, units));
  });
}

function expectClose(ours: readonly Tensor[], theirs: readonly Tensor[]): void {
  expect(ours.map((t) => t.shape)).toEqual(theirs.map((t) => t.shape));
  for (const [i, tensor] of ours.entries()) {
    const size = Math.max(1, ...tf.abs(theirs[i]!).dataSync());
    const distance = Math.max(...tf.abs(tf.sub(tensor, theirs[i]!)).dataSync());
    expect(distance / size).toBeLessThan(TOLERANCE);
  }
}

const TABLE = 'multiplies a table that is smaller than the minibatch instead of the rows looked up';

/** Compares an embedding with a recurrent layer behind it. */
async function agreeOnTables(): Promise<void> {
  for (const [kind, more] of [
    ['lstm', { goBackwards: true }],
    ['gru', {}],
    ['simpleRNN', { useBias: false }],
    ['resetAfterGru', {}],
  ] as const) {
    // Twelve ids: of five rows, which is small, and of seven, which is not.
    for (const inputDim of [5, 7]) {
      const embedding = tf.layers.embedding({ inputDim, outputDim: 2, inputLength: 4 });
      const args = { units: 3, recurrentInitializer: 'glorotUniform', ...more } as never;
      const recurrent = (
        kind === 'resetAfterGru' ? layers.resetAfterGru(args) : tf.layers[kind as 'lstm'](args)
      ) as Layer;
      const model = tf.sequential({ layers: [embedding as never, recurrent] });
      const ids = tf.tensor2d([0, 1, 4, 4, 2, 0, 3, 1, 1, 1, 0, 4], [3, 4]);
      const weights = model.trainableWeights.map((weight) => weight.read() as Variable);
      const computedBy = (apply: () => Tensor) => {
        const { value, grads } = tf.variableGrads(
          () => tf.sum(tf.mul(apply(), values([3, 3], 1))) as never,
          weights,
        );
        return [value as Tensor, ...weights.map(({ name }) => grads[name]!)];
      };
      const expected = computedBy(() => model.apply(ids) as Tensor);
      const { part } = layersPart(model);
      const { kernels } = await tf.profile(() => {
        expectClose(
          computedBy(() => part.apply(ids, true, drawNoise) as Tensor),
          expected,
        );
        return tf.scalar(0);
      });
      const firstProduct = kernels.find(({ name }) => name === 'BatchMatMul')!;
      expect(firstProduct.inputShapes[0]).toEqual([inputDim === 5 ? 5 : 12, 2]);
    }
  }
}

describe.each(['cpu', 'wasm'] as const)(
  'a recurrent layer whose steps are one operation, on %s',
  (engine) => {
    beforeAll(async () => {
      await openEngine({ engine });
    });

    const activations = fc.constantFrom('tanh', 'sigmoid', 'relu', 'hardSigmoid', 'linear');
    const options = fc.record({
      kind: fc.constantFrom('lstm', 'gru', 'resetAfterGru', 'simpleRNN'),
      activation: fc.oneof(
        { weight: 2, arbitrary: fc.constant('tanh') },
        { weight: 1, arbitrary: activations },
      ),
      recurrentActivation: fc.constantFrom('sigmoid', 'hardSigmoid', 'tanh'),
      useBias: fc.boolean(),
      returnSequences: fc.boolean(),
      returnState: fc.boolean(),
      goBackwards: fc.boolean(),
      initial: fc.boolean(),
      mask: fc.option(fc.integer({ min: 0, max: 2 ** 12 - 1 }), { nil: null }),
      cells: fc.integer({ min: 1, max: 3 }),
      units: fc.constantFrom(3, 8, 9),
      shape: fc.constantFrom(
        SMALL,
        { batch: 1, steps: 2, width: 1 },
        { batch: 5, steps: 3, width: 3 },
      ),
    });

    test('agrees with the one of TensorFlow.js', () => {
      fc.assert(
        fc.property(options, ({ kind, mask, initial, cells, shape, units, ...args }) => {
          const cellArgs = { units, recurrentInitializer: 'glorotUniform', ...args } as never;
          const cell = `${kind}Cell`;
          const make = () =>
            (kind === 'resetAfterGru'
              ? layers.resetAfterGru(cellArgs)
              : cells === 1
                ? tf.layers[kind as 'lstm'](cellArgs)
                : tf.layers.rnn({
                    ...(args as object),
                    cell: Array.from({ length: cells }, () =>
                      tf.layers[cell as 'lstmCell'](cellArgs),
                    ),
                  } as never)) as Layer;
          const bits = Float32Array.from(
            { length: shape.batch * shape.steps },
            (_, i) => ((mask ?? 0) >> i) & 1,
          );
          agree(
            make,
            {
              shape,
              ...(mask === null ? {} : { mask: tf.tensor(bits, [shape.batch, shape.steps]) }),
              initialStates: initial
                ? (kind === 'resetAfterGru' ? 1 : cells) * (kind === 'lstm' ? 2 : 1)
                : 0,
            },
            units,
          );
        }),
        // The same layers each time: one in a thousand has an activation without a bound, by which rounding grows.
        { numRuns: 40, seed: 1 },
      );
    });

    test('has a single step too, for which TensorFlow.js has no gradient', () => {
      // One step is two of which the second does not count.
      const adapted = () => {
        const layer = tf.layers.lstm({ units: 3, recurrentInitializer: 'glorotUniform' }) as Layer;
        adaptRecurrent(layer, { noise: drawNoise });
        return layer;
      };
      tf.tidy(() => {
        const one = computed(adapted(), { shape: { batch: 1, steps: 1, width: 2 } }, 3);
        const mask = tf.tensor2d([1, 0], [1, 2]);
        const two = computed(adapted(), { shape: { batch: 1, steps: 2, width: 2 }, mask }, 3);
        two[1] = tf.slice(two[1]!, [0, 0, 0], [1, 1, 2]);
        expectClose(one, two);
      });
    });

    test('in both directions too', () => {
      for (const mergeMode of ['concat', 'sum', 'ave', 'mul'] as const) {
        for (const returnSequences of [false, true]) {
          const make = () =>
            tf.layers.bidirectional({
              layer: tf.layers.lstm({
                ...{ units: 3, returnSequences, recurrentInitializer: 'glorotUniform' },
              }) as never,
              mergeMode,
            }) as Layer;
          const mask = tf.tensor2d([1, 1, 0, 0, 1, 1, 1, 1, 1, 0, 0, 0], [3, 4]);
          agree(make, { mask }, 3);
        }
      }
    });

    test('asks its source for dropout: one mask for all steps, none when it predicts', () => {
      const requests: NoiseRequest[] = [];
      const args = { units: 3, dropout: 0.25, recurrentDropout: 0.5, returnSequences: true };
      const layer = tf.layers.gru({ ...args, recurrentInitializer: 'glorotUniform' }) as Layer;
      adaptRecurrent(layer, {
        noise: (request) => {
          requests.push(request);
          return tf.zeros([...request.shape]);
        },
      });
      tf.tidy(() => {
        const apply = (x: Tensor, training: boolean) => layer.apply(x, { training }) as Tensor;
        const first = apply(values([2, 4, 5], 1), true);
        expect(requests).toEqual([
          { kind: 'dropout', shape: [2, 5], rate: 0.25, seed: undefined },
          { kind: 'dropout', shape: [2, 3], rate: 0.5, seed: undefined },
        ]);
        // All inputs and all states are dropped.
        expect(first.dataSync()).toEqual(apply(values([2, 4, 5], 2), true).dataSync());
        apply(values([2, 4, 5], 1), false);
        expect(requests).toHaveLength(4);
      });
    });

    test('drops what the cells of TensorFlow.js drop of the same masks', () => {
      const masks: Readonly<Record<number, Tensor>> = {
        0.25: tf.tensor2d([0, 4 / 3, 4 / 3, 0, 4 / 3, 4 / 3], [3, 2]),
        0.5: tf.tensor2d([2, 0, 2, 0, 2, 2, 0, 0, 2], [3, 3]),
      };
      for (const kind of ['lstm', 'gru', 'simpleRNN'] as const) {
        const args = { units: 3, recurrentInitializer: 'glorotUniform', returnSequences: true };
        const make = (more: object) =>
          tf.layers[kind as 'lstm']({
            ...args,
            dropout: 0.25,
            recurrentDropout: 0.5,
            ...more,
          }) as Layer;
        tf.tidy(() => {
          const ours = make({});
          adaptRecurrent(ours, {
            noise: (request) => tf.clone(masks[(request as { rate: number }).rate]!),
          });
          const theirs = make({ dropoutFunc: (_: Tensor, rate: number) => tf.clone(masks[rate]!) });
          const [a, b] = [ours, theirs].map((layer) => computed(layer, { training: true }, 3));
          expectClose(a!, b!);
        });
      }
    });

    test('can be differentiated twice, as a penalty on its gradient needs', () => {
      const penalty = (layer: Layer) => {
        const x = values([2, 3, 2], 1);
        layer.build([2, 3, 2] as never);
        layer.built = true;
        const weights = layer.trainableWeights.map((weight) => weight.read() as Variable);
        for (const [i, weight] of weights.entries()) weight.assign(values(weight.shape, 10 + i));
        const slope = tf.grad((input) => tf.sum(tf.square(layer.call(input, {}) as Tensor)));
        const { value, grads } = tf.variableGrads(
          () => tf.sum(tf.square(slope(x))) as never,
          weights,
        );
        return [value as Tensor, ...weights.map(({ name }) => grads[name]!)];
      };
      tf.tidy(() => {
        const args = { units: 2, recurrentInitializer: 'glorotUniform' } as const;
        const make = () => tf.layers.lstm({ ...args, recurrentActivation: 'sigmoid' }) as Layer;
        const fused = make();
        adaptRecurrent(fused, { noise: drawNoise });
        expectClose(penalty(fused), penalty(make()));
      });
    });

    test('leaves alone what it does not know: a state kept by the layer, a cell of the user’s, an activation', () => {
      class Own extends (tf.layers.lstmCell({ units: 2 }).constructor as new (
        args: object,
      ) => Layer) {
        static readonly className = 'OwnCell';
      }
      const unknown = [
        tf.layers.lstm({ units: 2, stateful: true, batchInputShape: [1, 3, 2] }),
        tf.layers.gru({ units: 2, activation: 'elu' }),
        tf.layers.rnn({ cell: new Own({ units: 2 }) as never }),
      ] as Layer[];
      for (const layer of unknown) {
        adaptRecurrent(layer, { noise: drawNoise });
        expect(Object.hasOwn(layer, 'call')).toBe(false);
      }
    });

    test(TABLE, agreeOnTables);

    test('leaves no tensors behind', () => {
      const layer = tf.layers.lstm({ units: 2, recurrentInitializer: 'glorotUniform' }) as Layer;
      adaptRecurrent(layer, { noise: drawNoise });
      const run = () => tf.tidy(() => void withFirstGradientsOnly(() => computed(layer, {}, 2)));
      run();
      const before = tf.memory().numTensors;
      for (let i = 0; i < 3; i++) run();
      expect(tf.memory().numTensors).toBe(before);
    });
  },
);

test('several layers that have their states as inputs compute in one model, over and over', async () => {
  await openEngine({ engine: 'cpu' });
  const [source, target] = [0, 1].map(() => tf.input({ shape: [4, 2] }));
  const made = (args: object) =>
    tf.layers.lstm({ units: 3, recurrentInitializer: 'glorotUniform', ...args } as never);
  const [, ...states] = made({ returnState: true }).apply(source!) as never[];
  const first = made({ returnSequences: true }).apply(target!, { initialState: states });
  const second = made({}).apply(first, { initialState: states });
  const both = tf.layers.bidirectional({ layer: made({}) as never, mergeMode: 'concat' });
  const third = both.apply(target!, { initialState: [...states, ...states] });
  const model = tf.model({ inputs: [source!, target!], outputs: [second, third] as never });
  const given = [values([2, 4, 2], 1), values([2, 4, 2], 2)];
  const expected = model.predict(given) as Tensor[];
  const { part } = layersPart(model);
  for (let i = 0; i < 2; i++) {
    expectClose(part.apply(given, true, drawNoise) as Tensor[], expected);
  }
});

test('a mask reaches the layers behind it, and no other branch of the model', async () => {
  await openEngine({ engine: 'cpu' });
  const args = { units: 3, recurrentInitializer: 'glorotUniform' } as const;
  const masked = tf.input({ shape: [4] });
  const plain = tf.input({ shape: [4, 2] });
  const embedding = tf.layers.embedding({ inputDim: 5, outputDim: 2, maskZero: true });
  const [first, second, inner] = [0, 1, 2].map(() => tf.layers.lstm(args) as Layer) as [
    Layer,
    Layer,
    Layer,
  ];
  const both = tf.layers.bidirectional({ layer: tf.layers.gru(args) as never, mergeMode: 'sum' });
  const within = tf.sequential({
    layers: [tf.layers.dropout({ rate: 0.5, inputShape: [4, 2] }), inner as never],
  });
  const rows = embedding.apply(masked);
  const outputs = [
    first.apply(rows),
    second.apply(plain),
    both.apply(plain),
    within.apply(plain),
    within.apply(rows),
  ];
  const model = tf.model({ inputs: [masked, plain], outputs: outputs as never });
  const ids = tf.tensor2d([1, 2, 0, 0, 3, 0, 0, 0, 1, 2, 3, 4], [3, 4]);
  const x = values([3, 4, 2], 1);
  const mask = tf.notEqual(ids, 0);
  const lookedUp = embedding.apply(ids) as Tensor;
  const alone = [
    first.call(lookedUp, { mask }),
    second.call(x, {}),
    both.call(x as never, {}),
    inner.call(x, {}),
    inner.call(lookedUp, { mask }),
  ] as Tensor[];
  const { part } = layersPart(model);
  for (let i = 0; i < 2; i++) {
    expectClose(part.apply([ids, x], false, drawNoise) as Tensor[], alone);
  }
});

describe.skipIf(readEngine(engineFolder('cpu')) === null)(
  "an LSTM on the native engine, whose steps backward are TensorFlow's own operation (needs: downpour engine install)",
  () => {
    beforeAll(async () => {
      await openEngine({ engine: 'native', threads: 1 });
    });

    test(TABLE, agreeOnTables);

    test.each([
      ['its last output', {}, {}],
      ['all outputs and states', { returnSequences: true, returnState: true }, {}],
      ['backwards, from states that are given', { goBackwards: true }, { initialStates: 2 }],
      ['two cells', { cells: 2, returnState: true }, { initialStates: 4 }],
      ['gates that are not sigmoids', { recurrentActivation: 'hardSigmoid' }, {}],
    ] as const)('gives the gradients of the one of TensorFlow.js: %s', (_, args, given) => {
      const { cells, ...options } = { cells: 1, ...args };
      const cellArgs = {
        ...{ units: 3, recurrentActivation: 'sigmoid', recurrentInitializer: 'glorotUniform' },
        ...options,
      } as never;
      const make = () =>
        (cells === 1
          ? tf.layers.lstm(cellArgs)
          : tf.layers.rnn({
              ...(options as object),
              cell: [tf.layers.lstmCell(cellArgs), tf.layers.lstmCell(cellArgs)],
            } as never)) as Layer;
      for (const mask of [undefined, [1, 1, 0, 0, 1, 1, 1, 1, 0, 1, 0, 0]]) {
        tf.tidy(() => {
          agree(make, { ...given, ...(mask && { mask: tf.tensor2d(mask, [3, 4]) }) }, 3);
        });
      }
    });
  },
);
