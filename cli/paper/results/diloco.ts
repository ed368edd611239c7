import type { PartialConfig } from '../../../shared/config.ts';
import { chart, pointOf } from '../../../study/plot.ts';
import { type Estimate, estimate, meanOf } from '../../../study/statistics.ts';
import { type Lab, type PaperFinding, type Result, separated, spread } from '../result.ts';
import { trainSmall } from '../small-digits.ts';
import { tuneRate, tuningMean } from '../tune.ts';

export const diloco: Result = {
  name: 'diloco',
  title: 'asynchronous DiLoCo: naive outer momentum, delayed Nesterov, and one worker as control',
  paper:
    'Liu et al. 2024 (asynchronous local SGD, arXiv:2401.09135), DiLoCo (arXiv:2311.08105), control as in SNOO (arXiv:2510.15830)',
  claim:
    'Nesterov momentum of the outer optimizer spoils asynchronous local training; delayed Nesterov momentum (DN) repairs it without tuning, at the speed of asynchronous workers.',
  setting:
    '10,000 digits at 14 × 14, a network of 196-32-10, minibatches of 16, 4 workers that need 0.58, 0.75, 1.51 and 3.33 times the mean for a minibatch, 20 local steps of Adam at 0.001 between two exchanges, 3,200 local steps in all',
  minutes: 4,
  seeds: 5,
  repeat,
};

const WORKERS = 4;
const LOCAL_STEPS = 20;
const GRADIENTS = 3_200;
/** Speeds are the inverse of the times that the setting names. */
const LAW = 'speeds:100,1.724,1.333,0.662,0.3';
const ALONE = 'gamma:100';
const MEAN_MS = 100;
const NESTEROV = { learningRate: 0.7, momentum: 0.9 };

interface DilocoArm {
  readonly name: string;
  readonly workers: number;
  readonly mode: 'async' | 'synchronous';
  readonly outer: PartialConfig['outer'];
  /** The outer rate is tuned, from here on. */
  readonly tunedFrom?: number;
}

const NAMES = {
  rounds: 'synchronous, outer momentum',
  averages: 'synchronous, no outer momentum',
  naive: 'asynchronous, naive outer momentum',
  retuned: 'asynchronous, naive, outer rate tuned',
  delayed: 'asynchronous, DN',
  delayedTuned: 'asynchronous, DN, outer rate tuned',
  none: 'asynchronous, no outer momentum',
  alone: 'one worker, outer momentum',
  plain: 'one worker, plain',
} as const;

const ARMS: readonly DilocoArm[] = [
  { name: NAMES.rounds, workers: WORKERS, mode: 'synchronous', outer: NESTEROV },
  { name: NAMES.averages, workers: WORKERS, mode: 'synchronous', outer: {} },
  { name: NAMES.naive, workers: WORKERS, mode: 'async', outer: NESTEROV },
  { name: NAMES.retuned, workers: WORKERS, mode: 'async', outer: NESTEROV, tunedFrom: 0.07 },
  {
    name: NAMES.delayed,
    workers: WORKERS,
    mode: 'async',
    outer: { ...NESTEROV, delayed: WORKERS },
  },
  {
    ...{ name: NAMES.delayedTuned, workers: WORKERS, mode: 'async', tunedFrom: 0.7 },
    outer: { ...NESTEROV, delayed: WORKERS },
  },
  // Each adds its change divided by the number of workers: the mean of a round, one after the other.
  { name: NAMES.none, workers: WORKERS, mode: 'async', outer: { learningRate: 1 / WORKERS } },
  { name: NAMES.alone, workers: 1, mode: 'async', outer: NESTEROV },
  { name: NAMES.plain, workers: 1, mode: 'async', outer: {} },
];

interface DilocoPoint {
  readonly arm: DilocoArm;
  readonly outerRate: number;
  readonly accuracies: readonly number[];
  /** In the mean time of a minibatch. */
  readonly times: readonly number[];
}

