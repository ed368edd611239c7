import type { PartialConfig } from '../../../shared/config.ts';
import { chart } from '../../../study/plot.ts';
import { type Estimate, estimate, meanOf } from '../../../study/statistics.ts';
import { createQuadratic, curvatures } from '../../simulate/quadratic.ts';
import type { VirtualProblem } from '../../simulate/virtual-cluster.ts';
import { CORRECTIONS } from '../arms.ts';
import {
  type Finding,
  type Lab,
  type Result,
  separated,
  spread,
  trial,
  updates,
} from '../result.ts';
import { tuneRate } from '../tune.ts';

export const ringmaster: Result = {
  name: 'ringmaster',
  title: 'time to an accuracy with workers of very unlike speeds: a bound against plain',
  paper: 'Maranjyan et al. 2025 (arXiv:2501.16168)',
  claim:
    'Where worker i takes i times as long, dropping gradients that are staler than a bound (Ringmaster ASGD) reaches an accuracy many times sooner than plain asynchronous SGD. Here `stalenessMax` is that bound, without stopping calculations.',
  setting:
    'a quadratic of 200 dimensions with noise, 1,000 workers, rates tuned on two other seeds; virtual time until the loss is 2 % of its first value',
  minutes: 8,
  seeds: 5,
  repeat,
};

const START = 1;
const CURVATURES = curvatures(200, 0.1);
const NOISE = 0.1;
/** Share of the first loss that is to be reached. */
const SHARE = 0.02;
const TUNING_FROM = 9_001;
const TUNING_SEEDS = 2;
/** Ends what does not get there: virtual ms, of which the fastest worker needs one for a gradient. */
const CAP_MS = 4_000;

interface Arm {
  readonly name: string;
  readonly config: PartialConfig;
}

const bound = (stalenessMax: number): Arm => ({
  name: `bound ${stalenessMax}`,
  config: { consistency: { correction: 'none', stalenessMax } },
});

async function repeat(lab: Lab): Promise<Finding> {
  const workers = lab.quick ? 100 : 1_000;
  const arms: Arm[] = [
    ...CORRECTIONS.filter(({ name }) => name !== 'clip'),
    ...(lab.quick ? [10] : [1, 2, 5, 20, 80]).map(bound),
  ];
  const runs: Record<string, string | number | null>[] = [];
  const results: { readonly arm: Arm; readonly rate: number; readonly times: number[] }[] = [];
  for (const [i, arm] of arms.entries()) {
    const time = async (rate: number, seed: number) => {
      lab.progress(i / arms.length, `${arm.name}, rate ${rate}, seed ${seed}`);
      const ms = await timeTo(lab, { ...arm.config, learningRate: rate }, workers, seed);
      runs.push({ arm: arm.name, rate, seed, ms });
      return ms ?? CAP_MS;
    };
    const { rate } = await tuneRate(0.1, async (tried) => {
      const times: number[] = [];
      for (let s = 0; s < TUNING_SEEDS; s++) times.push(await time(tried, TUNING_FROM + s));
      return -meanOf(times);
    });
    const times: number[] = [];
    for (const seed of lab.seeds) times.push(await time(rate, seed));
    results.push({ arm, rate, times });
  }
  const plain = results[0]!;
  const bounded = results.filter(({ arm }) => arm.name.startsWith('bound'));
  const best = bounded.reduce((a, b) => (meanOf(b.times) < meanOf(a.times) ? b : a));
  const gain: Estimate = estimate(plain.times.map((ms, k) => ms / best.times[k]! - 1));
  const capped = (times: readonly number[]) => times.some((ms) => ms >= CAP_MS);
  const told = (times: readonly number[]) =>
    `${capped(times) ? 'at least ' : ''}${spread(estimate(times), 0)}`;
  return {
    verdict: separated(gain) > 0 ? 'holds' : separated(gain) < 0 ? 'no' : 'not separated',
    text: `Plain asynchronous SGD takes ${told(plain.times)} ms, the best bound (${best.arm.name}) ${told(best.times)}: ${(1 + gain.mean).toFixed(1)} times sooner.`,
    headings: ['arm', 'virtual ms', 'times sooner than plain', 'rate'],
    rows: results.map(({ arm, rate, times }) => [
      ...[arm.name, told(times), (meanOf(plain.times) / meanOf(times)).toFixed(1), String(rate)],
    ]),
    plots: {
      'time.svg': chart({
        title: 'Virtual time to the accuracy',
        x: { label: 'arm', names: results.map(({ arm }) => arm.name) },
        y: { label: 'ms' },
        series: [
          {
            ...{ name: '', style: 'bars' as const },
            points: results.map(({ times }, x) => ({ x, y: meanOf(times) })),
          },
        ],
      }),
    },
    runs,
  };
}

/** @returns virtual ms; null: not reached. */
async function timeTo(
  lab: Lab,
  config: PartialConfig,
  workers: number,
  seed: number,
): Promise<number | null> {
  const quadratic = createQuadratic({ curvatures: CURVATURES, noise: NOISE, start: START });
  let first: number | null = null;
  let isThere = false;
  // Whoever pulls gets the newest parameters, so their loss is that of this moment.
  const problem: VirtualProblem = {
    ...quadratic,
    gradient(lease, x, payload, noiseSeed) {
      const loss = quadratic.gradient(lease, x, payload, noiseSeed) as number;
      first ??= loss;
      isThere ||= loss <= SHARE * first;
      return loss;
    },
  };
  const { nowMs } = await trial(lab, {
    ...{ problem, workers, seed, law: 'ladder:1' },
    config: {
      ...updates(1_000_000),
      ...{ minibatchSize: 1, leaseSeconds: 3_600, divergence: { rollbacksMax: 0 }, ...config },
      optimizer: { kind: 'sgd' },
    },
    until: ({ ms }) => isThere || ms >= CAP_MS,
  });
  return isThere ? nowMs : null;
}
