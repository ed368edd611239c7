import type { PartialConfig } from '../../../shared/config.ts';
import { chart, pointOf } from '../../../study/plot.ts';
import { estimate, meanOf } from '../../../study/statistics.ts';
import { createQuadratic, curvatures } from '../../simulate/quadratic.ts';
import { raceTo } from '../race.ts';
import {
  type Lab,
  type PaperFinding,
  type Result,
  separated,
  spread,
  trial,
  updates,
} from '../result.ts';
import { TUNING_SEED, tuneRate } from '../tune.ts';

export const backup: Result = {
  name: 'backup',
  title: 'backup workers: time of an update, and time to an accuracy, over the number of spares',
  paper:
    'Chen et al. 2016 (arXiv:1604.00981); order statistics as in Dutta et al. 2018 (arXiv:1803.01113)',
  claim:
    'An update that takes the first N of N + b gradients is faster than one that waits for all, and a few backup workers reach an accuracy sooner.',
  setting:
    '64 workers, b of them spares (`mode: backup`); times alike (Γ(100)), exponential, and with a long tail (Pareto, 1.5); time to 2 % of the first loss of a quadratic of 50 dimensions with noise, rates tuned on another seed',
  minutes: 5,
  seeds: 5,
  repeat,
};

const WORKERS = 64;
const MEAN_MS = 100;
const SPARES = [0, 1, 2, 4, 8, 16, 32, 48, 56];
/** What the paper calls a few. */
const FEW = 4;
const LAWS = ['gamma:100', 'exponential:100', 'pareto:100,1.5'] as const;
const EXPONENTIAL = 'exponential:100';
const QUADRATIC = { curvatures: curvatures(50, 0.1), noise: 1, start: 1 };
const SHARE = 0.02;
const CAP_MS = 200_000;
const RATE_START = 0.2;
/** A measured time may differ from the law by this share: a late worker's unused gradient is in the way even with few spares. */
const NEAR = 0.1;

const still = createQuadratic({ curvatures: [1], noise: 0, start: 1 });

const configOf = (spares: number): PartialConfig => ({
  optimizer: { kind: 'sgd' },
  consistency: spares === 0 ? { mode: 'synchronous' } : { mode: 'backup', spares },
});

interface BackupPoint {
  readonly law: string;
  readonly spares: number;
  readonly rate: number;
  /** Time of an update, ms, by seed. */
  readonly updateMs: readonly number[];
  /** To the accuracy, ms, by seed. */
  readonly times: readonly number[];
}

async function repeat(lab: Lab): Promise<PaperFinding> {
  const spares = lab.quick ? [0, 4] : SPARES;
  const laws = lab.quick ? [EXPONENTIAL] : LAWS;
  const arms = laws.flatMap((law) => spares.map((b) => ({ law, b })));
  const runs: Record<string, string | number | null>[] = [];
  const results: BackupPoint[] = [];
  for (const { law, b } of arms) {
    const race = async (rate: number, seed: number) => {
      lab.progress(results.length / arms.length, `${law}, ${b} spares, rate ${rate}`);
      const config = { ...configOf(b), learningRate: rate };
      const fixed = { quadratic: QUADRATIC, share: SHARE, capMs: CAP_MS, workers: WORKERS, law };
      return raceTo(lab, { ...fixed, seed, config });
    };
    let rate = RATE_START;
    if (!lab.quick) {
      rate = (await tuneRate(rate, async (at) => (await race(at, TUNING_SEED)).score)).rate;
    }
    const updateMs: number[] = [];
    const times: number[] = [];
    for (const seed of lab.seeds) {
      const ms = (await race(rate, seed)).ms ?? CAP_MS;
      const one = await updateTime(lab, law, b, seed);
      updateMs.push(one);
      times.push(ms);
      runs.push({ law, spares: b, rate, seed, updateMs: one, ms });
    }
    results.push({ law, spares: b, rate, updateMs, times });
  }
  return findingOf(results, laws, spares, runs);
}

async function updateTime(lab: Lab, law: string, spares: number, seed: number): Promise<number> {
  const steps = lab.quick ? 200 : 1_000;
  const { nowMs } = await trial(lab, {
    ...{ problem: still, workers: WORKERS, seed, law },
    config: { ...updates(steps), ...configOf(spares), learningRate: 1e-4, minibatchSize: 1 },
  });
  return nowMs / steps;
}

/** The mean time of the first K of n exponential ones, in their mean: H(n) − H(n − K). */
function firstOf(n: number, k: number): number {
  let sum = 0;
  for (let i = n - k + 1; i <= n; i++) sum += 1 / i;
  return sum;
}

function findingOf(
  results: readonly BackupPoint[],
  laws: readonly string[],
  spares: readonly number[],
  runs: PaperFinding['runs'],
): PaperFinding {
  const of = (law: string, b: number) => results.find((r) => r.law === law && r.spares === b)!;
  const theory = (b: number) => MEAN_MS * firstOf(WORKERS, WORKERS - b);
  const above = (b: number) => meanOf(of(EXPONENTIAL, b).updateMs) / theory(b) - 1;
  const off = Math.max(...spares.filter((b) => b <= FEW).map((b) => Math.abs(above(b))));
  const most = spares.at(-1)!;
  const judged = laws.map((law) => {
    const own = spares.map((b) => of(law, b));
    const best = own.reduce((a, b) => (meanOf(b.times) < meanOf(a.times) ? b : a));
    const all = of(law, 0);
    const saved = estimate(all.times.map((ms, i) => 1 - best.times[i]! / ms));
    return { law, best, saved, helps: best !== all && separated(saved) > 0 };
  });
  const percent = (share: number) => `${(100 * share).toFixed(0)} %`;
  const helped = judged.filter(({ helps }) => helps);
  const seconds = (ms: readonly number[]) => spread(estimate(ms.map((each) => each / 1_000)), 1);
  return {
    verdict:
      helped.length === laws.length && off < NEAR ? 'holds' : helped.length > 0 ? 'partly' : 'no',
    text: `With exponential times and up to ${FEW} spares an update takes what order statistics say, H(64) − H(b), within ${(100 * off).toFixed(1)} %. With ${most} it takes ${percent(above(most))} longer: a worker that comes too late has finished a gradient that nobody uses, since no calculation is stopped. ${judged.map(({ law, best, saved, helps }) => `${law}: ${helps ? `${best.spares} spares are best and reach the accuracy in ${percent(saved.mean)} less time than none (interval ${percent(saved.low)} to ${percent(saved.high)})` : `no number of spares is faster than none${best.spares === 0 ? '' : ' (not separated)'}`}.`).join(' ')}`,
    headings: ['times', 'spares', 'ms per update', 'law', 's to the accuracy', 'rate'],
    rows: results.map(({ law, spares: b, rate, updateMs, times }) => [
      ...[law, String(b), spread(estimate(updateMs), 1)],
      law === EXPONENTIAL ? theory(b).toFixed(1) : '',
      ...[seconds(times), String(rate)],
    ]),
    plots: {
      'time.svg': chart({
        title: 'Time to the accuracy over the number of backup workers',
        x: { label: 'spares + 1, of 64 workers', log: true },
        y: { label: 'virtual seconds', log: true },
        series: laws.map((law) => ({
          name: law,
          points: spares.map((b) =>
            pointOf(b + 1, estimate(of(law, b).times.map((ms) => ms / 1e3))),
          ),
        })),
      }),
    },
    runs,
  };
}
