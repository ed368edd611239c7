import type { InnerPartMetric, Measures } from '../measures.ts';
import type { NoiseSource } from '../noise.ts';
import { type ObjectiveCall, valuesOf } from '../objective.ts';
import type { Tensor } from '../tf.ts';
import { type DataShape, invalid } from './data-shape.ts';
import type { Instance } from './instance.ts';
import { sidesOf } from './tensors.ts';

/** What a model is trained for: measures of targets and predictions, or an objective. */
export interface Goal {
  /** Whether `train` gives gradients, which the loss need not have then. */
  readonly givesGradients: boolean;
  train(call: GoalCall): TrainingValues;
  measure(call: GoalCall): MeasuredTensors;
  /** Metrics that need all examples of a part. */
  readonly ofParts: readonly Pick<InnerPartMetric, 'name' | 'width' | 'over'>[];
}

export interface MeasuredTensors {
  /** Loss and error first, then metrics, each of shape []. */
  readonly means: readonly (readonly [name: string, value: Tensor])[];
  /** One for each of `ofParts`, shape [n, width]. */
  readonly each: readonly Tensor[];
}

export interface TrainingValues {
  /** Its shape is []. */
  readonly loss: Tensor;
  /** One for each trained tensor, by name; null: they are those of the loss. */
  readonly gradients: Readonly<Record<string, Tensor>> | null;
  /** The losses that `loss` is the sum of, where they have names: one may have the name of a group. */
  readonly named?: Readonly<Record<string, Tensor>>;
  /** What the next minibatch gets, in the order of the layout. */
  readonly carried: readonly Tensor[];
}

export interface GoalCall {
  readonly instance: Instance;
  readonly fields: Readonly<Record<string, Tensor>>;
  readonly noise: NoiseSource;
  /** Updates applied to the parameters. */
  readonly step: number;
  readonly onHost?: (why: string) => void;
}

export function goalOfMeasures(
  { loss, trainingLoss, error, metrics, ofParts }: Measures,
  data: DataShape,
): Goal {
  return {
    givesGradients: false,
    ofParts,
    train({ instance, fields, noise }) {
      const { inputs, targets } = sidesOf(fields, data);
      const loss = trainingLoss(targets, instance.predict(inputs, true, noise));
      return { loss, gradients: null, carried: [] };
    },
    measure({ instance, fields }) {
      const { inputs, targets } = sidesOf(fields, data);
      const predictions = instance.predict(inputs, false);
      const value = loss(targets, predictions);
      return {
        means: [
          ['loss', value],
          ['error', error === loss ? value : error(targets, predictions)],
          ...metrics.map(([name, metric]) => [name, metric(targets, predictions)] as const),
        ],
        each: ofParts.map((metric) => metric.each(targets, predictions)),
      };
    },
  };
}

export function goalOfObjective(
  own: Pick<ObjectiveCall, 'objective' | 'hyperparameters'>,
  givesGradients: boolean,
): Goal {
  return {
    givesGradients,
    ofParts: [],
    train(call) {
      const values = valuesOf({ ...own, ...call, training: true });
      if ((values.gradients !== null) === givesGradients) return values;
      throw invalid(
        `objective() returned ${givesGradients ? 'no gradients, and returned some' : 'gradients, and returned none'} when it was tried before training; return them in each call with training: true, or in none`,
      );
    },
    measure(call) {
      const { loss, error, metrics } = valuesOf({ ...own, ...call, training: false });
      return { means: [['loss', loss], ['error', error ?? loss], ...metrics], each: [] };
    },
  };
}
