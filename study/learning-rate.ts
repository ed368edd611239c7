import { resolveConfig } from '../shared/config.ts';
import type { ChartFigure } from '../shared/figure.ts';
import { failureOf, failuresText } from './failures.ts';
import { chart } from './plot.ts';
import { errorFormatOf, numberText, type Report, spreadText } from './report.ts';
import { deviationOf, type Estimate, estimate, meanOf } from './statistics.ts';
import {
  type Fork,
  type NewTrial,
  type StudyPlan,
  type TrainingCurve,
  type Trial,
  trialValue,
} from './study.ts';

/**
 * Which learning rate? A range test (Smith 2017, arXiv:1506.01186) raises the rate evenly on a
 * logarithmic scale until training falls apart; then short trainings at constant rates below that show
 * which is best after about 100 updates. The suggestion is the book's: higher than that one, but not so
 * high as to cause severe instability (Deep Learning §8.3.1, §11.4.1).
 */

export interface LearningRateSettings {
  /** Ends of the range test. */
  readonly low: number;
  readonly high: number;
  /** Updates of the range test. */
  readonly steps: number;
  /** Updates of a training at a constant rate. */
  readonly probeSteps: number;
  readonly seeds: number;
  /** Workers of the training to come; above 1 the range test is done with one worker as well. */
  readonly workers: number;
  /** Whose parameters all trials begin with; null: initial ones, of each seed its own. */
  readonly fork: Fork | null;
  /** Parts of a configuration, weakest first. */
  readonly base: readonly unknown[];
}

/** Constant rates, as shares of the limit that the range test finds. */
const PROBES = [1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1, 2] as const;

export function learningRatePlan(
  settings: LearningRateSettings,
): StudyPlan & { trialCount: number } {
  const { low, high, steps, probeSteps, seeds, workers, fork, base } = settings;
  const { seed, splitSeed, groups = {} } = resolveConfig(...base);
  // All seeds of a fork validate on what the run validated on: its parameters have seen the rest.
  const split = fork ? { splitSeed: splitSeed ?? seed } : {};
  const counts = workers > 1 ? [1, workers] : [1];
  const own = Array.from({ length: seeds }, (_, i) => seed + i);
  // A group with a schedule of its own would not follow the rising rate.
  const unscheduled = Object.fromEntries(
    Object.keys(groups).map((name) => [name, { schedule: null }]),
  );
  const plain = (length: number, count: number) => ({
    ...(Object.keys(groups).length > 0 && { groups: unscheduled }),
    ...{ warmupSteps: 0, averaging: { kind: 'none' }, epochsMax: null, stepsMax: length },
    ...{ evaluateEverySteps: length, pauseAfter: [], testAtEnd: false, nonFiniteMax: 1 },
    ...{ workersMin: count, workersMax: count, divergence: { rollbacksMax: 0 } },
    earlyStopping: { enabled: false, afterStop: 'restore' },
  });
  const begin = fork ? { fork } : {};
  const ranges: NewTrial[] = counts.flatMap((count) =>
    own.map((s) => ({
      key: `range-${count}-${s}`,
      label: `range test, ${count === 1 ? '1 worker' : `${count} workers`}, seed ${s}`,
      point: { kind: 'range', workers: count },
      config: resolveConfig(...base, plain(steps, count), {
        ...{
          seed: s,
          ...split,
          learningRate: low,
          schedule: { kind: 'rising', factor: high / low, steps },
        },
      }),
      ...begin,
    })),
  );
  return {
    trialCount: ranges.length + PROBES.length * seeds,
    decide(trials, room) {
      const next = (list: readonly NewTrial[]) =>
        list.slice(trials.length, trials.length + Math.max(0, room));
      if (trials.length < ranges.length) return { start: next(ranges), change: [], done: false };
      if (trials.slice(0, ranges.length).some(({ end }) => end === null)) {
        return { start: [], change: [], done: false };
      }
      const limit = limitOf(rangesOf(trials, workers));
      if (limit === null) return { start: [], change: [], done: true };
      const probes = PROBES.flatMap((share) =>
        own.map((s) => {
          const rate = Number((share * limit).toPrecision(3));
          return {
            key: `rate-${PROBES.indexOf(share)}-${s}`,
            label: `${numberText(rate)} for ${probeSteps} updates, seed ${s}`,
            point: { kind: 'probe', learningRate: rate },
            config: resolveConfig(...base, plain(probeSteps, workers), {
              ...{ seed: s, ...split, learningRate: rate, schedule: { kind: 'constant' } },
            }),
            ...begin,
          };
        }),
      );
      const all = [...ranges, ...probes];
      return { start: next(all), change: [], done: trials.length >= all.length };
    },
  };
}

