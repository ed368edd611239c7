import type { ColumnProfile } from '../../worker/data/tables/table-profile.ts';
import { summarise } from '../../worker/data/tables/table-summary.ts';
import { presentNumbers } from './columns.ts';
import { comment } from './source.ts';

/** What all experiments that `init` writes have in common. */

/** What the file will say, and what is told beside it. */
export interface Draft {
  readonly source: string;
  readonly notes: readonly string[];
}

/** The share of the examples that is set apart for the test part, where there are enough of them. */
const TEST_SHARE = 0.15;
const TEST_EXAMPLES_MIN = 200;
/** @param given by the user. */
export const testShare = (examples: number, given?: number): number =>
  given ?? (examples >= TEST_EXAMPLES_MIN ? TEST_SHARE : 0);

export const VALIDATION_SHARE = 0.2;

/** For `downpour search`; `layers.hidden` reads the hyperparameters. */
export const SEARCH = `  // Where \`downpour search\` looks for better values.
  search: {
    learningRate: { kind: 'log', low: 0.0003, high: 0.03 },
    'hyperparameters.units': { kind: 'logInteger', low: 16, high: 256 },
    'hyperparameters.dropout': { kind: 'uniform', low: 0, high: 0.5 },
  },
`;

export const CLASS_RULES = `    optimizer: { kind: 'adam' },
    weightDecay: { rate: 0.0001 },
    earlyStopping: { patience: 20 },`;

/**
 * Decay apart from the gradient, whose size is that of the target's unit, squared. On diabetes of scikit-learn, 12
 * splits that are not those of docs/results.md, a rate of 1 brought the error from 2.9 % above ridge to 0.9 % below.
 */
export const QUANTITY_RULES = `    optimizer: { kind: 'adamw' },
    weightDecay: { rate: 1 },
    earlyStopping: { patience: 20, metric: 'loss' },`;

/** @param validates other examples do */
export function minibatchSize(count: number, validates = false): number {
  const trains = validates ? count : count - Math.max(1, Math.round(count * VALIDATION_SHARE));
  return Math.max(1, Math.min(count < 2_000 ? 16 : 64, trains));
}

export const LOGITS = `        // Logits: the softmax is in the loss.
        args.tf.layers.dense({ units: args.classCount }),`;

/**
 * A gradient of the squared error is about as large as the variance of the target, since the last layer multiplies by the
 * deviation. Adam adds 1e-8 to the root of the gradient's square: with 8e-8 the network for diabetes learnt nothing. With
 * 8e10 the square was infinite in float32.
 */
const DEVIATIONS = { least: 1e-3, most: 1e7 } as const;

/** Code that predicts a quantity. */
export interface QuantityCode {
  /** The last layers. */
  readonly layers: string;
  /** Fields of the experiment: the loss and the error. */
  readonly loss: string;
}

/** Learnt in deviations from the mean, since a step of the optimizer is of the size of the learning rate. */
export function quantityCode(target: ColumnProfile): QuantityCode {
  const { mean, deviation } = summarise(presentNumbers(target));
  const short = (value: number) => Number(value.toPrecision(3));
  const initial = (value: number) => `args.tf.initializers.constant({ value: ${short(value)} })`;
  const unit = target.unit === null ? `the unit of ${comment(target.name)}` : comment(target.unit);
  const loss =
    deviation === 0 || (deviation > DEVIATIONS.least && deviation < DEVIATIONS.most)
      ? `  loss: 'meanSquaredError',`
      : `  // In standard deviations: the optimizer computes with squares, and those of such numbers are too ${deviation < 1 ? 'small' : 'large'}.
  loss: (targets, predictions) => targets.sub(predictions).div(${short(deviation)}).square().mean(),`;
  return {
    loss: `${loss}\n  // In ${unit}.\n  error: (targets, predictions) => targets.sub(predictions).abs().mean(),`,
    layers: `        args.tf.layers.dense({ units: 1 }),
        // Not trained: converts to the unit of ${comment(target.name)} by its standard deviation and mean.
        args.tf.layers.dense({
          units: 1,
          trainable: false,
          kernelInitializer: ${initial(deviation)},
          biasInitializer: ${initial(mean)},
        }),`,
  };
}
