import type { RunConfig } from '../../shared/config.ts';
import { isInRounds } from '../../shared/consistency.ts';
import { DownpourError } from '../../shared/errors.ts';
import { exchangeSteps, localOf } from '../../shared/local-steps.ts';
import type { Metrics } from '../../shared/rest.ts';
import type { RestClient } from '../../shared/rest-client.ts';
import { type ScaledRun, secondsTo, stalenessFacts, updateRateOf } from '../../study/scale.ts';
import { meanOf } from '../../study/statistics.ts';
import { trainingRate } from '../../study/training-rate.ts';
import { type ComputeLaw, tracedLaw } from './laws.ts';
import { type Network, NO_NETWORK } from './world.ts';

/** The law of a real run, fitted to what it measured itself, and how far predictions are from what was seen. */

/** What a real run tells of its times. */
export interface Recorded extends ScaledRun {
  readonly run: string;
  readonly config: RunConfig;
  /** Compute times of a minibatch, of a sample of its pushes, as the workers measured them, ms. */
  readonly computeMs: readonly number[];
  readonly updatesPerSecond: number;
  /** What its workers needed before they were as fast as later, all of them together on the clock, ms. */
  readonly warmUpMs: number;
  /** The evaluation of the end, for which nobody else worked, ms; null: not known. */
  readonly evaluationMs: number | null;
  /** Share of the time of a worker that the evaluations took while updates were counted. */
  readonly evaluating: number;
  /** Minibatches that an update is made of, on average. */
  readonly minibatchesPerUpdate: number;
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
  const { training, evaluations: all, stalenessHistogram } = await client.metrics(run);
  const evaluations = all.filter(({ part }) => part === 'validation');
  const rate = trainingRate(training);
  const known = (times: readonly (number | null)[]) =>
    times.filter((ms): ms is number => ms !== null && ms > 0);
  const taken = training.computeMs ?? [];
  // Those of cold processes are no part of the law, unless there are no others.
  const warm = known(taken.slice(rate?.from ?? 0));
  const computeMs = warm.length < PUSHES_MIN ? known(taken) : warm;
  if (!rate || computeMs.length < PUSHES_MIN) {
    throw new DownpourError(
      'DP_USAGE',
      `run ${run} has compute times of ${computeMs.length} pushes; at least ${PUSHES_MIN} are needed: train for longer, or again where it is of an older release, which kept none`,
    );
  }
  const facts = stalenessFacts(stalenessHistogram)!;
  const { workersMin, workersMax, minibatchSize, consistency } = detail.config;
  const [first, last] = [training.step[0]!, training.step.at(-1)!];
  const examples = (training.examples.at(-1) ?? 0) - (training.examples[0] ?? 0);
  const minibatchesPerUpdate = Math.max(1, examples / minibatchSize / Math.max(1, last - first));
  const pushesPerUpdate = Math.max(1, minibatchesPerUpdate / minibatchesPerPush(detail.config));
  // Fixed by the configuration, as `downpour scale` does. Else by the law that the mean staleness is N − 1; in rounds, where
  // nothing is stale, each worker has a push in each update.
  const likely = isInRounds(consistency)
    ? pushesPerUpdate + sparesOf(detail.config)
    : 1 + facts.mean * pushesPerUpdate;
  const workers = workersMin === workersMax ? workersMin : Math.max(1, Math.round(likely));
  const { updatesPerSecond, from, seconds } = rate;
  const [warmStep, warmSeconds] = [training.step[from]!, training.seconds[from]!];
  const evaluationMs = lastEvaluationMs(training, evaluations, detail.step);
  const meanwhile = evaluations.filter(({ step }) => step >= warmStep && step < last).length;
  return {
    ...{ run, config: detail.config, computeMs, workers, mode: 'real', seed: detail.config.seed },
    ...{ updatesPerSecond, minibatchesPerUpdate, evaluationMs },
    warmUpMs: Math.max(0, 1_000 * (warmSeconds - warmStep / updatesPerSecond)),
    evaluating: (meanwhile * (evaluationMs ?? 0)) / (1_000 * seconds),
    stalenessMean: facts.mean,
    ...{ phase: detail.phase, reason: detail.reason, step: detail.step, seconds: detail.seconds },
    ...{ evaluations, test: detail.test, staleness: stalenessHistogram },
    ...{ used: null, serverBusy: null },
  };
}

/** From the last update to the result of its evaluation, ms; null: not the update or not its evaluation is known. */
function lastEvaluationMs(
  { step, seconds }: Metrics['training'],
  evaluations: Metrics['evaluations'],
  steps: number,
): number | null {
  const evaluation = evaluations.at(-1);
  // The points of a long curve are every second, fourth, … update.
  const isLast = steps - step.at(-1)! < step.at(-1)! - step.at(-2)!;
  if (!isLast || evaluation?.step !== steps) return null;
  return Math.max(0, 1_000 * (evaluation.seconds - seconds.at(-1)!));
}