/** What one range test showed. */
export interface RangeTest {
  readonly workers: number;
  readonly rates: readonly number[];
  /** Smoothed over neighbouring updates, without lag. */
  readonly losses: readonly number[];
  /** The mean loss of the first updates. */
  readonly initial: number;
  readonly lowest: { readonly rate: number; readonly loss: number };
  /** Where half of what had been learnt was lost again, or the run failed; null: not within the range. */
  readonly limit: number | null;
  readonly staleness: number;
}

/** Updates to each side that a smoothed loss looks at, as a share of the range test. */
const SMOOTHING = 0.02;
/** The share of the fall of the loss that must be lost again, and for good, to count as unstable … */
const LOST = 0.5;
/** … and so many standard deviations of the smoothed loss: after some training it hardly falls any more. */
const NOISES = 4;
/** A smaller fall of the loss is noise. */
const LEARNT = 0.05;

/** @param failed the run ended before its last update: it diverged at its last rate. */
export function analyseRange(
  curve: TrainingCurve,
  failed: boolean,
  workers: number,
): RangeTest | null {
  const known = curve.loss.findIndex((loss) => loss === null || !Number.isFinite(loss));
  const count = known < 0 ? curve.loss.length : known;
  if (count < 5) return null;
  const raw = curve.loss.slice(0, count) as number[];
  const rates = curve.learningRate.slice(0, count);
  const reach = Math.max(1, Math.round(SMOOTHING * count));
  const losses = raw.map((_, i) => meanOf(raw.slice(Math.max(0, i - reach), i + reach + 1)));
  // Nothing moves at the lowest rates: their mean is the loss at the start.
  const initial = meanOf(raw.slice(0, Math.max(5, Math.round(count / 20))));
  const lowest = losses.indexOf(Math.min(...losses));
  const quarter = raw.slice(0, Math.max(5, Math.ceil(count / 4)));
  const noise = deviationOf(quarter) / Math.sqrt(2 * reach + 1);
  const fall = Math.max(initial - losses[lowest]!, LEARNT * Math.abs(initial));
  const threshold = losses[lowest]! + Math.max(LOST * fall, NOISES * noise);
  // From the end: what comes back below was no more than a bad minibatch.
  let stable = count - 1;
  while (stable > lowest && losses[stable]! > threshold) stable--;
  const limit = rates[stable + 1] ?? (failed ? rates.at(-1)! : null);
  return {
    ...{ workers, rates, losses, initial, limit },
    lowest: { rate: rates[lowest]!, loss: losses[lowest]! },
    staleness: meanOf(curve.staleness),
  };
}

function rangesOf(trials: readonly Trial[], workers: number): RangeTest[] {
  return trials.flatMap(({ point, curve, end }) => {
    if (point.kind !== 'range' || point.workers !== workers || !curve) return [];
    return analyseRange(curve, end?.kind === 'failed', workers) ?? [];
  });
}

/** In the middle of the seeds' limits, on a logarithmic scale; the end of the range where there is none. */
function limitOf(ranges: readonly RangeTest[]): number | null {
  if (ranges.length === 0) return null;
  return Math.exp(meanOf(ranges.map(({ limit, rates }) => Math.log(limit ?? rates.at(-1)!))));
}

/** Trainings at one constant rate. */
export interface Probe {
  readonly rate: number;
  /** Validation loss after `probeSteps` updates, of the seeds that did not diverge. */
  readonly loss: Estimate | null;
  readonly error: Estimate | null;
  readonly unstable: number;
  readonly seeds: number;
}

export interface Suggestion {
  readonly learningRate: number;
  /** The best one after `probeSteps` updates. */
  readonly best: number;
  /** The lowest rate that was seen to be unstable; null: none. */
  readonly unstable: number | null;
}

/**
 * The suggestion is so much above the rate that was best after 100 updates: on MNIST with momentum 0.9
 * that was 0.086, the best of a grid after four epochs 0.081, and twice as much cost 0.8 points …
 */
const ABOVE_BEST = 1.2;
/** … and at least so many times below instability, which other seeds and later phases meet earlier. */
const BELOW_LIMIT = 3;

