import { resolveConfig } from '../shared/config.ts';
import { failureOf, failuresText } from './failures.ts';
import { chart, pointOf } from './plot.ts';
import { errorAxis, errorFormatOf, errorName, numberText, type Report } from './report.ts';
import { asShare, type Estimate, estimate, meanOf } from './statistics.ts';
import { bestEvaluation, listPlan, type StudyPlan, type Trial } from './study.ts';

/**
 * k-fold cross-validation (Deep Learning §5.3.1, Algorithm 5.1): each example validates once, so a
 * small data set gives as many validated examples as it has.
 */

export interface FoldsSettings {
  readonly folds: number;
  readonly stratified: boolean;
  /** Times that the whole is done, each with another seed and so with other folds. */
  readonly repeats: number;
  /** Parts of a configuration, weakest first. */
  readonly base: readonly unknown[];
}

export function foldsPlan({ folds, stratified, repeats, base }: FoldsSettings): StudyPlan {
  const { seed } = resolveConfig(...base);
  return listPlan(
    Array.from({ length: repeats * folds }, (_, i) => {
      const fold = i % folds;
      const repeat = Math.floor(i / folds);
      return {
        key: `${repeat}-${fold}`,
        label: `fold ${fold} of ${folds}${repeats > 1 ? `, seed ${seed + repeat}` : ''}`,
        config: resolveConfig(...base, {
          seed: seed + repeat,
          validation: { folds, fold, stratified },
        }),
      };
    }),
  );
}

/** One more wrong answer of fewer changes the error of a fold by more than a twentieth. */
const FEW = 20;
/** Above so many examples a hold-out part is large enough. */
const HOLD_OUT_EXAMPLES = 100_000;

/** @param command trains the final model for a number of updates. */
export function foldsReport(
  name: string,
  { folds, stratified, repeats }: FoldsSettings,
  trials: readonly Trial[],
  command: (steps: number) => string,
): Report {
  const bests = trials.map((trial) => bestEvaluation(trial));
  const errors = bests.map((best) => best?.error ?? null);
  const losses = bests.map((best) => best?.loss ?? null);
  const known = (values: readonly (number | null)[]) => {
    const finite = values.filter((value) => value !== null).filter(Number.isFinite);
    return finite.length === 0 ? null : estimate(finite);
  };
  const format = errorFormatOf(trials);
  const isShare = trials.some(({ errorMeasure }) => errorMeasure === 'misclassification');
  const [plain, loss] = [known(errors), known(losses)];
  const error = plain && isShare ? asShare(plain) : plain;
  const rows = trials.map(({ label, data, config }, i) => [
    label,
    String(config.validation.fold),
    String(data?.trainCount ?? '–'),
    String(data?.validationCount ?? '–'),
    format(errors[i]),
    numberText(losses[i]),
    String(bests[i]?.step ?? '–'),
  ]);
  const data = trials.find((trial) => trial.data)?.data;
  const examples = data ? data.trainCount + data.validationCount : null;
  const measured = bests.filter((best) => best !== null);
  const advice = foldsAdvice(trials, { folds, error, loss, measured, examples, command });
  return {
    title: `${stratified ? 'Stratified ' : ''}${folds}-fold cross-validation ${name}`,
    headings: [
      'trial',
      'fold',
      'training examples',
      'validation examples',
      'error',
      'loss',
      'best step',
    ],
    rows,
    advice,
    plots: {
      'folds.svg': foldsChart(trials, errors, error),
    },
    facts: {
      ...{ study: name, folds, stratified, repeats, error, loss, examples },
      trials: trials.map(({ id, config, data, end }, i) => ({
        ...{ run: id, fold: config.validation.fold, seed: config.seed, data, end },
        ...{ error: errors[i], loss: losses[i], step: bests[i]?.step ?? null },
      })),
    },
    failure: failureOf(trials, measured.length),
  };
}

