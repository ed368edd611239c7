import type { Metrics } from '../shared/rest.ts';

/** How fast a run makes updates once its workers are warm. Real runs and simulated ones are measured alike. */

/** The first updates, in which processes compile their code and record their graphs, are no part of it. */
const WARMING_SHARE = 0.1;

export interface TrainingRate {
  readonly updatesPerSecond: number;
  /** Where it begins in the points of the curve. */
  readonly from: number;
  /** Between its first point and the last, seconds; evaluations meanwhile are in it, that of the end is not. */
  readonly seconds: number;
}

/** @returns null: there are fewer than two points, or they came at one moment. */
export function trainingRate({
  step,
  seconds,
}: Pick<Metrics['training'], 'step' | 'seconds'>): TrainingRate | null {
  if (step.length < 2) return null;
  const last = step.length - 1;
  const [begin, end] = [step[0]!, step[last]!];
  const warm = begin + WARMING_SHARE * (end - begin);
  const found = step.findIndex((each) => each >= warm);
  const from = Math.min(found, last - 1);
  const span = seconds[last]! - seconds[from]!;
  if (!(span > 0)) return null;
  return { updatesPerSecond: (end - step[from]!) / span, from, seconds: span };
}
