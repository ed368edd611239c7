import type { RunConfig } from '../../shared/config.ts';
import { DownpourError } from '../../shared/errors.ts';
import type { RestClient } from '../../shared/rest-client.ts';
import { type ScaledRun, secondsTo, stalenessFacts } from '../../study/scale.ts';
import { meanOf } from '../../study/statistics.ts';
import { type ComputeLaw, tracedLaw } from './laws.ts';
import { type Network, NO_NETWORK } from './world.ts';

/** The law of a real run, fitted to what it measured itself, and how far predictions are from what was seen. */

/** What a real run tells of its times. */
export interface Recorded extends ScaledRun {
  readonly run: string;
  readonly config: RunConfig;
  /** Compute times of a sample of its pushes, as the workers measured them, ms. */
  readonly computeMs: readonly number[];
  readonly updatesPerSecond: number;
  readonly stalenessMean: number;
}

/** With fewer nothing is known of a law. */
const PUSHES_MIN = 100;

/** @throws DownpourError DP_RUN_UNKNOWN; DP_USAGE: too few pushes, or of a release that kept no times. */
export async function readRecorded(
  client: Pick<RestClient, 'run' | 'metrics'>,
  run: string,
): Promise<Recorded> {
  const detail = await client.run(run);
  const { training, evaluations, stalenessHistogram } = await client.metrics(run);
  const computeMs = (training.computeMs ?? []).filter((ms): ms is number => ms !== null && ms > 0);
  if (computeMs.length < PUSHES_MIN) {
    throw new DownpourError(
      'DP_USAGE',
      `run ${run} has compute times of ${computeMs.length} pushes; at least ${PUSHES_MIN} are needed: train for longer, or again where it is of an older release, which kept none`,
    );
  }
  const facts = stalenessFacts(stalenessHistogram)!;
  const { workersMin, workersMax } = detail.config;
  // Fixed by the configuration, as `downpour scale` does; else by the law that the mean staleness is N − 1.
  const workers = workersMin === workersMax ? workersMin : Math.max(1, Math.round(1 + facts.mean));
  const [first, last] = [training.step[0]!, training.step.at(-1)!];
  const seconds = training.seconds.at(-1)! - training.seconds[0]!;
  return {
    ...{ run, config: detail.config, computeMs, workers, mode: 'real', seed: detail.config.seed },
    updatesPerSecond: (last - first) / Math.max(seconds, 1e-9),
    stalenessMean: facts.mean,
    ...{ phase: detail.phase, reason: detail.reason, step: detail.step, seconds: detail.seconds },
    evaluations: evaluations.filter(({ part }) => part === 'validation'),
    ...{ test: detail.test, staleness: stalenessHistogram, used: null, serverBusy: null },
  };
}

export interface FittedWorld {
  readonly compute: ComputeLaw;
  readonly network: Network;
}

/**
 * The law of its compute times is the times themselves. What a worker's round takes beyond them (server, network,
 * waiting for the next turn) is latency. Where all workers share a machine that they keep busy, an update costs what
 * its cores give meanwhile, whoever uses it, and compute times on the clock are those of workers in each other's way.
 * @param cores that they share; absent: each has its own.
 */
export function fitWorld(
  { run, workers, computeMs, updatesPerSecond }: Recorded,
  cores?: number,
): FittedWorld {
  const roundMs = (1_000 * workers) / updatesPerSecond;
  const mean = meanOf(computeMs);
  const isBusy = cores !== undefined && workers >= cores;
  const demandMs = isBusy ? (1_000 * cores) / updatesPerSecond : Math.min(mean, roundMs);
  const scale = demandMs / mean;
  return {
    compute: tracedLaw(`of run ${run} (${demandMs.toPrecision(3)} on average)`, [
      computeMs.map((ms) => scale * ms),
    ]),
    network: { ...NO_NETWORK, latencyMs: isBusy ? 0 : (roundMs - demandMs) / 2 },
  };
}

export interface PredictionError {
  readonly run: string;
  readonly workers: number;
  readonly what: string;
  readonly measured: number;
  readonly predicted: number;
  /** (predicted − measured) / measured; of staleness over N, so that one worker has one too. */
  readonly error: number;
}

/** Compares each real run with the prediction for as many workers. */
export function predictionErrors(
  real: readonly Recorded[],
  predicted: readonly ScaledRun[],
  { metric, target }: { readonly metric: 'error' | 'loss'; readonly target: number | null },
): PredictionError[] {
  return real.flatMap((seen) => {
    const own = predicted.filter(({ workers }) => workers === seen.workers);
    if (own.length === 0) return [];
    const { run, workers } = seen;
    const told = (what: string, measured: number, values: readonly number[], over = measured) => {
      const mean = meanOf(values);
      return { run, workers, what, measured, predicted: mean, error: (mean - measured) / over };
    };
    const speeds = own.map(({ step, seconds }) => step / seconds);
    const stale = own.map(({ staleness }) => stalenessFacts(staleness)?.mean ?? 0);
    const errors = [
      told('updates/s', seen.updatesPerSecond, speeds),
      told('staleness', seen.stalenessMean, stale, seen.stalenessMean + 1),
    ];
    if (target === null) return errors;
    const measured = secondsTo(seen, metric, target);
    const times = own.flatMap((each) => secondsTo(each, metric, target) ?? []);
    return measured === null || times.length < own.length
      ? errors
      : [...errors, told('seconds to the target', measured, times)];
  });
}

/** In a sentence for each run. */
export function errorsText(errors: readonly PredictionError[], from: string): string {
  const runs = [...new Set(errors.map(({ run }) => run))];
  const short = (value: number) => String(Number(value.toPrecision(3)));
  return runs
    .map((run) => {
      const own = errors.filter((each) => each.run === run);
      const { workers } = own[0]!;
      const facts = own.map(
        ({ what, measured, predicted, error }) =>
          `${what} ${short(predicted)} predicted, ${short(measured)} seen (${error < 0 ? '−' : '+'}${(100 * Math.abs(error)).toFixed(1)} %)`,
      );
      const which = run === from ? `Run ${run}, which it was fitted to` : `Run ${run}`;
      return `${which}, ${workers} worker${workers === 1 ? '' : 's'}: ${facts.join('; ')}.`;
    })
    .join(' ');
}
