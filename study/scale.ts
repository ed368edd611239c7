import type { Evaluation } from '../shared/rest.ts';
import type { Format } from '../shared/text.ts';
import { chart, type Plot } from './plot.ts';
import { axisBy, numberText, type Report, signed, spreadText } from './report.ts';
import { type Estimate, estimate, meanOf } from './statistics.ts';

/**
 * What workers bring: accuracy and time against their number and the mode, by real workers or by virtual ones. Both
 * are told by the same table and judged by the same rules.
 */

/** One training with a number of workers. */
export interface ScaledRun {
  readonly workers: number;
  readonly mode: string;
  readonly seed: number;
  /** As a run's, or `unfinished`. */
  readonly phase: string;
  readonly reason: string;
  readonly step: number;
  readonly seconds: number;
  /** The evaluations of the validation part, oldest first. */
  readonly evaluations: readonly Evaluation[];
  readonly test: Evaluation | null;
  /** As `trainingRate` has it; absent: not known, and those of all its time count. */
  readonly updatesPerSecond?: number | undefined;
  /** [i]: pushes applied with staleness i. */
  readonly staleness: readonly number[];
  /** Share of the gradients computed; null: not known. */
  readonly used: number | null;
  /** Share of the time that the server's thread works; null: not known. */
  readonly serverBusy: number | null;
}

export interface ScaleSettings {
  readonly metric: 'error' | 'loss';
  /** That the time is taken to; null: a tenth above what the fewest workers reach. */
  readonly target: number | null;
  /** `virtual`: seconds are those of the simulation. */
  readonly clock: 'real' | 'virtual';
  /** Said before the advice: what was simulated, or measured. */
  readonly about: string;
  readonly format: Format;
  /** Nothing was learnt: times and staleness alone are told. */
  readonly timesOnly?: boolean;
}

/** What all seeds of one number of workers and one mode gave. */
export interface ScaleRow {
  readonly workers: number;
  readonly mode: string;
  /** Best validation value, of the seeds that have one. */
  readonly value: Estimate | null;
  readonly test: Estimate | null;
  /** Mean difference by seed from the fewest workers of the mode: of the test part if it was evaluated. Null: nothing to compare. */
  readonly difference: Estimate | null;
  readonly seeds: number;
  readonly seconds: number;
  /** Until the target was reached; null: some seed did not. */
  readonly secondsToTarget: Estimate | null;
  readonly reached: number;
  readonly updatesPerSecond: number;
  readonly staleness: StalenessFacts | null;
  readonly used: number | null;
  readonly serverBusy: number | null;
  readonly failed: readonly string[];
}

export interface StalenessFacts {
  readonly mean: number;
  readonly deviation: number;
  readonly p50: number;
  readonly p95: number;
  readonly max: number;
}

/** The mean of a histogram; null: it is empty. @param counts [i]: how often i. */
export function stalenessFacts(counts: readonly number[]): StalenessFacts | null {
  let n = 0;
  let sum = 0;
  let squares = 0;
  counts.forEach((count, i) => {
    n += count;
    sum += count * i;
    squares += count * i * i;
  });
  if (n === 0) return null;
  const at = (share: number) => {
    let below = 0;
    return counts.findIndex((count) => {
      below += count;
      return below > Math.min(n - 1, Math.floor(share * n));
    });
  };
  const mean = sum / n;
  const deviation = Math.sqrt(Math.max(0, squares / n - mean ** 2));
  return { mean, deviation, p50: at(0.5), p95: at(0.95), max: counts.findLastIndex((c) => c > 0) };
}

const valuesOf = ({ evaluations }: ScaledRun, metric: 'error' | 'loss') =>
  evaluations.flatMap((evaluation) => {
    const value = evaluation[metric];
    return value !== null && Number.isFinite(value) ? [{ ...evaluation, value }] : [];
  });

function bestValue(run: ScaledRun, metric: 'error' | 'loss'): number | null {
  const values = valuesOf(run, metric).map(({ value }) => value);
  return values.length === 0 ? null : Math.min(...values);
}

/** Seconds until it was reached first; null: never. */
export function secondsTo(run: ScaledRun, metric: 'error' | 'loss', target: number): number | null {
  return valuesOf(run, metric).find(({ value }) => value <= target)?.seconds ?? null;
}

/** Updates a second while it trained. */
export const updateRateOf = ({ updatesPerSecond, step, seconds }: ScaledRun): number =>
  updatesPerSecond ?? (seconds > 0 ? step / seconds : 0);

/** Above what the fewest workers reach. */
const TARGET_ABOVE = 1.1;

