import type { Answers } from '../shared/answers.ts';
import { DownpourError } from '../shared/errors.ts';
import type { ChartFigure, PlotPoint } from '../shared/figure.ts';
import { type Format, percent } from '../shared/text.ts';
import {
  type CombinedAnswers,
  type CombineSettings,
  combine,
  concatenated,
  examinedAt,
  expectedSquaredError,
  type FittedCombinations,
  fitCombinations,
  type Moments,
  meanArray,
  momentsOf,
  squaredErrors,
  squaredErrorsOfMeans,
} from './combine.ts';
import type { Examined } from './examined.ts';
import { chart } from './plot.ts';
import { answersOfExamples, calibration, halfRows, logLosses, rank } from './refuse.ts';
import { axisBy, numberText, type Report, signed } from './report.ts';
import { asShare, type Estimate, estimate, shareInterval } from './statistics.ts';

/**
 * Members of an ensemble, and what can be made of them, side by side. On the validation part all that is
 * fitted or chosen is so on one half and measured on the other, in turn; for the test part on all of the
 * validation part.
 */

/** A half of fewer fits and measures nothing. */
const EXAMPLES_MIN = 8;

export interface EnsembleReportSettings extends CombineSettings {
  readonly name: string;
  /** What was left out, and why. */
  readonly notes: readonly string[];
}

export interface Tested {
  readonly examined: Examined;
  /** When the test part was looked at, ISO 8601. */
  readonly at: string;
}

/** A way, measured. */
export interface MeasuredOutcome {
  readonly name: string;
  readonly way: CombinedAnswers['way'];
  /** Share of wrong answers, or mean squared error; with its 95 % interval over the examples. */
  readonly error: Estimate;
  /** The difference of the error to that of the best single one, example by example; null: it is that one. */
  readonly difference: Estimate | null;
  /** To the mean error of the members; null: of one of them. */
  readonly toMembers: Estimate | null;
  /** The difference of averaged parameters to those of the same training without. */
  readonly toRaw: Estimate | null;
  /** Log loss, or squared error; null: it gives no probabilities. */
  readonly loss: Estimate | null;
  readonly lossDifference: Estimate | null;
  readonly calibrationError: number | null;
  readonly cost: number;
  readonly share: number | null;
  /** Where answers are yes and no: the share of those that are yes that was found, and of the yes that was said that is right. */
  readonly recall: number | null;
  readonly precision: number | null;
}

export interface EnsembleReport extends Report {
  /** Fitted on all of the validation part, for use. */
  readonly fitted: FittedCombinations;
  readonly use: MeasuredOutcome;
  readonly validation: readonly MeasuredOutcome[];
  readonly test: readonly MeasuredOutcome[] | null;
}

