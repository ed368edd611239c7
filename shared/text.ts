import type { ErrorMeasure } from './protocol.ts';
import type { GroupFacts, RunSummary, WorkerFailureFacts } from './rest.ts';

/** Figures as people read them, in the terminal, in reports and on the dashboard. */

/** How a figure is written; a dash for nothing. */
export type Format = (value: number | null | undefined) => string;

/** A share as a percentage with two decimals: `2.35 %`; a dash for nothing. */
export function percent(share: number | null | undefined): string {
  return share == null || !Number.isFinite(share) ? '–' : `${(share * 100).toFixed(2)} %`;
}

/**
 * How errors are told: a share of wrong answers as a percentage, all else as a number.
 * @param measure null: nobody has said, and what exceeds 1 is no share. @param number how numbers are told
 */
export function errorFormat(measure: ErrorMeasure | null | undefined, number: Format): Format {
  if (measure === 'misclassification') return percent;
  if (measure != null) return number;
  return (error) => (error != null && error > 1 ? number(error) : percent(error));
}

/** How far the next update of several pushes is: `5 of 16 pushes`. */
export function collectingText({
  pushes,
  of,
  secondsLeft,
}: NonNullable<RunSummary['collecting']>): string {
  const wait = secondsLeft === null ? '' : `, made in ${secondsLeft.toFixed(1)} s at the latest`;
  return `${pushes}${of === null ? '' : ` of ${of}`} push${(of ?? pushes) === 1 ? '' : 'es'}${wait}`;
}

/** Which worker of a run failed, and why; what to do comes with the reason. */
export function failureText({ worker, code, message, step, count }: WorkerFailureFacts): string {
  const times = count === 1 ? '' : ` (${count} workers did at this step)`;
  return `worker ${worker} failed at step ${step}${times}: ${code} ${message}`;
}

/** Whether a group is trained, in words. */
export function groupText({
  frozen,
  trainedFrom,
  everySteps,
}: Pick<GroupFacts, 'frozen' | 'trainedFrom' | 'everySteps'>): string {
  if (frozen) return trainedFrom === null ? 'frozen' : `frozen until step ${trainedFrom}`;
  const since = trainedFrom ? ` from step ${trainedFrom} on` : '';
  return `trained${since}${everySteps > 1 ? `, at every ${everySteps}. step` : ''}`;
}