function scaleRows(
  runs: readonly ScaledRun[],
  { metric, target: given }: Pick<ScaleSettings, 'metric' | 'target'>,
): { readonly rows: readonly ScaleRow[]; readonly target: number | null } {
  const groups = new Map<string, ScaledRun[]>();
  for (const run of runs) {
    const key = `${run.mode} ${run.workers}`;
    groups.set(key, [...(groups.get(key) ?? []), run]);
  }
  const known = (values: readonly (number | null | undefined)[]) => {
    const finite = values.filter((v): v is number => v != null && Number.isFinite(v));
    return finite.length === 0 ? null : estimate(finite);
  };
  const fewest = Math.min(...runs.map(({ workers }) => workers));
  const first = runs.filter(({ workers }) => workers === fewest);
  const hasTest = runs.some(({ test }) => test !== null);
  const reference = known(first.map((run) => bestValue(run, metric)));
  const target = given ?? (reference ? TARGET_ABOVE * reference.mean : null);
  const judged = (run: ScaledRun) => (hasTest ? run.test?.[metric] : bestValue(run, metric));
  const difference = (own: readonly ScaledRun[]) =>
    own[0]!.workers === fewest
      ? null
      : known(
          own.map((run) => {
            const one = first.find(({ mode, seed }) => mode === run.mode && seed === run.seed);
            const [value, other] = [judged(run), one && judged(one)];
            return value == null || other == null ? null : value - other;
          }),
        );
  const rows = [...groups.values()].map((own): ScaleRow => {
    const times = own.map((run) => (target === null ? null : secondsTo(run, metric, target)));
    const counts: number[] = [];
    for (const { staleness } of own)
      staleness.forEach((count, i) => {
        counts[i] = (counts[i] ?? 0) + count;
      });
    const shares = (of: 'used' | 'serverBusy') => {
      const values = own.map((run) => run[of]);
      return values.some((value) => value === null) ? null : meanOf(values as number[]);
    };
    const reached = times.filter((time) => time !== null).length;
    return {
      ...{ workers: own[0]!.workers, mode: own[0]!.mode, seeds: own.length, reached },
      value: known(own.map((run) => bestValue(run, metric))),
      test: known(own.map(({ test }) => test?.[metric])),
      difference: difference(own),
      seconds: meanOf(own.map(({ seconds }) => seconds)),
      secondsToTarget: reached === own.length ? known(times) : null,
      updatesPerSecond: meanOf(own.map(updateRateOf)),
      staleness: stalenessFacts(Array.from(counts, (count) => count ?? 0)),
      ...{ used: shares('used'), serverBusy: shares('serverBusy') },
      failed: own.filter(({ phase }) => phase === 'failed').map(({ reason }) => reason),
    };
  });
  return { rows, target };
}

const seconds = (value: number) =>
  value < 120 ? `${numberText(value)} s` : `${numberText(value / 60)} min`;

export function scaleReport(
  name: string,
  runs: readonly ScaledRun[],
  settings: ScaleSettings,
): Report {
  const { metric, format, clock, timesOnly = false } = settings;
  const { rows, target } = scaleRows(runs, settings);
  const modes = [...new Set(rows.map(({ mode }) => mode))];
  const hasTest = rows.some(({ test }) => test);
  const fewest = Math.min(...rows.map(({ workers }) => workers));
  const compares = rows.some(({ difference }) => difference !== null);
  const knowsUsed = rows.some(({ used }) => used !== null);
  const knowsBusy = rows.some(({ serverBusy }) => serverBusy !== null);
  const clockName = clock === 'virtual' ? 'virtual time' : 'time';
  return {
    title: `Workers ${name}`,
    headings: [
      'workers',
      'mode',
      ...(timesOnly ? [] : [`validation ${metric}`]),
      ...(hasTest ? [`test ${metric}`] : []),
      ...(compares ? [`against ${plural(fewest)}`] : []),
      clockName,
      ...(timesOnly ? [] : [`to ${target === null ? 'the target' : format(target)}`]),
      'updates/s',
      'staleness (deviation, p95)',
      ...(knowsUsed ? ['gradients used'] : []),
      ...(knowsBusy ? ['server busy'] : []),
    ],
    rows: rows.map((row) => [
      String(row.workers),
      row.mode,
      ...(timesOnly ? [] : [valueText(row, format)]),
      ...(hasTest ? [spreadText(row.test, format)] : []),
      ...(compares ? [row.difference ? differenceOf(row.difference, format) : ''] : []),
      seconds(row.seconds),
      ...(timesOnly ? [] : [toTarget(row)]),
      numberText(row.updatesPerSecond),
      row.staleness
        ? `${row.staleness.mean.toFixed(1)} (${row.staleness.deviation.toFixed(1)}, ${row.staleness.p95})`
        : '–',
      ...(knowsUsed ? [shareText(row.used, 1)] : []),
      ...(knowsBusy ? [shareText(row.serverBusy, 0)] : []),
    ]),
    advice: adviceOf(rows, target, settings),
    plots: timesOnly
      ? stalenessPlot(runs, modes)
      : { ...plotsOf(runs, rows, modes, settings), ...stalenessPlot(runs, modes) },
    facts: { study: name, target, metric, clock, rows, runs },
    failure:
      !timesOnly && rows.length > 0 && rows.every(({ value }) => value === null)
        ? { code: 'DP_RUN_FAILED', message: `no run has a finite ${metric}: ${failureText(rows)}` }
        : null,
  };
}

