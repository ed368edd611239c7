import type { Measures } from '../measures.ts';
import type { NoiseSource } from '../noise.ts';
import { type ObjectiveCall, valuesOf } from '../objective.ts';
import type { Tensor } from '../tf.ts';
import type { DataShape } from './data-shape.ts';
import type { Instance } from './instance.ts';
import { sidesOf } from './tensors.ts';

/** What a model is trained for: measures of targets and predictions, or an objective. */
export interface Goal {
  /** The loss in training, of shape []. */
  trainingLoss(call: GoalCall): Tensor;
  /** Loss and error first, then metrics, each of shape []. */
  measure(call: GoalCall): readonly (readonly [name: string, value: Tensor])[];
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
  { loss, trainingLoss, error, metrics }: Measures,
  data: DataShape,
): Goal {
  return {
    trainingLoss({ instance, fields, noise }) {
      const { inputs, targets } = sidesOf(fields, data);
      return trainingLoss(targets, instance.predict(inputs, true, noise));
    },
    measure({ instance, fields }) {
      const { inputs, targets } = sidesOf(fields, data);
      const predictions = instance.predict(inputs, false);
      const value = loss(targets, predictions);
      return [
        ['loss', value],
        ['error', error === loss ? value : error(targets, predictions)],
        ...metrics.map(([name, metric]) => [name, metric(targets, predictions)] as const),
      ];
    },
  };
}

export function goalOfObjective(own: Pick<ObjectiveCall, 'objective' | 'hyperparameters'>): Goal {
  return {
    trainingLoss: (call) => valuesOf({ ...own, ...call, training: true }).loss,
    measure(call) {
      const { loss, error, metrics } = valuesOf({ ...own, ...call, training: false });
      return [['loss', loss], ['error', error ?? loss], ...metrics];
    },
  };
}