/** Above the rate that is best after the probes' updates, below instability. */
export function suggest(probes: readonly Probe[], limit: number | null): Suggestion | null {
  const steady = steadyOf(probes);
  if (steady.length === 0) return null;
  const best = lowestRate(steady);
  const shaky = probes.filter(({ unstable, rate }) => unstable > 0 && rate > best);
  const unstable = Math.min(limit ?? Infinity, ...shaky.map(({ rate }) => rate));
  // Near the limit there is no room above the best, or not even for the best.
  const learningRate = Number(Math.min(ABOVE_BEST * best, unstable / BELOW_LIMIT).toPrecision(2));
  return { learningRate, best, unstable: Number.isFinite(unstable) ? unstable : null };
}

/** Rates at which every seed has a loss: the mean of those that were lucky says nothing of a rate. */
const steadyOf = (probes: readonly Probe[]) =>
  probes.filter(({ unstable, loss }) => unstable === 0 && loss !== null);

/** Where the parabola through the lowest loss and its neighbours, over the logarithm, is lowest. */
function lowestRate(probes: readonly Probe[]): number {
  const losses = probes.map(({ loss }) => loss!.mean);
  const at = losses.indexOf(Math.min(...losses));
  const [before, here, after] = [losses[at - 1], losses[at]!, losses[at + 1]];
  if (before === undefined || after === undefined) return probes[at]!.rate;
  const [left, middle, right] = [at - 1, at, at + 1].map((i) => Math.log(probes[i]!.rate)) as [
    number,
    number,
    number,
  ];
  const falls = (before - here) * (right - middle);
  const rises = (after - here) * (middle - left);
  if (falls + rises <= 0) return probes[at]!.rate;
  const shift = (falls * (right - middle) - rises * (middle - left)) / (2 * (falls + rises));
  return Number(Math.exp(middle + shift).toPrecision(3));
}

function probesOf(trials: readonly Trial[], ranges: readonly RangeTest[]): Probe[] {
  const initial = ranges.length === 0 ? null : meanOf(ranges.map((range) => range.initial));
  const own = trials.filter(({ point }) => point.kind === 'probe');
  const rates = [...new Set(own.map(({ point }) => Number(point.learningRate)))];
  return rates
    .sort((a, b) => a - b)
    .map((rate) => {
      const at = own.filter(({ point }) => point.learningRate === rate);
      const steady = at.filter((trial) => !isUnstable(trial, initial));
      const known = (metric: 'loss' | 'error') => {
        const values = steady.map((trial) => trialValue(trial, metric)).filter(Number.isFinite);
        return values.length === 0 ? null : estimate(values);
      };
      return {
        ...{ rate, loss: known('loss'), error: known('error') },
        ...{ unstable: at.length - steady.length, seeds: at.length },
      };
    });
}

/** The last share of a training at a constant rate. */
const LATE = 0.25;

/**
 * It failed, or its training loss is in the end higher than in the beginning. Of the training part: a validation
 * part can be harder than it from the start, most of all for a fork of a run that knows its examples by heart.
 * @param initial training loss at the parameters that it began with; null: not known.
 */
function isUnstable(trial: Trial, initial: number | null): boolean {
  if (trial.end?.kind === 'failed' || !Number.isFinite(trialValue(trial, 'loss'))) return true;
  const losses = trial.curve?.loss ?? [];
  if (losses.length === 0 || initial === null) return false;
  const late = losses.slice(-Math.max(1, Math.ceil(LATE * losses.length)));
  if (late.some((loss) => loss === null || !Number.isFinite(loss))) return true;
  return meanOf(late as number[]) > initial + 0.1 * Math.abs(initial);
}

/** @param command trains at a rate. */
export function learningRateReport(
  name: string,
  settings: LearningRateSettings,
  trials: readonly Trial[],
  command: (learningRate: number) => string,
): Report {
  const { workers, probeSteps } = settings;
  const ranges = rangesOf(trials, workers);
  const single = workers > 1 ? rangesOf(trials, 1) : ranges;
  const limit = limitOf(ranges);
  const reached = ranges.some((range) => range.limit !== null);
  const probes = probesOf(trials, ranges);
  const learns = settings.fork !== null || hasLearnt([...single, ...ranges], probes);
  const suggestion = learns ? suggest(probes, reached ? limit : null) : null;
  const lowest = lowestOf(probes);
  const format = errorFormatOf(trials);
  return {
    title: `Learning rate ${name}`,
    headings: ['learning rate', `validation loss after ${probeSteps} updates`, 'error', 'unstable'],
    rows: probes.map(({ rate, loss, error, unstable, seeds }) => [
      `${numberText(rate)}${rate === lowest?.rate ? ' (best)' : ''}`,
      ...[spreadText(loss, numberText), spreadText(error, format), `${unstable} of ${seeds}`],
    ]),
    advice: adviceOf(settings, { ranges, single, probes, suggestion }, trials, command),
    plots: {
      'range.svg': rangePlot(single, ranges, workers, suggestion),
      ...(probes.length === 0 ? {} : { 'rates.svg': probePlot(probes, probeSteps, suggestion) }),
    },
    facts: {
      ...{ study: name, fork: settings.fork, workers, suggestion },
      learningRate: suggestion?.learningRate ?? null,
      limit: reached ? limit : null,
      ranges: [...new Set([...single, ...ranges])].map(
        ({ losses: _l, rates: _r, ...range }) => range,
      ),
      probes,
      trials: trials.map(({ id, config, point, end }) => ({
        run: id,
        seed: config.seed,
        point,
        end,
      })),
    },
    failure: failureOf(trials, ranges.length + probes.filter(({ loss }) => loss).length),
  };
}