function valueText({ value, failed }: ScaleRow, format: Format): string {
  if (value) return spreadText(value, format);
  return failed.length > 0 ? 'failed' : 'none was finite';
}

/** Signed, with its interval where several seeds give one. */
function differenceOf({ mean, low, high, distinct }: Estimate, format: Format): string {
  const gap = signed(mean, format);
  return distinct < 2 ? gap : `${gap} ± ${format((high - low) / 2)}`;
}

const shareText = (share: number | null, digits: number) =>
  share === null ? '–' : `${(100 * share).toFixed(digits)} %`;

const failureText = (rows: readonly ScaleRow[]) =>
  rows.flatMap(({ failed }) => failed)[0] ?? 'none was evaluated; train for longer';

function toTarget({ secondsToTarget, reached, seeds }: ScaleRow): string {
  if (secondsToTarget) return spreadText(secondsToTarget, (value) => seconds(value ?? 0));
  return reached === 0 ? 'not reached' : `${reached} of ${seeds}`;
}

/** More workers must make it faster by so much to be worth them. */
const WORTH = 1.15;

/** A sentence or a few, from the numbers alone. */
function adviceOf(
  rows: readonly ScaleRow[],
  target: number | null,
  { format, about, metric, timesOnly }: ScaleSettings,
): string {
  const parts = [about];
  if (timesOnly) {
    const most = rows.reduce((a, b) => (b.updatesPerSecond > a.updatesPerSecond ? b : a));
    parts.push(
      `Most updates a second, ${numberText(most.updatesPerSecond)}, come with ${plural(most.workers)}; whether they learn was not asked.`,
    );
    return [...parts, ...serverText(rows)].join(' ');
  }
  const ended = rows.filter(({ secondsToTarget }) => secondsToTarget !== null);
  if (target === null || ended.length === 0) {
    const why =
      target === null ? `none has a finite ${metric}` : `${format(target)} was reached by none`;
    parts.push(
      `There is nothing to choose from: ${why}. Train for longer, or lower the learning rate.`,
    );
    return parts.filter((part) => part !== '').join(' ');
  }
  const time = ({ secondsToTarget }: ScaleRow) => secondsToTarget!.mean;
  const fastest = ended.reduce((a, b) => (time(b) < time(a) ? b : a));
  // Among those that are about as fast, the one that needs the fewest workers.
  const choice = ended
    .filter((row) => time(row) <= WORTH * time(fastest))
    .reduce((a, b) => (b.workers < a.workers ? b : a));
  const modeText = rows.some(({ mode }) => mode !== choice.mode) ? ` with '${choice.mode}'` : '';
  const base = ended.filter((row) => row.mode === choice.mode);
  const least = base.reduce((a, b) => (b.workers < a.workers ? b : a));
  const gain =
    least === choice
      ? ''
      : `, ${numberText(time(least) / time(choice))} times as fast as ${plural(least.workers)}`;
  parts.push(
    `Use ${plural(choice.workers)}${modeText}: a validation ${metric} of ${format(target)} after ${seconds(time(choice))}${gain}.`,
  );
  if (choice !== fastest) {
    parts.push(
      `${plural(fastest.workers)}${fastest.mode === choice.mode ? '' : ` with '${fastest.mode}'`} would be only ${numberText(time(choice) / time(fastest))} times as fast.`,
    );
  }
  const lost = rows.filter((row) => row.secondsToTarget === null);
  if (lost.length > 0) {
    parts.push(`The target is not reached by every seed with ${listOf(lost)}.`);
  }
  const reference = rows.find((row) => row.workers === least.workers && row.mode === choice.mode);
  if (reference?.value && choice.value && reference !== choice) {
    parts.push(
      `Its best ${metric} differs from that of ${plural(reference.workers)} by ${differenceText(choice, reference, format)}.`,
    );
  }
  parts.push(...serverText(rows));
  const wasted = rows.filter(({ used }) => used !== null && used < 0.9);
  if (wasted.length > 0) {
    parts.push(`More than a tenth of the gradients is thrown away with ${listOf(wasted)}.`);
  }
  return parts.filter((part) => part !== '').join(' ');
}

function serverText(rows: readonly ScaleRow[]): string[] {
  const busy = rows.filter(({ serverBusy }) => (serverBusy ?? 0) > 0.9);
  if (busy.length === 0) return [];
  return [
    `With ${listOf(busy)} the server's thread works all the time: more workers only wait. Larger minibatches, or more shards, help.`,
  ];
}

