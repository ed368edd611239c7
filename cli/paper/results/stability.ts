import type { PartialConfig } from '../../../shared/config.ts';
import { chart } from '../../../study/plot.ts';
import { AHEAD, CORRECTIONS, type CorrectionArm } from '../arms.ts';
import type { Lab, PaperFinding, Result } from '../result.ts';
import { SMALL_DIGITS, trainSmall } from '../small-digits.ts';
import { largestStable } from '../tune.ts';

export const stability: Result = {
  name: 'stability',
  title: 'the largest stable learning rate over workers, for each correction',
  paper:
    'DC-ASGD (arXiv:1609.08326), gap-aware (arXiv:1909.10802), staleness-aware (arXiv:1511.05950), DANA (arXiv:1907.11612)',
  claim:
    'Plain asynchronous SGD bears a learning rate that falls with the number of workers; corrections widen the range of rates that train.',
  setting: `${SMALL_DIGITS}, Γ(100) compute times; stable is a rate with which every seed ends within 10 points of one worker at 0.1 (without momentum) or 0.01 (0.9), in steps of 2`,
  minutes: 12,
  seeds: 5,
  repeat,
};

const LAW = 'gamma:100';
/** Below what one worker reaches, in points. */
const WORSE = 10;

const OPTIMIZERS = [
  {
    ...{ name: 'momentum 0', rate: 0.1, corrections: CORRECTIONS },
    config: { optimizer: { kind: 'sgd' } } as PartialConfig,
  },
  {
    ...{ name: 'momentum 0.9', rate: 0.01, corrections: [...CORRECTIONS, ...AHEAD] },
    config: { optimizer: { kind: 'momentum', momentum: 0.9 } } as PartialConfig,
  },
];

interface StabilityCell {
  readonly optimizer: string;
  readonly correction: string;
  readonly workers: number;
  readonly rate: number | null;
}

async function repeat(lab: Lab): Promise<PaperFinding> {
  const counts = lab.quick ? [1, 16] : [1, 4, 16, 32];
  const optimizers = lab.quick ? OPTIMIZERS.slice(0, 1) : OPTIMIZERS;
  const all = optimizers.reduce((sum, o) => sum + o.corrections.length * counts.length, 0);
  const cells: StabilityCell[] = [];
  const runs: Record<string, string | number | null>[] = [];
  for (const optimizer of optimizers) {
    const reference = new Map<number, number>();
    const train = async (
      correction: CorrectionArm,
      workers: number,
      seed: number,
      rate: number,
    ) => {
      lab.progress(
        cells.length / all,
        `${optimizer.name}, ${correction.name}, ${workers} workers, rate ${rate}, seed ${seed}`,
      );
      const config = { ...optimizer.config, ...correction.config, learningRate: rate };
      const { accuracy } = await trainSmall(lab, { workers, seed, law: LAW, config });
      const arm = { optimizer: optimizer.name, correction: correction.name, workers, rate, seed };
      runs.push({ ...arm, accuracy });
      return accuracy;
    };
    for (const seed of lab.seeds) {
      reference.set(seed, await train(CORRECTIONS[0]!, 1, seed, optimizer.rate));
    }
    for (const correction of optimizer.corrections) {
      let start = optimizer.rate;
      for (const workers of counts) {
        const rate = await largestStable(start, async (tried) => {
          // The first seed that fails is enough.
          for (const seed of lab.seeds) {
            const accuracy = await train(correction, workers, seed, tried);
            if (accuracy < reference.get(seed)! - WORSE) return false;
          }
          return true;
        });
        cells.push({ optimizer: optimizer.name, correction: correction.name, workers, rate });
        start = rate ?? start;
      }
    }
  }
  return findingOf(cells, counts, runs);
}

function findingOf(
  cells: readonly StabilityCell[],
  counts: readonly number[],
  runs: PaperFinding['runs'],
): PaperFinding {
  const of = (optimizer: string, correction: string, workers: number) =>
    cells.find(
      (c) => c.optimizer === optimizer && c.correction === correction && c.workers === workers,
    )?.rate ?? null;
  const told = (rate: number | null) =>
    rate === null ? 'none' : String(Number(rate.toPrecision(3)));
  const optimizers = [...new Set(cells.map(({ optimizer }) => optimizer))];
  const arms = optimizers.flatMap((optimizer) =>
    [...new Set(cells.filter((c) => c.optimizer === optimizer).map((c) => c.correction))].map(
      (correction) => ({ optimizer, correction }),
    ),
  );
  const many = counts.at(-1)!;
  const factor = ({ optimizer, correction }: (typeof arms)[number]) =>
    (of(optimizer, correction, many) ?? 0) / (of(optimizer, 'none', many) ?? Number.NaN);
  const falls = optimizers.every(
    (optimizer) => (of(optimizer, 'none', many) ?? 0) < (of(optimizer, 'none', counts[0]!) ?? 0),
  );
  const wider = arms.filter((arm) => arm.correction !== 'none' && factor(arm) > 1);
  const others = arms.filter(({ correction }) => correction !== 'none');
  return {
    verdict: falls && wider.length === others.length ? 'holds' : falls ? 'partly' : 'no',
    text: `${optimizers.map((optimizer) => `Plain, ${optimizer}: ${counts.map((n) => `${told(of(optimizer, 'none', n))} with ${n}`).join(', ')}.`).join(' ')} With ${many} workers, against plain: ${others.map((arm) => `${arm.correction} × ${told(factor(arm))} (${arm.optimizer})`).join(', ')}. This is about the range of rates; it says nothing of the accuracy of the best one.`,
    headings: ['optimizer', 'correction', ...counts.map((n) => `${n} worker${n === 1 ? '' : 's'}`)],
    rows: arms.map(({ optimizer, correction }) => [
      ...[optimizer, correction],
      ...counts.map((workers) => told(of(optimizer, correction, workers))),
    ]),
    plots: Object.fromEntries(
      optimizers.map((optimizer) => [
        `${optimizer.replaceAll(/[ .]/g, '-')}.svg`,
        chart({
          title: `Largest stable learning rate, ${optimizer}`,
          x: { label: 'workers', log: true },
          y: { label: 'learning rate', log: true },
          series: arms
            .filter((arm) => arm.optimizer === optimizer)
            .map(({ correction }) => ({
              name: correction,
              points: counts.map((x) => ({ x, y: of(optimizer, correction, x) })),
            })),
        }),
      ]),
    ),
    runs,
  };
}