export interface FittedWorld {
  readonly compute: ComputeLaw;
  readonly network: Network;
  /** What each worker needs of it, CPU ms. */
  readonly warmUpMs: number;
  /** Absent: not known. */
  readonly evaluationMs?: number;
}

/** Workers that an update in rounds does not wait for. */
const sparesOf = ({ consistency }: RunConfig): number =>
  consistency.mode === 'backup' && (consistency.quorum ?? null) === null
    ? (consistency.spares ?? 1)
    : 0;

/** Minibatches between two exchanges of a worker; slower workers of a run with dynamic steps have fewer. */
function minibatchesPerPush(config: RunConfig): number {
  const local = localOf(config);
  return local ? exchangeSteps(local) : 1;
}

/**
 * The law of its compute times is the times themselves. What a worker's round takes beyond them (server, network,
 * waiting for the next turn) is latency; in rounds, what a worker waits for others is none, since they wait in the simulation
 * too. With local steps there is one such round for several minibatches. Where all workers share a machine that they keep busy, a gradient costs what its cores give meanwhile, whoever
 * uses it, and compute times on the clock are those of workers in each other's way. Evaluations take a worker, or a core, from
 * the gradients. What the first updates took beyond the others is the warm-up of each worker.
 * @param cores that they share; absent: each has its own.
 */
export function fitWorld(recorded: Recorded, cores?: number): FittedWorld {
  const { run, workers, computeMs, updatesPerSecond, minibatchesPerUpdate, config } = recorded;
  const { evaluating, evaluationMs } = recorded;
  const minibatchesPerSecond = updatesPerSecond * minibatchesPerUpdate;
  const count = minibatchesPerPush(config);
  const inRounds = isInRounds(config.consistency);
  const roundMs = inRounds
    ? 1_000 / updatesPerSecond
    : (1_000 * (workers - evaluating) * count) / minibatchesPerSecond;
  const mean = meanOf(computeMs);
  const isBusy = cores !== undefined && workers >= cores;
  const demandMs = isBusy
    ? (1_000 * (cores - evaluating)) / minibatchesPerSecond
    : Math.min(mean, roundMs / count);
  const quorum = config.consistency.quorum ?? workers - sparesOf(config);
  // Times of several minibatches in a row part by the root of their number.
  const later = inRounds ? orderStatistic(computeMs, workers, quorum) - mean : 0;
  const lastMs = inRounds ? count * mean + Math.sqrt(count) * later : count * demandMs;
  const scale = demandMs / mean;
  // The first pushes of all come one round late anyhow, and on average half of it.
  const lateMs = Math.max(0, recorded.warmUpMs - roundMs / 2);
  return {
    warmUpMs: isBusy ? (lateMs * cores) / workers : lateMs,
    ...(evaluationMs === null ? {} : { evaluationMs }),
    compute: tracedLaw(`of run ${run} (${demandMs.toPrecision(3)} on average)`, [
      computeMs.map((ms) => scale * ms),
    ]),
    network: { ...NO_NETWORK, latencyMs: isBusy ? 0 : Math.max(0, roundMs - lastMs) / 2 },
  };
}

/** Mean time of the k-th of n workers, whose times are drawn from those that were seen, ms. */
function orderStatistic(times: readonly number[], n: number, k: number): number {
  const sorted = [...times].sort((a, b) => a - b);
  const kth = Math.min(n, Math.max(1, k));
  /** Probability that at least k of n are among the lowest share p. */
  const atLeast = (p: number) => {
    let sum = 0;
    let choose = 1;
    for (let i = 0; i <= n; i++) {
      if (i >= kth) sum += choose * p ** i * (1 - p) ** (n - i);
      choose *= (n - i) / (i + 1);
    }
    return sum;
  };
  return sorted.reduce((mean, ms, j) => {
    const count = sorted.length;
    return mean + ms * (atLeast((j + 1) / count) - atLeast(j / count));
  }, 0);
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
  const once = new Map(real.map((seen) => [seen.run, seen]));
  return [...once.values()].flatMap((seen) => {
    const own = predicted.filter(({ workers }) => workers === seen.workers);
    if (own.length === 0) return [];
    const { run, workers } = seen;
    const told = (what: string, measured: number, values: readonly number[], over = measured) => {
      const mean = meanOf(values);
      return { run, workers, what, measured, predicted: mean, error: (mean - measured) / over };
    };
    const speeds = own.map(updateRateOf);
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
