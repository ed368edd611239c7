import type { PartialConfig } from '../../../shared/config.ts';
import { chart } from '../../../study/plot.ts';
import { type Estimate, estimate, meanOf } from '../../../study/statistics.ts';
import { AHEAD, CORRECTIONS, type CorrectionArm, together } from '../arms.ts';
import { type Lab, type PaperFinding, type Result, separated, spread } from '../result.ts';
import { SMALL_DIGITS, trainSmall } from '../small-digits.ts';
import { type Tuned, tuneRate, tuningMean } from '../tune.ts';

export const dana: Result = {
  name: 'dana',
  title: 'look-ahead (DANA) against other corrections and modes, 16 and 32 workers, rates tuned',
  paper: 'Hakimi et al. 2019 (arXiv:1907.11612)',
  claim:
    'With a momentum for each worker and parameters sent where the updates under way will have taken them, many workers with momentum 0.9 reach the accuracy of one; other corrections do not.',
  setting: `${SMALL_DIGITS}, momentum 0.9, Γ(100) compute times; each arm's rate is the best of a grid on two other seeds`,
  minutes: 14,
  seeds: 5,
  repeat,
};

const LAW = 'gamma:100';
const MOMENTUM: PartialConfig = { optimizer: { kind: 'momentum', momentum: 0.9 } };
/** Rates are chosen on others than those that are told. */

interface DanaArm {
  readonly correction: CorrectionArm;
  readonly workers: number;
}

interface DanaPoint extends DanaArm {
  readonly tuned: Tuned;
  readonly accuracies: readonly number[];
}

async function repeat(lab: Lab): Promise<PaperFinding> {
  const counts = lab.quick ? [16] : [16, 32];
  const arms: DanaArm[] = [
    { correction: CORRECTIONS[0]!, workers: 1 },
    ...counts.flatMap((workers) =>
      [...CORRECTIONS, ...AHEAD, ...together(workers)].map((correction) => ({
        ...{ correction, workers },
      })),
    ),
  ];
  const measured: DanaPoint[] = [];
  const runs: Record<string, string | number | null>[] = [];
  for (const [i, arm] of arms.entries()) {
    const { correction, workers } = arm;
    const train = async (rate: number, seed: number) => {
      lab.progress(i / arms.length, `${correction.name}, ${workers} workers, rate ${rate}`);
      const config = { ...MOMENTUM, ...correction.config, learningRate: rate };
      const { updateOf = 1 } = correction;
      const { accuracy } = await trainSmall(lab, { workers, seed, law: LAW, config, updateOf });
      runs.push({ correction: correction.name, workers, rate, seed, accuracy });
      return accuracy;
    };
    const start = workers === 1 ? 0.02 : 0.01 * (correction.updateOf ?? 1);
    const tuned = await tuneRate(start, (rate) => tuningMean((seed) => train(rate, seed)));
    const accuracies: number[] = [];
    for (const seed of lab.seeds) accuracies.push(await train(tuned.rate, seed));
    measured.push({ ...arm, tuned, accuracies });
  }
  return findingOf(measured, counts, runs);
}

function findingOf(
  measured: readonly DanaPoint[],
  counts: readonly number[],
  runs: PaperFinding['runs'],
): PaperFinding {
  const of = (name: string, workers: number) =>
    measured.find((m) => m.correction.name === name && m.workers === workers)!;
  const one = of('none', 1);
  const against = (a: DanaPoint, b: DanaPoint): Estimate =>
    estimate(a.accuracies.map((accuracy, i) => accuracy - b.accuracies[i]!));
  const judged = counts.map((workers) => {
    const ahead = of('lookahead', workers);
    const others = CORRECTIONS.map(({ name }) => of(name, workers));
    const best = others.reduce((a, b) => (meanOf(b.accuracies) > meanOf(a.accuracies) ? b : a));
    const rounds = of('synchronous', workers);
    return {
      ...{ workers, ahead, best, rounds, gain: against(ahead, best), loss: against(ahead, one) },
      overRounds: against(ahead, rounds),
    };
  });
  const better = judged.filter(({ gain }) => separated(gain) > 0).length;
  const asOne = judged.filter(({ loss }) => separated(loss) >= 0).length;
  return {
    verdict:
      better === counts.length && asOne === counts.length
        ? 'holds'
        : better > 0
          ? 'partly'
          : judged.every(({ gain }) => separated(gain) === 0)
            ? 'not separated'
            : 'no',
    text: `One worker reaches ${spread(estimate(one.accuracies))} %. ${judged
      .map(
        ({ workers, ahead, best, rounds, gain, loss, overRounds }) =>
          `${workers} workers: look-ahead ${spread(estimate(ahead.accuracies))} %, ${spread(loss)} points against one worker${separated(loss) === 0 ? ' (not separated)' : ''}, and ${spread(gain)} against the best of the others, '${best.correction.name}'${separated(gain) === 0 ? ' (not separated)' : ''}; synchronous ${spread(estimate(rounds.accuracies))} %, look-ahead against it ${spread(overRounds)}${separated(overRounds) === 0 ? ' (not separated)' : ''}.`,
      )
      .join(' ')}`,
    headings: [
      'workers',
      'correction',
      'from',
      'test accuracy, %',
      'against one',
      'rate',
      'rates tried',
    ],
    rows: measured.map((m) => [
      ...[String(m.workers), m.correction.name, m.correction.paper],
      spread(estimate(m.accuracies)),
      m === one ? '' : spread(against(m, one)),
      ...[String(m.tuned.rate), m.tuned.tried.map(({ rate }) => rate).join(', ')],
    ]),
    plots: {
      'rates.svg': chart({
        title: `Accuracy over the learning rate, ${counts[0]} workers, two seeds`,
        x: { label: 'learning rate', log: true },
        y: { label: 'test accuracy, %' },
        series: measured
          .filter(({ workers }) => workers === counts[0])
          .map(({ correction, tuned }) => ({
            name: correction.name,
            points: tuned.tried.map(({ rate: x, value: y }) => ({ x, y })),
          })),
      }),
    },
    runs,
  };
}