/** The lowest loss of the rates at which no seed became unstable. */
function lowestOf(probes: readonly Probe[]): Probe | null {
  const steady = steadyOf(probes);
  return steady.length === 0
    ? null
    : steady.reduce((a, b) => (b.loss!.mean < a.loss!.mean ? b : a));
}

/** The loss fell by more than noise, in a range test or at a constant rate. */
function hasLearnt(ranges: readonly RangeTest[], probes: readonly Probe[]): boolean {
  const fell = ({ initial, lowest }: RangeTest, loss = lowest.loss) =>
    loss < initial - LEARNT * Math.abs(initial);
  const lowest = lowestOf(probes)?.loss?.mean;
  return ranges.some((range) => fell(range) || (lowest !== undefined && fell(range, lowest)));
}

interface RateFindings {
  readonly ranges: readonly RangeTest[];
  readonly single: readonly RangeTest[];
  readonly probes: readonly Probe[];
  readonly suggestion: Suggestion | null;
}

function adviceOf(
  { workers, probeSteps, fork, low, high, seeds }: LearningRateSettings,
  { ranges, single, probes, suggestion }: RateFindings,
  trials: readonly Trial[],
  command: (learningRate: number) => string,
): string {
  const failed = refusedText(trials);
  if (ranges.length === 0) {
    return `No range test had five finite losses: start with a --low below ${numberText(low)}, and run \`downpour check\`.${failed}`;
  }
  const parts: string[] = [];
  const limits = ranges.flatMap(({ limit }) => limit ?? []);
  const limit = limitOf(ranges)!;
  const where = fork ? `from step ${fork.step ?? '?'} of run ${fork.run}` : 'from the first step';
  const ends = [...new Set([Math.min(...limits), Math.max(...limits)].map(numberText))];
  parts.push(
    limits.length === 0
      ? `When the learning rate was raised ${where} up to ${numberText(high)}, training never became unstable.`
      : `When the learning rate is raised ${where}, training becomes unstable at about ${numberText(limit)} (${limits.length} of ${ranges.length} seeds: ${ends.join(' … ')}).`,
  );
  if (!fork && !hasLearnt([...single, ...ranges], probes)) {
    parts.push(
      'The loss fell by more than a twentieth at no rate, so none is recommended. The cause is probably not the learning rate; run `downpour check`.',
    );
    return parts.join(' ') + failed;
  }
  const lowest = lowestOf(probes);
  if (!suggestion || !lowest) {
    parts.push(
      probes.length === 0
        ? 'No constant rate was tried.'
        : `At every constant rate tried, from ${numberText(probes[0]!.rate)} up, some seed was unstable. The range test rose too fast to show where instability begins; raise --steps.`,
    );
    return parts.join(' ') + failed;
  }
  const { best, unstable, learningRate } = suggestion;
  const tied = tiedOf(probes, lowest);
  const scatter =
    seeds < 2
      ? ' (one seed, so the spread between seeds is not known)'
      : tied.length > 1
        ? `; ${tied.map(({ rate }) => numberText(rate)).join(', ')} are equally good within the differences between seeds`
        : '';
  const above =
    learningRate > best ? 'a little above it' : 'not above it, because instability is near';
  parts.push(
    `Of the constant rates, about ${numberText(best)} is best after ${probeSteps} updates${scatter}.`,
    `Use learningRate ${learningRate}: ${above}${unstable === null ? '' : `, and ${numberText(unstable / learningRate)} times below instability`} (Deep Learning §8.3.1: higher than the best after the first 100 iterations or so, but not so high as to cause severe instability; §11.4.1: the most important hyperparameter).`,
  );
  const isAlone = probes.length > 1 && tied.length === 1;
  if (isAlone && lowest.rate === probes[0]!.rate) {
    parts.push(
      'The best rate is the lowest that was tried. A lower one may be better still; compare some with `downpour search`.',
    );
  }
  if (limits.length === 0 && isAlone && lowest.rate === probes.at(-1)!.rate) {
    parts.push('The best rate is the highest that was tried: raise --high and run again.');
  }
  if (workers > 1 && single.length > 0) {
    const [alone, together] = [limitOf(single)!, limit];
    parts.push(
      `With ${workers} asynchronous workers (staleness ${numberText(meanOf(ranges.map(({ staleness }) => staleness)))} in the mean) the limit is ${numberText(together)}, with one worker ${numberText(alone)}: ${stalenessText(together / alone, [...single, ...ranges])}.`,
    );
  }
  parts.push(`\`${command(learningRate)}\``);
  return parts.join(' ') + failed;
}

