import type { PartialConfig } from '../../../shared/config.ts';
import { chart, pointOf } from '../../../study/plot.ts';
import { estimate, meanOf } from '../../../study/statistics.ts';
import type { VirtualProblem } from '../../simulate/virtual-cluster.ts';
import { createDigits } from '../digits.ts';
import {
  each,
  type Lab,
  type PaperFinding,
  type Result,
  separated,
  spread,
  trial,
} from '../result.ts';

/** The project's own promise: what was tuned with one worker stays as good, by defaults. */
export const manyWorkers: Result = {
  name: 'many-workers',
  title: 'accuracy with 1 to 1,024 workers by defaults, beside no correction',
  paper: "this project's own promise (docs/decisions/0014-many-workers.md)",
  claim:
    'With `consistency.correction: auto` what was tuned with one worker keeps its accuracy within 0.3 points at 16 workers and 1.0 at 32, and no gradient is thrown away.',
  setting:
    'the network of examples/mnist-mlp.ts on all of MNIST (DOWNPOUR_DATA), equal examples for any number of workers, Γ(100) compute times',
  minutes: 40,
  seeds: 5,
  repeat,
};

const LAW = 'gamma:100';
const FLAGSHIP: PartialConfig = {
  minibatchSize: 64,
  averaging: { kind: 'ema', decay: 0.999 },
  schedule: { kind: 'plateau', divideBy: 5, patience: 1 },
  earlyStopping: { patience: 3, minImprovement: 0.0005 },
};
const CONFIGS = {
  momentum: {
    ...FLAGSHIP,
    ...{ learningRate: 0.02, optimizer: { kind: 'momentum', momentum: 0.9 }, epochsMax: 4 },
  },
  adam: { minibatchSize: 64, learningRate: 0.001, optimizer: { kind: 'adam' }, epochsMax: 3 },
} as const satisfies Record<string, PartialConfig>;
/** Without a correction, and with workers that are far too many, it only shows what it would come to. */
const FEW_SEEDS = 2;
const FAR_TOO_MANY = 100;

interface ManyWorkersArm {
  readonly optimizer: keyof typeof CONFIGS;
  readonly correction: 'auto' | 'none';
  readonly workers: number;
  readonly seed: number;
}

interface Trained extends ManyWorkersArm {
  readonly accuracy: number;
  readonly staleness: number;
  readonly used: number;
  readonly minutes: number;
}

async function repeat(lab: Lab): Promise<PaperFinding> {
  const counts = lab.quick ? [1, 16] : [1, 2, 4, 8, 16, 32, 64, 256, 1_024];
  const arms: ManyWorkersArm[] = lab.seeds.flatMap((seed, i) =>
    (lab.quick ? (['momentum'] as const) : (['momentum', 'adam'] as const)).flatMap((optimizer) =>
      counts.flatMap((workers) => [
        ...(workers < FAR_TOO_MANY || i < FEW_SEEDS
          ? [{ optimizer, correction: 'auto' as const, workers, seed }]
          : []),
        ...(workers > 2 && workers < FAR_TOO_MANY && i < FEW_SEEDS
          ? [{ optimizer, correction: 'none' as const, workers, seed }]
          : []),
      ]),
    ),
  );
  let made: { readonly seed: number; readonly problem: VirtualProblem } | null = null;
  const results = await each(
    lab,
    arms,
    ({ optimizer, correction, workers, seed }) =>
      `${optimizer}, ${correction}, ${workers} workers, seed ${seed}`,
    async (arm): Promise<Trained> => {
      const { seed, workers, correction, optimizer } = arm;
      if (made?.seed !== seed) {
        const trainMax = lab.quick ? 4_000 : null;
        const what = { hidden: 256, dropout: 0.2, seed, minibatchMax: 64, trainMax };
        made = { seed, problem: await createDigits(what) };
      }
      const { server, nowMs, applied, unused } = await trial(lab, {
        ...{ problem: made.problem, workers, seed, law: LAW },
        // Two hundred minibatches without their backward pass.
        evaluationMs: 6_000,
        config: { ...CONFIGS[optimizer], consistency: { correction }, seed },
      });
      const { test, staleness } = server.summary(nowMs);
      return {
        ...{ ...arm, accuracy: 100 * (1 - (test?.error ?? 0.9)) },
        ...{ staleness: staleness?.p50 ?? 0, used: applied / (applied + unused) },
        minutes: nowMs / 60_000,
      };
    },
  );
  return findingOf(results, counts);
}

function findingOf(results: readonly Trained[], counts: readonly number[]): PaperFinding {
  const of = (optimizer: string, correction: string, workers: number) =>
    results.filter(
      (r) => r.optimizer === optimizer && r.correction === correction && r.workers === workers,
    );
  const optimizers = [...new Set(results.map(({ optimizer }) => optimizer))];
  const loss = (optimizer: string, workers: number) => {
    const one = of(optimizer, 'auto', counts[0]!);
    return estimate(of(optimizer, 'auto', workers).map((r, i) => r.accuracy - one[i]!.accuracy));
  };
  const aims = [
    [16, -0.3],
    [32, -1],
  ] as const;
  const judged = optimizers.flatMap((optimizer) =>
    aims
      .filter(([workers]) => counts.includes(workers))
      .map(([workers, aim]) => ({ optimizer, workers, aim, gap: loss(optimizer, workers) })),
  );
  const met = judged.filter(({ gap, aim }) => gap.mean >= aim);
  return {
    verdict: met.length === judged.length ? 'holds' : met.length === 0 ? 'no' : 'partly',
    text: judged
      .map(
        ({ optimizer, workers, gap, aim }) =>
          `${optimizer} with ${workers} workers: ${spread(gap)} points against one (${gap.mean >= aim ? 'within' : 'not within'} ${-aim}${separated(gap) === 0 ? ', not separated from 0' : ''}).`,
      )
      .join(' '),
    headings: [
      'optimizer',
      'workers',
      'auto, %',
      'against one',
      'none, %',
      'updates used',
      'times faster',
    ],
    rows: optimizers.flatMap((optimizer) =>
      counts.map((workers) => {
        const auto = of(optimizer, 'auto', workers);
        const none = of(optimizer, 'none', workers);
        const minutes = (n: number) => meanOf(of(optimizer, 'auto', n).map((r) => r.minutes));
        return [
          optimizer,
          String(workers),
          spread(estimate(auto.map(({ accuracy }) => accuracy))),
          workers === counts[0] ? '' : spread(loss(optimizer, workers)),
          none.length === 0
            ? workers < 3
              ? 'the same'
              : '–'
            : spread(estimate(none.map(({ accuracy }) => accuracy))),
          `${(100 * meanOf(auto.map(({ used }) => used))).toFixed(1)} %`,
          (minutes(counts[0]!) / minutes(workers)).toFixed(1),
        ];
      }),
    ),
    plots: {
      'accuracy.svg': chart({
        title: 'Test accuracy after equal examples',
        x: { label: 'workers', log: true },
        y: { label: 'test accuracy, %' },
        series: optimizers.flatMap((optimizer) =>
          (['auto', 'none'] as const).map((correction) => ({
            name: `${optimizer}, ${correction}`,
            ...(correction === 'none' ? { style: 'dashed' as const } : {}),
            points: counts.flatMap((workers) => {
              const own = of(optimizer, correction, workers);
              if (own.length === 0) return [];
              return [pointOf(workers, estimate(own.map((r) => r.accuracy)))];
            }),
          })),
        ),
      }),
    },
    runs: results.map((result) => ({ ...result })),
  };
}
