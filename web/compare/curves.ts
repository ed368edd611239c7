import type { Metrics } from '../../shared/rest.ts';
import type { PlotLine } from '../lines.ts';

/** One value of a run over steps, examples or time. */

export type Y =
  | 'validationError'
  | 'validationLoss'
  | 'trainingLoss'
  | 'gradientNorm'
  | 'learningRate'
  | 'staleness'
  /** A metric of the experiment: its name after the colon. */
  | `metric:${string}`;
export type X = 'step' | 'examples' | 'seconds';

export const YS: readonly (readonly [Y, string])[] = [
  ['trainingLoss', 'Training loss'],
  ['validationLoss', 'Validation loss'],
  ['validationError', 'Validation error'],
  ['gradientNorm', 'Gradient norm'],
  ['learningRate', 'Learning rate'],
  ['staleness', 'Staleness'],
];
export const XS: readonly (readonly [X, string])[] = [
  ['step', 'Step'],
  ['examples', 'Examples'],
  ['seconds', 'Time'],
];

const METRIC = 'metric:';
export const metricY = (name: string): Y => `${METRIC}${name}`;

export const labelOfY = (y: Y) =>
  YS.find(([value]) => value === y)?.[1].toLowerCase() ?? y.slice(METRIC.length);

/** The loss falls by factors, and so does the gradient: over two decades their axis is logarithmic. */
export const isLogByDefault = (y: Y) => y.endsWith('Loss') || y === 'gradientNorm';

/** A curve, and whether its points are few enough to be seen one by one. */
export interface RunCurve extends PlotLine {
  readonly points: boolean;
}

/** Points that have no place on the axis are left out: steps of older releases have no count of examples. */
export function curveOf({ training, evaluations }: Metrics, over: X, what: Y): RunCurve {
  if (what === 'validationLoss' || what === 'validationError' || what.startsWith(METRIC)) {
    const validation = evaluations.filter(({ part }) => part === 'validation');
    const y = validation.map(({ loss, error, metrics }) =>
      what === 'validationLoss'
        ? loss
        : what === 'validationError'
          ? error
          : (metrics[what.slice(METRIC.length)] ?? null),
    );
    const x = validation.map(({ step, seconds }) =>
      over === 'step' ? step : over === 'seconds' ? seconds : examplesAt(training, step),
    );
    return { x, y, points: x.length <= 40 };
  }
  const column = {
    trainingLoss: 'loss',
    gradientNorm: 'gradientNorm',
    learningRate: 'learningRate',
    staleness: 'staleness',
  } as const;
  const y: (number | null)[] = [];
  const x: number[] = [];
  for (const [i, at] of training[over].entries()) {
    if (at === null) continue;
    x.push(at);
    y.push(training[column[what as keyof typeof column]][i]!);
  }
  return { x, y, points: false };
}

/** The examples on the line between the points beside a step. */
function examplesAt({ step, examples }: Metrics['training'], at: number): number {
  const i = step.findIndex((each) => each >= at);
  if (i < 0) return examples.at(-1) ?? at;
  if (i === 0) return ((examples[0] ?? at) * at) / (step[0] || 1);
  const [a, b] = [examples[i - 1] ?? 0, examples[i] ?? 0];
  return a + ((b - a) * (at - step[i - 1]!)) / (step[i]! - step[i - 1]!);
}

/** Names of the metrics that the experiments measure, in alphabetical order. */
export function metricNames(all: Iterable<Metrics>): string[] {
  const names = new Set<string>();
  for (const { evaluations } of all) {
    for (const name of Object.keys(evaluations.at(-1)?.metrics ?? {})) names.add(name);
  }
  return [...names].sort();
}