/** Divergence is what range tests and probes are made for; what workers refused is not. */
function refusedText(trials: readonly Trial[]): string {
  const text = failuresText(trials.filter(({ end }) => end?.code !== undefined));
  return text === null ? '' : ` ${text}`;
}

/** Steady rates whose seeds cannot be told from those of the best one, lowest rate first. */
function tiedOf(probes: readonly Probe[], { loss: best }: Probe): Probe[] {
  return steadyOf(probes).filter(({ loss }) => {
    const between = Math.hypot(loss!.standardError || 0, best!.standardError || 0);
    return loss!.mean - best!.mean <= 2 * between;
  });
}

function stalenessText(factor: number, ranges: readonly RangeTest[]): string {
  const logs = ranges.flatMap(({ limit }) => (limit === null ? [] : [Math.log(limit)]));
  const scatter = logs.length === 0 ? 0 : Math.max(...logs) - Math.min(...logs);
  const text = `they move it by a factor of ${numberText(factor)}`;
  if (logs.length === 0) return 'no limit was reached, so the effect of staleness is not known';
  // One test of each kind: their difference is all the scatter there is.
  if (ranges.length < 4) return `${text}; with one seed each, this can be chance`;
  if (Math.abs(Math.log(factor)) < scatter / 2) {
    return `${text}, which is within the differences between seeds`;
  }
  return factor < 0.8
    ? `${text}; to compensate, use fewer workers, damping (consistency.damping) or a lower rate`
    : text;
}

function marksOf(suggestion: Suggestion | null) {
  if (suggestion === null) return [];
  const { learningRate, unstable } = suggestion;
  return [
    { x: learningRate, text: `use ${learningRate}` },
    ...(unstable === null ? [] : [{ x: unstable, text: `unstable from ${numberText(unstable)}` }]),
  ];
}

function rangePlot(
  single: readonly RangeTest[],
  ranges: readonly RangeTest[],
  workers: number,
  suggestion: Suggestion | null,
): ChartFigure {
  const groups = workers > 1 ? [single, ranges] : [ranges];
  // Where training falls apart the loss leaves for infinity, and would take the scale with it.
  const top = 2 * Math.max(0, ...groups.flat().map(({ initial }) => Math.abs(initial)));
  return chart({
    title: 'Range test: training loss while the learning rate rises',
    x: { label: 'learning rate', log: true },
    y: { label: 'loss, smoothed' },
    marks: marksOf(suggestion),
    series: groups.flatMap((group, color) =>
      group.map(({ rates, losses, workers: count }, i) => ({
        name: i > 0 ? '' : count === 1 ? '1 worker' : `${count} workers`,
        style: 'curve' as const,
        color,
        points: rates.map((x, at) => ({ x, y: Math.min(top, losses[at]!) })),
      })),
    ),
  });
}

function probePlot(
  probes: readonly Probe[],
  probeSteps: number,
  suggestion: Suggestion | null,
): ChartFigure {
  return chart({
    title: `Validation loss after ${probeSteps} updates at a constant rate`,
    x: { label: 'learning rate', log: true },
    y: { label: 'validation loss' },
    marks: marksOf(suggestion),
    series: [
      {
        name: 'mean and standard error of the seeds',
        points: probes.flatMap(({ rate, loss }) =>
          loss === null
            ? []
            : [
                {
                  ...{ x: rate, y: loss.mean },
                  ...(loss.distinct > 1
                    ? { low: loss.mean - loss.standardError, high: loss.mean + loss.standardError }
                    : {}),
                },
              ],
        ),
      },
    ],
  });
}
