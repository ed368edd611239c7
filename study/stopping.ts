import { resolveConfig } from '../shared/config.ts';
import { DownpourError } from '../shared/errors.ts';
import type { DataSummary } from '../shared/protocol.ts';
import { failureOf, failuresText } from './failures.ts';
import { chart } from './plot.ts';
import {
  errorAxis,
  errorFormatOf,
  intervalText,
  numberText,
  type Report,
  signed,
  spreadText,
} from './report.ts';
import { type Estimate, estimate } from './statistics.ts';
import { listPlan, type StudyPlan, type Trial } from './study.ts';

/**
 * The three ways to go on after early stopping, side by side (Deep Learning §7.8): restore the best
 * parameters (Algorithm 7.1), retrain on all data for as many updates (7.2), continue from the best on
 * all data (7.3). The same seeds: until the stop, the three do the same.
 */

export const WAYS = ['restore', 'retrain', 'continue'] as const;
export type StoppingWay = (typeof WAYS)[number];

export interface StoppingSettings {
  readonly repeats: number;
  /** Parts of a configuration, weakest first. */
  readonly base: readonly unknown[];
}

export function stoppingPlan({ repeats, base }: StoppingSettings): StudyPlan {
  const { seed } = resolveConfig(...base);
  return listPlan(
    Array.from({ length: repeats }, (_, r) => seed + r).flatMap((s) =>
      WAYS.map((afterStop) => ({
        key: `${afterStop}-${s}`,
        label: `${afterStop}, seed ${s}`,
        config: resolveConfig(...base, { seed: s, testAtEnd: true, earlyStopping: { afterStop } }),
      })),
    ),
  );
}

/** @throws DownpourError DP_EXPERIMENT_INVALID: two of the ways train on the validation part. */
export function checkTestPart({ testCount }: DataSummary): void {
  if (testCount > 0) return;
  throw new DownpourError(
    'DP_EXPERIMENT_INVALID',
    "the experiment's data has no test part: retrain and continue train on the validation part, so only a test part can compare the three; return one from data()",
  );
}

interface WayResult {
  readonly way: StoppingWay;
  readonly trials: readonly Trial[];
  readonly error: Estimate | null;
  readonly loss: Estimate | null;
  readonly steps: number;
  readonly seconds: number;
  /** The difference of the test error to restore's, seed by seed. */
  readonly difference: Estimate | null;
}

export function stoppingReport(name: string, trials: readonly Trial[]): Report {
  const results = resultsOf(trials);
  const format = errorFormatOf(trials);
  const rows = results.map(({ way, error, loss, steps, seconds, difference, trials: own }) => [
    way,
    spreadText(error, format),
    numberText(loss?.mean),
    way === 'restore' ? '–' : spreadText(difference, format),
    own.length === 0 ? '–' : String(Math.round(steps)),
    own.length === 0 ? '–' : `${seconds.toFixed(1)} s`,
    String(own.filter(({ test }) => test !== null).length),
  ]);
  return {
    title: `Three ways after early stopping ${name}`,
    headings: [
      'way',
      'test error',
      'test loss',
      'difference to restore',
      'updates',
      'time',
      'seeds',
    ],
    rows,
    advice: adviceOf(results, trials),
    plots: {
      'stopping.svg': chart({
        title: 'Test error against updates',
        x: { label: 'updates, refit included' },
        y: errorAxis('test error', 'error', trials),
        series: results.map(({ way, trials: own }) => ({
          name: way,
          style: 'scatter',
          points: own.map(({ step, test }) => ({ x: step, y: test?.error ?? Number.NaN })),
        })),
      }),
    },
    facts: {
      study: name,
      ways: results.map(({ trials: own, ...rest }) => ({
        ...rest,
        runs: own.map(({ id, config, step, seconds, test, best, end }) => ({
          ...{ run: id, seed: config.seed, step, seconds, test, best, end },
        })),
      })),
    },
    failure: failureOf(trials, results.filter(({ error }) => error).length),
  };
}

function resultsOf(trials: readonly Trial[]): WayResult[] {
  const of = (way: StoppingWay) =>
    trials.filter(({ config }) => config.earlyStopping.afterStop === way);
  const restored = new Map(of('restore').map(({ config, test }) => [config.seed, test?.error]));
  const known = (values: readonly (number | null | undefined)[]) => {
    const finite = values.filter((value) => value != null).filter(Number.isFinite);
    return finite.length === 0 ? null : estimate(finite);
  };
  return WAYS.map((way) => {
    const own = of(way);
    return {
      ...{ way, trials: own },
      error: known(own.map(({ test }) => test?.error)),
      loss: known(own.map(({ test }) => test?.loss)),
      steps: own.reduce((sum, { step }) => sum + step / own.length, 0),
      seconds: own.reduce((sum, { seconds }) => sum + seconds / own.length, 0),
      difference: known(
        own.map(({ config, test }) => {
          const base = restored.get(config.seed);
          return test?.error == null || base == null ? null : test.error - base;
        }),
      ),
    };
  });
}

function adviceOf(results: readonly WayResult[], trials: readonly Trial[]): string {
  const format = errorFormatOf(trials);
  const [restore, retrain, onward] = results as [WayResult, WayResult, WayResult];
  const parts: string[] = [];
  const failed = failuresText(trials);
  if (failed) parts.push(failed);
  for (const { way, difference, steps } of [retrain, onward]) {
    if (!difference) {
      parts.push(`${way} has no test error to compare with that of restore.`);
      continue;
    }
    const { mean, count, distinct, low, high } = difference;
    const does = mean === 0 ? 'does not change' : mean < 0 ? 'lowers' : 'raises';
    const by = mean === 0 ? '' : ` by ${format(Math.abs(mean))}`;
    const range = intervalText(difference, (value) => signed(value, format));
    const sure =
      count < 2
        ? 'one seed: not reliable'
        : distinct > 1 && low <= 0 && high >= 0
          ? `${range}: no difference is shown`
          : range;
    const algorithm = way === 'retrain' ? 'Algorithm 7.2' : 'Algorithm 7.3';
    const cost =
      restore.steps > 0 ? ` for ${(steps / restore.steps).toFixed(1)} times the updates` : '';
    parts.push(`${way} (${algorithm}) ${does} the test error${by} (${sure})${cost}.`);
  }
  if (!restore.error) return parts.join(' ');
  const better = [retrain, onward].filter(({ difference: d }) => d && d.high < 0);
  const choice = better.sort((a, b) => a.difference!.mean - b.difference!.mean)[0];
  parts.push(
    choice
      ? `Choose ${choice.way}: training on the validation examples pays here.`
      : 'Choose restore: it costs nothing more, and its validation part still measures the model. Try retrain if data is scarce.',
    'Continue has no fixed number of updates and may never reach its target (Deep Learning §7.8); it then ends at its limit.',
  );
  return parts.join(' ');
}
