import type { PartialConfig } from '../../../shared/config.ts';
import { chart, pointOf } from '../../../study/plot.ts';
import { estimate, meanOf } from '../../../study/statistics.ts';
import { type ComputeLaw, parseLaw, slowed } from '../../simulate/laws.ts';
import { createQuadratic } from '../../simulate/quadratic.ts';
import {
  type Lab,
  type PaperFinding,
  type Result,
  separated,
  spread,
  trial,
  updates,
} from '../result.ts';
import { trainSmall } from '../small-digits.ts';
import { TUNING_SEED, tuneRate } from '../tune.ts';

export const ssp: Result = {
  name: 'ssp',
  title: 'stale synchronous parallel: stragglers that come and go, and one that stays',
  paper: 'Ho et al. 2013 (Stale Synchronous Parallel, NeurIPS 26)',
  claim:
    'Workers that may be s minibatches apart hardly wait for stragglers, and learn as much from each gradient as workers that wait for each other.',
  setting:
    '32 workers, s from 0 to 100 (`aheadMax`), compute times exponential (stragglers come and go), and the same with one worker that always takes 5 times as long; speed over 12,000 updates, accuracy of 10,000 digits at 14 × 14 after 2,400 gradients without momentum, rates tuned on another seed',
  minutes: 6,
  seeds: 5,
  repeat,
};

const WORKERS = 32;
const FACTOR = 5;
const MEAN_MS = 100;
const BOUNDS = [0, 3, 10, 100];
const SGD = { optimizer: { kind: 'sgd' } } as const satisfies PartialConfig;

const passing = parseLaw(`exponential:${MEAN_MS}`);
const STRAGGLERS: Readonly<Record<string, ComputeLaw>> = {
  'come and go': passing,
  'one stays': slowed(passing, 1, FACTOR),
};

const problem = createQuadratic({ curvatures: [1], noise: 0, start: 1 });

interface SspPoint {
  readonly stragglers: string;
  readonly bound: number;
  readonly rate: number;
  /** Updates in the mean time of a gradient, by seed. */
  readonly speeds: readonly number[];
  /** The same of the second half, when the lead of the fast workers is used up. */
  readonly later: readonly number[];
  readonly accuracies: readonly number[];
}

async function repeat(lab: Lab): Promise<PaperFinding> {
  const bounds = lab.quick ? [0, 10] : BOUNDS;
  const arms = Object.entries(STRAGGLERS).flatMap(([stragglers, law]) =>
    bounds.map((bound) => ({ stragglers, law, bound })),
  );
  const runs: Record<string, string | number | null>[] = [];
  const results: SspPoint[] = [];
  for (const { stragglers, law, bound } of arms) {
    const consistency = { mode: 'bounded', aheadMax: bound, correction: 'none' } as const;
    const learn = async (rate: number, seed: number) => {
      lab.progress(results.length / arms.length, `stragglers ${stragglers}, s = ${bound}`);
      const config = { ...SGD, consistency, learningRate: rate };
      const { accuracy } = await trainSmall(lab, { workers: WORKERS, seed, law, config });
      return accuracy;
    };
    const { rate } = await tuneRate(0.05, (at) => learn(at, TUNING_SEED));
    const speeds: number[] = [];
    const later: number[] = [];
    const accuracies: number[] = [];
    for (const seed of lab.seeds) {
      const speed = await speedOf(lab, law, seed, consistency);
      const accuracy = await learn(rate, seed);
      speeds.push(speed.whole);
      later.push(speed.later);
      accuracies.push(accuracy);
      runs.push({ stragglers, bound, rate, seed, ...speed, accuracy });
    }
    results.push({ stragglers, bound, rate, speeds, later, accuracies });
  }
  return findingOf(results, bounds, runs);
}

async function speedOf(
  lab: Lab,
  law: ComputeLaw,
  seed: number,
  consistency: NonNullable<PartialConfig['consistency']>,
): Promise<{ readonly whole: number; readonly later: number }> {
  const steps = lab.quick ? 2_000 : 12_000;
  let middleMs = 0;
  const { nowMs } = await trial(lab, {
    ...{ problem, workers: WORKERS, seed, law },
    config: { ...updates(steps), ...SGD, learningRate: 1e-4, minibatchSize: 1, consistency },
    onStep({ step, nowMs }) {
      if (step === steps / 2) middleMs = nowMs;
    },
  });
  return {
    whole: (steps * MEAN_MS) / nowMs,
    later: ((steps / 2) * MEAN_MS) / (nowMs - middleMs),
  };
}

function findingOf(
  results: readonly SspPoint[],
  bounds: readonly number[],
  runs: PaperFinding['runs'],
): PaperFinding {
  const [go, stays] = Object.keys(STRAGGLERS) as [string, string];
  const of = (stragglers: string, bound: number) =>
    results.find((r) => r.stragglers === stragglers && r.bound === bound)!;
  const least = bounds[0]!;
  const wide = bounds.includes(10) ? 10 : bounds.at(-1)!;
  const gain = (stragglers: string) =>
    meanOf(of(stragglers, wide).later) / meanOf(of(stragglers, least).later);
  const learning = estimate(
    of(go, wide).accuracies.map((accuracy, i) => accuracy - of(go, least).accuracies[i]!),
  );
  const ceiling = WORKERS / FACTOR;
  const list = (stragglers: string, what: 'speeds' | 'later') =>
    bounds.map((bound) => meanOf(of(stragglers, bound)[what]).toFixed(1)).join(' / ');
  const hides = gain(go) > 2;
  const keeps = separated(learning) >= 0;
  const held = bounds.every((bound) => meanOf(of(stays, bound).later) < 1.1 * ceiling);
  return {
    verdict: hides && keeps ? (held ? 'partly' : 'holds') : hides ? 'partly' : 'no',
    text: `With s = ${bounds.join(' / ')} there are ${list(go, 'speeds')} updates in the mean time of a gradient if stragglers come and go, and ${list(stays, 'speeds')} if one worker always takes ${FACTOR} times as long; of the second half ${list(stays, 'later')}, since no bound lets ${WORKERS} workers make more than ${ceiling.toFixed(1)} in the long run. Equal gradients teach as much: s = ${wide} differs from s = ${least} by ${spread(learning)} points${separated(learning) === 0 ? ' (not separated)' : ''}. SSP hides passing stragglers${held ? ', and not a permanent one' : ''}.`,
    headings: [
      'stragglers',
      's',
      'updates per gradient time',
      'second half',
      'test accuracy, %',
      'rate',
    ],
    rows: results.map(({ stragglers, bound, rate, speeds, later, accuracies }) => [
      ...[stragglers, String(bound), spread(estimate(speeds), 1), spread(estimate(later), 1)],
      ...[spread(estimate(accuracies)), String(rate)],
    ]),
    plots: {
      'speed.svg': chart({
        title: `Updates in the mean time of a gradient, ${WORKERS} workers`,
        x: { label: 's, minibatches apart, + 1', log: true },
        y: { label: 'updates, second half of the run' },
        series: [go, stays].map((stragglers) => ({
          name: `stragglers: ${stragglers}`,
          points: bounds.map((bound) => pointOf(bound + 1, estimate(of(stragglers, bound).later))),
        })),
      }),
    },
    runs,
  };
}