/** @throws DownpourError DP_EXPERIMENT_INVALID: there are too few examples to measure by. */
export function ensembleReport(
  settings: EnsembleReportSettings,
  examined: Examined,
  tested: Tested | null,
): EnsembleReport {
  const { members } = examined;
  const { answers } = members[0]!;
  const examples = Math.round(answers.count / answers.perExample);
  if (examples < EXAMPLES_MIN) {
    throw new DownpourError(
      'DP_EXPERIMENT_INVALID',
      `the validation part has ${examples} example${examples === 1 ? '' : 's'}; an ensemble needs ${EXAMPLES_MIN}: half of them to fit the combination and half to measure it. Give more examples, or a larger validationFraction`,
    );
  }
  const halves = halfRows(examples, settings.seed);
  const parts = halves.map((rows) => examinedAt(examined, rows)) as [Examined, Examined];
  const fits = parts.map((part) => fitCombinations(part, settings));
  const [a, b] = [combine(parts[1], fits[0]!, settings), combine(parts[0], fits[1]!, settings)];
  const order = Int32Array.from([...halves[1], ...halves[0]]);
  const outcomes = a.map((outcome, i) => concatenated(outcome, b[i]!));
  const validation = measure(outcomes, answersOfExamples(answers, order));
  const fitted = fitCombinations(examined, settings);
  const test = tested && testOf(tested.examined, fitted, settings);
  const use = choice(validation);
  const moments = momentsOf(members);
  const means = squaredErrorsOfMeans(members);
  const isNumbers = answers.kind === 'numbers';
  const format = isNumbers ? numberText : percent;
  return {
    title: `Ensemble ${settings.name}`,
    headings: [
      'combination',
      isNumbers ? 'squared error' : 'error',
      '95 % interval',
      'to the best single one (95 %)',
      ...(isNumbers ? [] : ['log loss', 'calibration error']),
      ...(answers.kind === 'binary' ? ['recall', 'precision'] : []),
      'cost of an answer',
      ...(test ? ['test error', ...(isNumbers ? [] : ['test log loss'])] : []),
    ],
    rows: validation.map((m, i) => [
      m.name,
      format(m.error.mean),
      m.error.distinct < 2 && !Number.isFinite(m.error.low)
        ? '–'
        : `${format(m.error.low)} … ${format(m.error.high)}`,
      differenceText(m.difference, format),
      ...(isNumbers ? [] : [numberText(m.loss?.mean), percent(m.calibrationError)]),
      ...(answers.kind === 'binary' ? [percent(m.recall), percent(m.precision)] : []),
      numberText(m.cost),
      ...(test
        ? [format(test[i]!.error.mean), ...(isNumbers ? [] : [numberText(test[i]!.loss?.mean)])]
        : []),
    ]),
    advice: [
      ...adviceOf(validation, use, settings, format),
      momentsText(moments, means),
      ...settings.notes,
      ...(tested && test ? [testText(tested, test, use, format)] : []),
    ].join(' '),
    plots: {
      'ensemble.svg': costPlot(validation, isNumbers),
      'members.svg': membersPlot(moments, means),
    },
    facts: {
      ...{ study: settings.name, examples, validation, use, moments, squaredErrorsOfMeans: means },
      ...{ tolerance: settings.tolerance, recall: settings.recall, notes: settings.notes },
      test: tested && { at: tested.at, measured: test },
    },
    ...{ fitted, use, validation, test },
  };
}

function testOf(
  examined: Examined,
  fitted: FittedCombinations,
  settings: CombineSettings,
): MeasuredOutcome[] {
  return measure(combine(examined, fitted, settings), examined.members[0]!.answers);
}

function measure(outcomes: readonly CombinedAnswers[], answers: Answers): MeasuredOutcome[] {
  const errors = outcomes.map((outcome) => errorsOf(outcome, answers));
  const losses = outcomes.map(({ outputs }) =>
    outputs === null
      ? null
      : answers.kind === 'numbers'
        ? squaredErrors(outputs, answers)
        : logLosses(outputs, answers.truths),
  );
  const best = outcomes.findIndex(({ way }) => way === 'best');
  const mean = (values: Float64Array) => estimate(byExample(values, answers.perExample));
  const paired = (values: Float64Array, other: Float64Array) =>
    mean(values.map((value, i) => value - other[i]!));
  const ofMembers = meanArray(errors.filter((_, i) => outcomes[i]!.way === 'member'));
  return outcomes.map(({ name, way, decisions, cost, share, raw }, i) => ({
    ...{ name, way, cost, share },
    error: bounded(mean(errors[i]!), decisions !== null),
    difference: i === best ? null : paired(errors[i]!, errors[best]!),
    toMembers: way === 'member' || way === 'best' ? null : paired(errors[i]!, ofMembers),
    toRaw: raw === undefined ? null : paired(errors[i]!, errors[raw]!),
    loss: losses[i] ? mean(losses[i]) : null,
    lossDifference: i === best || !losses[i] ? null : paired(losses[i], losses[best]!),
    calibrationError: decisions && calibration(rank(decisions, answers.truths)).error,
    ...(answers.kind === 'binary' && decisions
      ? detection(decisions.classes, answers.truths)
      : { recall: null, precision: null }),
  }));
}

