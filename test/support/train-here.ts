import type { Clip } from '../../server/core/fused.ts';
import { Parameters } from '../../server/core/parameters.ts';
import { createSchedule, momentumAt } from '../../server/core/schedule.ts';
import { bytesOf } from '../../shared/codec.ts';
import { type PartialConfig, resolveConfig } from '../../shared/config.ts';
import { permutation, STREAMS } from '../../shared/random.ts';
import type { PreparedData } from '../../worker/data/examples.ts';
import { gather } from '../../worker/data/gather.ts';
import { loadMnist } from '../../worker/data/mnist.ts';
import { prepareData } from '../../worker/data/prepare-data.ts';
import type { Experiment } from '../../worker/experiment.ts';
import { minibatchSeed } from '../../worker/minibatches.ts';
import { buildModel } from '../../worker/model.ts';

/**
 * A training by the server's own core and a worker's own model in this process, without wire or clock:
 * what one worker would do, to the bit, as quickly as the engine computes.
 */

export interface Trained {
  /** The loss of each minibatch. */
  readonly losses: readonly number[];
  /** The norm of each gradient, before clipping. */
  readonly gradientNorms: readonly number[];
  readonly training: { readonly loss: number; readonly error: number };
  readonly validation: { readonly loss: number; readonly error: number };
  /** Validation error of each epoch. */
  readonly errors: readonly number[];
  /** L2 norms of the trained tensors, by name. */
  readonly norms: Readonly<Record<string, number>>;
  /** Trained elements. */
  readonly parameters: number;
  readonly diverged: boolean;
}

export type Trainable = Pick<Experiment, 'model' | 'loss'> & Partial<Experiment>;

/** Trains for `config.epochsMax` epochs (default 5). */
export async function trainHere(
  prepared: PreparedData,
  experiment: Trainable,
  partial: PartialConfig = {},
): Promise<Trained> {
  const config = resolveConfig({ epochsMax: 5, minibatchSize: 32, learningRate: 0.1 }, partial);
  const { seed, minibatchSize, epochsMax, clip } = config;
  const data = () => Promise.reject(new Error('it is here already'));
  const model = await buildModel({ data, ...experiment }, config, prepared);
  const { layout } = model;
  const parameters = new Parameters(layout, config);
  parameters.initialise(await model.initialise(seed));
  const schedule = createSchedule(config.schedule, config);
  const limit = clip.value ?? Infinity;
  const part = (name: 'train' | 'validation', count: number) =>
    gather(
      prepared,
      name,
      Int32Array.from({ length: count }, (_, i) => i),
    );
  const held = part('validation', prepared.validation.count);
  const seen = part('train', Math.min(prepared.train.count, held.targets.length));
  const losses: number[] = [];
  const gradientNorms: number[] = [];
  const errors: number[] = [];
  let diverged = false;
  for (let epoch = 0; epoch < epochsMax! && !diverged; epoch++) {
    const order = permutation(seed, STREAMS.epoch + epoch, prepared.train.count);
    for (let start = 0; start < order.length && !diverged; start += minibatchSize) {
      const rows = order.subarray(start, start + minibatchSize);
      model.load(parameters.exchanged());
      const { loss, gradient } = await model.step(
        gather(prepared, 'train', rows),
        minibatchSeed(seed, { epoch, start }),
      );
      const push = parameters.stage(bytesOf(gradient), 'f32');
      const norm = Math.sqrt(parameters.squares(push, limit));
      const step = losses.length;
      const momentum = momentumAt(config.momentumSchedule, step);
      const options = {
        ...{ step: step + 1, learningRate: schedule.rate(step) },
        ...(momentum === undefined ? {} : { momentum }),
      };
      const clipped: Clip = { limit, factor: clip.norm && norm > clip.norm ? clip.norm / norm : 1 };
      losses.push(loss);
      gradientNorms.push(norm);
      diverged = !Number.isFinite(norm) || !parameters.update(push, clipped, options);
    }
    model.load(parameters.evaluated());
    const { loss, error } = await model.measure(held);
    errors.push(error);
    schedule.observe(loss);
  }
  const validation = await model.measure(held);
  const training = await model.measure(seen);
  const final = parameters.exchanged();
  const norms = Object.fromEntries(
    layout.tensors
      .filter(({ role }) => role === 'trainable')
      .map(({ name, offset, size }) => [
        name,
        Math.hypot(...final.subarray(offset, offset + size)),
      ]),
  );
  model.dispose();
  return {
    ...{ losses, gradientNorms, errors, norms, diverged, training, validation },
    parameters: layout.trainableSize,
  };
}

/** The first `count` real digits, of which a part validates. @param every pixels of each side kept: one of so many. */
export async function digits(
  count: number,
  validationFraction = 0.5,
  every = 1,
): Promise<PreparedData> {
  const { train, classCount, source } = await loadMnist({ dataFolder: 'no folder: the package' });
  const side = Math.floor(28 / every);
  const values = new Float32Array(count * side * side);
  for (let i = 0, at = 0; i < count; i++) {
    for (let y = 0; y < side; y++) {
      for (let x = 0; x < side; x++, at++) {
        values[at] = train.inputs.values[i * 784 + y * every * 28 + x * every]! / 255;
      }
    }
  }
  return prepareData(
    {
      train: {
        count,
        inputs: { values, shape: [count, side, side, 1] },
        targets: { values: train.targets.values.subarray(0, count), shape: [count] },
      },
      ...{ classCount: classCount!, source },
    },
    { seed: 1, validationFraction, standardise: 'none' },
  );
}
