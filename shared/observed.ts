import Type, { type Static } from 'typebox';
import { LIMITS } from './limits.ts';
import {
  about,
  durationMs,
  measured,
  natural,
  orNull,
  run,
  share,
  size,
  tensorName,
} from './message-fields.ts';

/** What a worker sends of the weights, gradients and activations that it looked at. */

/** Counts of values in equal parts of [low, high]. */
export const HistogramSchema = Type.Object(
  {
    low: measured('The smallest value.'),
    high: measured('The largest value.'),
    counts: Type.Array(natural('Values in one part.'), {
      minItems: 1,
      maxItems: LIMITS.histogramBinsMax,
      description: 'How many values are in each of these equal parts of low to high.',
    }),
  },
  about('How values are distributed.'),
);
export type Histogram = Static<typeof HistogramSchema>;

/** A trainable tensor at one step, by elements that lie evenly in it. */
export const TensorObservationSchema = Type.Object(
  {
    name: tensorName('Name of a trainable tensor.'),
    weights: HistogramSchema,
    gradients: HistogramSchema,
    updates: orNull(
      HistogramSchema,
      'Mean of one update over `updateSteps`. Null: unknown, because parameters come in bf16 or were initialised again.',
    ),
    gradientNorm: size('L2 norm of the gradient of the whole tensor.'),
    updateRatio: orNull(
      size('Ratio.'),
      'L2 norm of one update over that of the weights. Null: unknown, or the weights are 0.',
    ),
    elements: natural('Elements that were looked at, evenly spaced in the tensor.'),
    never: natural('Elements whose gradient was 0 in all samples.'),
    rare: natural('Elements whose gradient was seldom other than 0.'),
  },
  about('A trainable tensor at one step.'),
);
export type TensorObservation = Static<typeof TensorObservationSchema>;

/** The output of a layer for some examples of the minibatch. */
export const LayerObservationSchema = Type.Object(
  {
    layer: Type.String({ maxLength: LIMITS.nameLengthMax, description: 'Name of the layer.' }),
    activation: orNull(
      Type.String({ maxLength: 100 }),
      'Its activation function: `relu`. Null: it has none.',
    ),
    values: HistogramSchema,
    saturated: orNull(
      share('Share.'),
      'Share of the values at the flat ends of the activation function. Null: it has no flat ends.',
    ),
    dead: share('Share of the units that gave the same value for all examples.'),
  },
  about('The output of a layer for some examples of the minibatch.'),
);
export type LayerObservation = Static<typeof LayerObservationSchema>;

/** Weights, gradients, updates and activations at one step; nobody answers. */
export const ObservedSchema = Type.Object(
  {
    type: Type.Literal('observed'),
    run: run(),
    step: natural('The step of the sampled parameters.'),
    updateSteps: natural('Updates, of all workers, between the two pulls that `updates` compares.'),
    samples: natural('Samples of this worker so far: what `never` and `rare` count over.'),
    costMs: durationMs('Time spent on samples since the last one was sent, in ms.'),
    tensors: Type.Array(TensorObservationSchema, {
      maxItems: LIMITS.observedMax,
      description: 'Trainable tensors.',
    }),
    layers: Type.Array(LayerObservationSchema, {
      maxItems: LIMITS.observedMax,
      description: 'Layers.',
    }),
  },
  about(
    'A sample of weights, gradients and activations for the dashboard. The server does not answer it. A worker need not send any.',
  ),
);
export type Observed = Static<typeof ObservedSchema>;