/** All right or all wrong: how far a share then can be from what was seen is Wilson's interval. */
function bounded(error: Estimate, isShare: boolean): Estimate {
  if (!isShare) return error;
  if (error.distinct > 1 || ![0, 1].includes(error.mean)) return asShare(error);
  return { ...error, ...shareInterval(error.mean * error.count, error.count, error.level) };
}

function errorsOf({ decisions, outputs }: CombinedAnswers, answers: Answers): Float64Array {
  if (!decisions) return squaredErrors(outputs!, answers);
  return Float64Array.from(decisions.classes, (said, i) => (said === answers.truths[i] ? 0 : 1));
}

/** Answers of one example are no independent ones: their mean counts once. */
function byExample(values: Float64Array, perExample: number): number[] {
  const means = new Array<number>(Math.round(values.length / perExample)).fill(0);
  values.forEach((value, i) => {
    means[Math.floor(i / perExample)]! += value / perExample;
  });
  return means;
}

function detection(said: Int32Array, truths: ArrayLike<number>) {
  let [both, yes, positives] = [0, 0, 0];
  said.forEach((answer, i) => {
    yes += answer;
    positives += truths[i]!;
    both += answer * truths[i]!;
  });
  return {
    recall: positives === 0 ? null : both / positives,
    precision: yes === 0 ? null : both / yes,
  };
}

/** The lowest loss of those whose loss or error is below the best single one's beyond chance; else that one. */
function choice(measured: readonly MeasuredOutcome[]): MeasuredOutcome {
  const best = measured.find(({ way }) => way === 'best')!;
  const better = measured
    .filter(({ way }) => ['average', 'mean', 'calibrated'].includes(way))
    .filter(({ lossDifference, difference }) => lossDifference!.high < 0 || difference!.high < 0)
    // A lower loss is not worth more wrong answers.
    .filter(({ difference }) => !(difference!.low > 0))
    .sort((a, b) => a.loss!.mean - b.loss!.mean);
  return better[0] ?? best;
}

const capital = (text: string) => text[0]!.toUpperCase() + text.slice(1);

function differenceText(difference: Estimate | null, format: Format): string {
  if (difference === null) return '–';
  const { mean, low, high, distinct } = difference;
  if (distinct < 2) return mean === 0 ? 'the same' : signed(mean, format);
  return `${signed(mean, format)} (${signed(low, format)} … ${signed(high, format)})`;
}

function adviceOf(
  measured: readonly MeasuredOutcome[],
  use: MeasuredOutcome,
  { tolerance, recall, accuracy }: EnsembleReportSettings,
  format: Format,
): string[] {
  const of = (way: CombinedAnswers['way']) => measured.filter((m) => m.way === way);
  const [best, mean, calibrated, controller] = (
    ['best', 'mean', 'calibrated', 'controller'] as const
  ).map((way) => of(way)[0]);
  const members = of('member');
  const error = (m: MeasuredOutcome) => format(m.error.mean);
  const average = members.reduce((sum, m) => sum + m.error.mean / members.length, 0);
  const parts = [
    `${members.length} members err by ${format(average)} on average, the best single one, chosen on other examples, by ${error(best!)}.`,
  ];
  for (const [m, what] of [
    [mean, 'Their mean'],
    [calibrated, 'Calibrated, their mean'],
  ] as const) {
    if (!m?.difference) continue;
    const loss =
      m.calibrationError === null || !best!.loss
        ? ''
        : `; log loss ${numberText(m.loss?.mean)} against ${numberText(best!.loss.mean)}, calibration error ${percent(m.calibrationError)} against ${percent(best!.calibrationError)}`;
    parts.push(
      `${what} errs by ${error(m)}, ${differenceText(m.toMembers, format)} to the average member, ${differenceText(m.difference, format)} to the best one, for ${numberText(m.cost)} times the cost of the cheapest answer${loss}.`,
    );
  }
  for (const m of of('average')) {
    const other = m.toRaw ? 'the same training as the members have it' : 'the best single one';
    parts.push(
      `${capital(m.name)}: ${error(m)}, ${differenceText(m.toRaw ?? m.difference, format)} to ${other}, at the cost of one.`,
    );
  }
  const all = mean ?? calibrated;
  const saved = (m: MeasuredOutcome, whole: number) => percent(1 - m.cost / whole);
  const whole = all?.cost ?? members.reduce((sum, { cost }) => sum + cost, 0);
  if (controller) {
    parts.push(
      `The controller asks one member an answer and errs by ${error(controller)} at a cost of ${numberText(controller.cost)}, ${saved(controller, whole)} less than asking all.`,
    );
  }
  for (const cascade of of('cascade')) {
    const isBinary = cascade.recall !== null;
    const aim = isBinary
      ? `tuned for a recall of ${percent(recall)}, it has ${percent(cascade.recall)} and a precision of ${percent(cascade.precision)}`
      : `tuned ${accuracy === null ? `to lose at most ${percent(tolerance)} of accuracy` : `for an accuracy of ${percent(accuracy)}`}, it errs by ${error(cascade)}`;
    parts.push(
      `${capital(cascade.name)}: ${aim}, at a cost of ${numberText(cascade.cost)}; the first decides ${percent(cascade.share)}.`,
    );
  }
  parts.push(
    use === best
      ? 'Use the best single model: no combination is better beyond chance.'
      : `Use '${use.name}' if its cost of ${numberText(use.cost)} is acceptable${use.cost > 1.5 ? '; benchmarks of algorithms compare single models (Deep Learning §7.11)' : ''}.`,
  );
  return parts;
}