/** @param measured folds that have a finite value. @param examples to train and validate on; null: not known. */
function foldsAdvice(
  trials: readonly Trial[],
  {
    folds,
    error,
    loss,
    measured,
    examples,
    command,
  }: {
    readonly folds: number;
    readonly error: Estimate | null;
    readonly loss: Estimate | null;
    readonly measured: readonly { readonly step: number }[];
    readonly examples: number | null;
    readonly command: (steps: number) => string;
  },
): string {
  const data = trials.find((trial) => trial.data)?.data;
  const format = errorFormatOf(trials);
  const failed = failuresText(trials);
  const parts: string[] = [];
  if (measured.length === 0) parts.push('No fold has a finite value.');
  else {
    const what = errorName(trials);
    const isLoss = trials.some(({ errorMeasure }) => errorMeasure === 'loss');
    const of = [
      ...(error && !isLoss
        ? [`error${what ? ` (${what})` : ''} is ${estimateText(error, format)}`]
        : []),
      ...(loss ? [`loss is ${estimateText(loss, numberText)}`] : []),
    ];
    const single = measured.length === 1;
    parts.push(
      `Over ${measured.length} fold${single ? '' : 's'} the validation ${of.join(', the ')}.`,
    );
    if (measured.length > 1) {
      parts.push(
        'Folds share most of their training examples, so the interval is somewhat too narrow: there is no unbiased estimate of this variance (Deep Learning §5.3.1). A difference between two settings that is smaller than the interval shows nothing; compare them on the same folds (the same seed).',
      );
    }
    if (data && data.validationCount < FEW) {
      parts.push(
        `A fold validates on ${data.validationCount} example${data.validationCount === 1 ? '' : 's'}: the value of a single fold says almost nothing.`,
      );
    }
  }
  if (failed) parts.push(failed);
  if (measured.length > 0) {
    const steps = Math.max(1, Math.round(meanOf(measured.map(({ step }) => step))));
    parts.push(
      `The folds were best after ${steps} update${steps === 1 ? '' : 's'} on average. Train the final model on all examples for the same number of updates: \`${command(steps)}\`.`,
    );
  }
  if (examples !== null) {
    parts.push(
      examples < HOLD_OUT_EXAMPLES
        ? `The data has ${examples} examples to train and validate on; below 100,000, k-fold pays, since a hold-out part of a fifth would be small.`
        : `The data has ${examples} examples: a hold-out part is large enough, and ${folds} times cheaper.`,
    );
  }
  return parts.join(' ');
}

/** @param errors one for each trial. @param error over all of them; null: none is known. */
function foldsChart(
  trials: readonly Trial[],
  errors: readonly (number | null)[],
  error: Estimate | null,
) {
  const format = errorFormatOf(trials);
  return chart({
    title: `Validation error of each fold${error ? `; mean ${format(error.mean)}` : ''}`,
    x: { label: 'fold', names: [...trials.map(foldName), 'mean'] },
    y: errorAxis('validation error', 'error', trials),
    series: [
      ...(error && error.distinct > 1
        ? [
            {
              ...{ name: '', style: 'band' as const, color: 1 },
              points: [-0.5, trials.length + 0.5].map((x) => ({
                ...{ x, y: error.mean, low: error.low, high: error.high },
              })),
            },
          ]
        : []),
      {
        ...{ name: 'fold', style: 'scatter', color: 0 },
        points: trials.map((trial, x) => ({
          ...{ x, y: errors[x] ?? null, label: `${trial.label}: ${format(errors[x])}` },
        })),
      },
      {
        ...{ name: 'mean and 95 % confidence', style: 'scatter', color: 1 },
        points: error ? [pointOf(trials.length, error)] : [],
      },
    ],
  });
}

const foldName = ({ config }: Trial) => String(config.validation.fold);

/** `2.31 % ± 0.12 % (95 % confidence 2.01 % … 2.61 %)`. */
function estimateText(
  { mean, standardError, low, high, level, count, distinct }: Estimate,
  format: (value: number) => string,
): string {
  if (count < 2) return `${format(mean)} (one value: no error known)`;
  if (distinct < 2) return `${format(mean)} (${count} equal values: no error known)`;
  return `${format(mean)} ± ${format(standardError)} (standard error; ${Math.round(100 * level)} % confidence ${format(low)} … ${format(high)}, Student's t with ${count - 1} degree${count === 2 ? '' : 's'} of freedom)`;
}
