import type { PartialConfig } from '../../../shared/config.ts';
import { chart, pointOf } from '../../../study/plot.ts';
import { type Estimate, estimate } from '../../../study/statistics.ts';
import { type Lab, type PaperFinding, type Result, separated, spread } from '../result.ts';
import { trainSmall } from '../small-digits.ts';
import { tuneRate, tuningMean } from '../tune.ts';

export const sparseloco: Result = {
  name: 'sparseloco',
  title: 'SparseLoCo: the largest 1/64 of what local steps change, with an error that fades',
  paper: 'Sarfi et al. 2025 (arXiv:2508.15706)',
  claim:
    'Workers that push a few per cent of what their local steps have changed, with error feedback that fades by 0.95 and without outer momentum, reach at least the accuracy of DiLoCo, which pushes all of it.',
  setting:
    '10,000 digits at 14 × 14, a network of 196-32-10, minibatches of 16, 4 synchronous workers with Γ(100) compute times, 10 local steps of AdamW at 0.001 between two exchanges, 6,400 local steps in all; each arm has the best outer rate of a grid on two other seeds; without the 2-bit numbers of the paper',
  minutes: 5,
  seeds: 5,
  repeat,
};

const WORKERS = 4;
const LOCAL_STEPS = 10;
const GRADIENTS = 6_400;
const DENSITY = 1 / 64;
const MOMENTUM = 0.9;

const sparse = (residualDecay: number): PartialConfig => ({
  compression: {
    push: { kind: 'topk', density: DENSITY, warmupEpochs: 0, momentum: 0, residualDecay },
  },
});

interface SparseArm {
  readonly name: string;
  readonly outerMomentum: number;
  /** The grid of outer rates begins here. */
  readonly startRate: number;
  readonly config: PartialConfig;
}

const FADING = 'topk, the error fades by 0.95';
const KEPT = 'topk, the error is kept';
const DILOCO = 'all, outer momentum (DiLoCo)';
const MEANS = 'all, no outer momentum';

const ARMS: readonly SparseArm[] = [
  { name: DILOCO, outerMomentum: MOMENTUM, startRate: 0.7, config: {} },
  { name: MEANS, outerMomentum: 0, startRate: 1, config: {} },
  { name: FADING, outerMomentum: 0, startRate: 1, config: sparse(0.95) },
  { name: KEPT, outerMomentum: 0, startRate: 1, config: sparse(1) },
];

interface SparsePoint {
  readonly name: string;
  readonly rate: number;
  readonly accuracies: readonly number[];
  readonly pushedBytes: number;
}

async function repeat(lab: Lab): Promise<PaperFinding> {
  const runs: Record<string, string | number | null>[] = [];
  const points: SparsePoint[] = [];
  for (const { name, outerMomentum, startRate, config } of ARMS) {
    let pushedBytes = 0;
    const train = async (learningRate: number, seed: number) => {
      lab.progress(points.length / ARMS.length, `${name}, outer rate ${learningRate}`);
      const { accuracy, outcome } = await trainSmall(lab, {
        ...{ workers: WORKERS, seed, law: 'gamma:100', gradients: GRADIENTS },
        updateOf: LOCAL_STEPS * WORKERS,
        config: {
          ...{ learningRate: 0.001, optimizer: { kind: 'adamw' } },
          ...{ consistency: { mode: 'synchronous' }, local: { steps: LOCAL_STEPS } },
          ...{ outer: { learningRate, momentum: outerMomentum }, ...config },
        },
      });
      pushedBytes = outcome.pushedBytes;
      runs.push({ arm: name, outerRate: learningRate, seed, accuracy, pushedBytes });
      return accuracy;
    };
    const { rate } = lab.quick
      ? { rate: startRate }
      : await tuneRate(startRate, (at) => tuningMean((seed) => train(at, seed)));
    const accuracies: number[] = [];
    for (const seed of lab.seeds) accuracies.push(await train(rate, seed));
    points.push({ name, rate, accuracies, pushedBytes });
  }
  return findingOf(points, runs);
}

function findingOf(points: readonly SparsePoint[], runs: PaperFinding['runs']): PaperFinding {
  const of = (name: string) => points.find((point) => point.name === name)!;
  const by = (a: string, b: string): Estimate =>
    estimate(of(a).accuracies.map((value, i) => value - of(b).accuracies[i]!));
  const told = (name: string) => `${spread(estimate(of(name).accuracies), 1)} %`;
  const gap = (value: Estimate) =>
    `${spread(value)} points${separated(value) === 0 ? ' (not separated)' : ''}`;
  const [asDiloco, fades] = [by(FADING, DILOCO), by(FADING, KEPT)];
  const fewer = (of(DILOCO).pushedBytes / of(FADING).pushedBytes).toFixed(0);
  const keeps = separated(asDiloco) >= 0;
  const helps = separated(fades) > 0;
  return {
    verdict: keeps && helps ? 'holds' : keeps || helps ? 'partly' : 'no',
    text: `SparseLoCo reaches ${told(FADING)} with ${fewer} times fewer bytes, ${gap(asDiloco)} against DiLoCo (${told(DILOCO)}) and ${gap(by(FADING, MEANS))} against whole pushes without outer momentum (${told(MEANS)}). An error that fades by 0.95 against one that is kept (${told(KEPT)}): ${gap(fades)}.`,
    headings: ['pushes', 'test accuracy, %', 'against DiLoCo', 'outer rate', 'kB pushed'],
    rows: points.map(({ name, rate, accuracies, pushedBytes }) => [
      ...[name, spread(estimate(accuracies)), name === DILOCO ? '' : spread(by(name, DILOCO))],
      ...[String(Number(rate.toPrecision(3))), (pushedBytes / 1_000).toFixed(0)],
    ]),
    plots: {
      'accuracy.svg': chart({
        title: 'Accuracy against bytes pushed',
        x: { label: 'bytes pushed', log: true },
        y: { label: 'test accuracy, %' },
        series: points.map(({ name, accuracies, pushedBytes }) => ({
          ...{ name, style: 'scatter' as const },
          points: [pointOf(pushedBytes, estimate(accuracies))],
        })),
      }),
    },
    runs,
  };
}