function momentsText(moments: Moments, means: readonly number[]): string {
  const { count, variance, covariance } = moments;
  if (!(variance > 0)) return 'No member makes an error, so a combination has nothing to add.';
  const expected = expectedSquaredError(moments, count);
  const twice = expectedSquaredError(moments, 2 * count);
  return `Squared errors (Deep Learning §7.11): of one member v = ${numberText(variance)}, of two together c = ${numberText(covariance)}, a correlation of ${numberText(covariance / variance)}; so ${count} give v/${count} + ${count - 1}/${count}·c = ${numberText(expected)} (measured ${numberText(means.at(-1))}), ${2 * count} would give about ${numberText(twice)}, and no number of them less than c.`;
}

function testText(
  { at }: Tested,
  test: readonly MeasuredOutcome[],
  use: MeasuredOutcome,
  format: Format,
): string {
  const best = test.find(({ way }) => way === 'best')!;
  const used = test.find(({ name }) => name === use.name)!;
  return `The test part was evaluated on ${at}: '${used.name}' errs by ${format(used.error.mean)}${used === best ? '' : `, the best single one by ${format(best.error.mean)} (difference ${differenceText(used.difference, format)})`}. Do not use this result to choose anything.`;
}

function costPlot(measured: readonly MeasuredOutcome[], isNumbers: boolean): ChartFigure {
  const point = ({ cost, error }: MeasuredOutcome): PlotPoint => ({
    ...{ x: cost, y: error.mean, low: error.low, high: error.high },
  });
  const members = measured.filter(({ way }) => way === 'member');
  return chart({
    title: 'Error over the cost of an answer, with 95 % intervals',
    x: { label: 'cost; the cheapest member is 1' },
    y: isNumbers ? { label: 'squared error' } : axisBy('validation error', percent),
    series: [
      { name: 'members', style: 'scatter' as const, points: members.map(point) },
      ...measured
        .filter(({ way }) => way !== 'member')
        .map((m) => ({ name: m.name, style: 'scatter' as const, points: [point(m)] })),
    ],
  });
}

function membersPlot(moments: Moments, means: readonly number[]): ChartFigure {
  const upTo = Array.from({ length: 2 * moments.count }, (_, i) => i + 1);
  return chart({
    title: 'Squared error of the mean of k members',
    x: { label: 'k' },
    y: { label: 'squared error' },
    series: [
      { name: 'measured', points: means.map((y, i) => ({ x: i + 1, y })) },
      {
        name: 'v/k + (k − 1)/k · c',
        style: 'dashed',
        points: upTo.map((k) => ({ x: k, y: expectedSquaredError(moments, k) })),
      },
    ],
  });
}