const plural = (workers: number) => `${workers} worker${workers === 1 ? '' : 's'}`;

function listOf(rows: readonly ScaleRow[]): string {
  const several = new Set(rows.map(({ mode }) => mode)).size > 1;
  const counts = rows.map(({ workers, mode }) => (several ? `${workers} (${mode})` : `${workers}`));
  return `${counts.join(', ')} workers`;
}

/** The seeds are independent: their intervals must be apart. */
function differenceText(a: ScaleRow, b: ScaleRow, format: Format): string {
  const gap = signed(a.value!.mean - b.value!.mean, format);
  if (a.value!.distinct < 2 || b.value!.distinct < 2) return `${gap} (one seed)`;
  const error = Math.hypot(a.value!.high - a.value!.mean, b.value!.high - b.value!.mean);
  const apart = Math.abs(a.value!.mean - b.value!.mean) > error;
  return `${gap} ± ${format(error)}${apart ? '' : ', not separated'}`;
}

const SERIES_MAX = 12;
/** Staleness of more is drawn in as many bars. */
const BARS_MAX = 200;

function plotsOf(
  runs: readonly ScaledRun[],
  rows: readonly ScaleRow[],
  modes: readonly string[],
  { metric, clock, format }: ScaleSettings,
): Record<string, Plot> {
  const y = axisBy(`validation ${metric}`, format);
  const of = (mode: string) =>
    rows.filter((row) => row.mode === mode).sort((a, b) => a.workers - b.workers);
  return {
    'workers.svg': chart({
      title: `Best validation ${metric} against workers`,
      x: { label: 'workers', log: true },
      y,
      series: modes.map((mode) => ({
        name: modes.length > 1 ? mode : '',
        points: of(mode).map(({ workers, value }) => ({
          ...{ x: workers, y: value?.mean ?? null },
          ...(value && value.distinct > 1 ? { low: value.low, high: value.high } : {}),
        })),
      })),
    }),
    'time.svg': chart({
      title: `${clock === 'virtual' ? 'Virtual time' : 'Time'} to the target, and updates a second`,
      x: { label: 'workers', log: true },
      y: { label: 'seconds, updates/s', log: true },
      series: modes.flatMap((mode) => [
        {
          name: `${mode}: seconds to the target`,
          points: of(mode).map(({ workers, secondsToTarget }) => ({
            ...{ x: workers, y: secondsToTarget?.mean ?? null },
          })),
        },
        {
          name: `${mode}: updates/s`,
          style: 'dashed' as const,
          points: of(mode).map((row) => ({ x: row.workers, y: row.updatesPerSecond })),
        },
      ]),
    }),
    'curves.svg': chart({
      title: `Validation ${metric} over ${clock === 'virtual' ? 'virtual ' : ''}time`,
      x: { label: 'seconds' },
      y,
      series: firstSeeds(runs)
        .slice(0, SERIES_MAX)
        .map((run) => ({
          name: `${run.workers}${modes.length > 1 ? ` ${run.mode}` : ''}`,
          points: valuesOf(run, metric).map(({ seconds: x, value: y }) => ({ x, y })),
        })),
    }),
  };
}

function stalenessPlot(runs: readonly ScaledRun[], modes: readonly string[]): Record<string, Plot> {
  const stale = firstSeeds(runs).filter(({ staleness }) => staleness.length > 1);
  if (stale.length === 0) return {};
  return {
    'staleness.svg': chart({
      title: 'Staleness of the gradients that were applied',
      x: { label: 'updates between pull and push' },
      y: { label: 'share' },
      series: stale.slice(0, SERIES_MAX).map(({ workers, mode, staleness }) => ({
        name: `${workers}${modes.length > 1 ? ` ${mode}` : ''}`,
        style: 'curve' as const,
        points: sharesOf(staleness),
      })),
    }),
  };
}

/** One run of each group. */
function firstSeeds(runs: readonly ScaledRun[]): ScaledRun[] {
  const seen = new Map<string, ScaledRun>();
  for (const run of runs) {
    const key = `${run.mode} ${run.workers}`;
    if (!seen.has(key)) seen.set(key, run);
  }
  return [...seen.values()];
}

/** Share of the pushes for each staleness; neighbours together where there are many. */
function sharesOf(counts: readonly number[]): { x: number; y: number }[] {
  const all = counts.reduce((sum, count) => sum + count, 0);
  const width = Math.ceil(counts.length / BARS_MAX);
  return Array.from({ length: Math.ceil(counts.length / width) }, (_, i) => {
    const part = counts.slice(i * width, (i + 1) * width);
    const sum = part.reduce((total, count) => total + count, 0);
    return { x: i * width + (part.length - 1) / 2, y: sum / all / part.length };
  });
}