async function repeat(lab: Lab): Promise<PaperFinding> {
  const runs: Record<string, string | number | null>[] = [];
  const results: DilocoPoint[] = [];
  for (const arm of ARMS) {
    const { name, workers, mode, outer, tunedFrom } = arm;
    const train = async (learningRate: number, seed: number) => {
      lab.progress(results.length / ARMS.length, `${name}, outer rate ${learningRate}`);
      const { accuracy, outcome } = await trainSmall(lab, {
        ...{ workers, seed, law: workers === 1 ? ALONE : LAW },
        updateOf: LOCAL_STEPS * (mode === 'synchronous' ? workers : 1),
        // One worker takes as many steps as each of the others on average.
        gradients: (GRADIENTS * workers) / WORKERS,
        config: {
          ...{ learningRate: 0.001, optimizer: { kind: 'adam' } },
          ...{ consistency: { mode, correction: 'none' }, local: { steps: LOCAL_STEPS } },
          outer: { ...outer, learningRate },
        },
      });
      const time = outcome.nowMs / MEAN_MS;
      runs.push({ arm: name, outerRate: learningRate, seed, accuracy, time });
      return { accuracy, time };
    };
    let outerRate = outer?.learningRate ?? 1;
    if (tunedFrom !== undefined && !lab.quick) {
      const tuned = await tuneRate(tunedFrom, (rate) =>
        tuningMean(async (seed) => (await train(rate, seed)).accuracy),
      );
      outerRate = tuned.rate;
    }
    const accuracies: number[] = [];
    const times: number[] = [];
    for (const seed of lab.seeds) {
      const { accuracy, time } = await train(outerRate, seed);
      accuracies.push(accuracy);
      times.push(time);
    }
    results.push({ arm, outerRate, accuracies, times });
  }
  return findingOf(results, runs);
}

function findingOf(results: readonly DilocoPoint[], runs: PaperFinding['runs']): PaperFinding {
  const of = (key: keyof typeof NAMES) => results.find(({ arm }) => arm.name === NAMES[key])!;
  const by = (a: keyof typeof NAMES, b: keyof typeof NAMES): Estimate =>
    estimate(of(a).accuracies.map((value, i) => value - of(b).accuracies[i]!));
  const told = (key: keyof typeof NAMES) => `${spread(estimate(of(key).accuracies), 1)} %`;
  const gap = (value: Estimate) =>
    `${spread(value, 1)} points${separated(value) === 0 ? ' (not separated)' : ''}`;
  const [repair, rounds] = [by('delayed', 'naive'), by('delayed', 'rounds')];
  const collapse = by('naive', 'rounds');
  const repairs = separated(repair) > 0;
  const collapses = separated(collapse) < 0;
  const faster = meanOf(of('rounds').times) / meanOf(of('delayed').times);
  return {
    verdict: repairs && collapses ? 'holds' : repairs || collapses ? 'partly' : 'no',
    text: `Synchronous DiLoCo reaches ${told('rounds')}, without outer momentum ${told('averages')}. Asynchronous with naive outer momentum: ${told('naive')}, ${gap(collapse)} against synchronous; DN at the same settings: ${told('delayed')}, ${gap(repair)} against naive and ${gap(rounds)} against synchronous, ${faster.toFixed(1)} times faster. With outer rates tuned: naive ${told('retuned')} (rate ${Number(of('retuned').outerRate.toPrecision(2))}), DN ${told('delayedTuned')} (rate ${Number(of('delayedTuned').outerRate.toPrecision(2))}), DN against naive ${gap(by('delayedTuned', 'retuned'))}. Control: one worker with a quarter of the steps and the same outer momentum reaches ${told('alone')}, plain ${told('plain')}; four synchronous workers are better than it by ${gap(by('rounds', 'alone'))}.`,
    headings: ['arm', 'test accuracy, %', 'time, in minibatches', 'outer rate'],
    rows: results.map(({ arm, accuracies, times, outerRate }) => [
      ...[arm.name, spread(estimate(accuracies)), meanOf(times).toFixed(0)],
      String(Number(outerRate.toPrecision(3))),
    ]),
    plots: {
      'accuracy.svg': chart({
        title: 'Accuracy against time',
        x: { label: 'time, in the mean time of a minibatch' },
        y: { label: 'test accuracy, %' },
        series: results.map(({ arm, accuracies, times }) => {
          const point = pointOf(meanOf(times), estimate(accuracies));
          return { name: arm.name, style: 'scatter' as const, points: [point] };
        }),
      }),
    },
    runs,
  };
}
