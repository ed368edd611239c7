import type { Evaluation, Metrics } from './rest.ts';

/** The course of a run as named numbers at steps, for programs of others: TensorBoard, JSON lines. */

export interface Moment {
  readonly step: number;
  /** Seconds of training before it. */
  readonly seconds: number;
  /** The values by names like `train/loss`. */
  readonly values: Readonly<Record<string, number>>;
}

/** The points of the curves of training, oldest first. @param after only those of later steps. */
export function trainingMoments(training: Metrics['training'], after = -1): Moment[] {
  const from = training.step.findIndex((step) => step > after);
  if (from < 0) return [];
  return training.step.slice(from).map((step, k) => {
    const i = from + k;
    return {
      step,
      seconds: training.seconds[i]!,
      values: known({
        'train/loss': training.loss[i],
        'train/minibatch_loss': training.minibatchLoss[i],
        'train/learning_rate': training.learningRate[i],
        'train/momentum': training.momentum[i],
        'train/gradient_norm': training.gradientNorm[i],
        'train/staleness': training.staleness[i],
        'train/examples': training.examples[i],
      }),
    };
  });
}

/** Named by the part, like `validation/loss`. */
export function evaluationMoment(evaluation: Evaluation): Moment {
  const { step, seconds, part, loss, error, epoch, metrics } = evaluation;
  const own = Object.entries(metrics).map(([name, value]) => [`${part}/${name}`, value]);
  return {
    step,
    seconds,
    values: known({
      [`${part}/loss`]: loss,
      [`${part}/error`]: error,
      [`${part}/epoch`]: epoch,
      ...Object.fromEntries(own),
    }),
  };
}

function known(
  values: Readonly<Record<string, number | null | undefined>>,
): Record<string, number> {
  const pairs = Object.entries(values).filter(
    (pair): pair is [string, number] => typeof pair[1] === 'number' && Number.isFinite(pair[1]),
  );
  return Object.fromEntries(pairs);
}

/** Seconds since 1970 of a time as REST writes it. */
export const secondsOf = (iso: string): number => Date.parse(iso) / 1000;
