import { chart } from '../../../study/plot.ts';
import { type StalenessFacts, stalenessFacts } from '../../../study/scale.ts';
import { estimate, meanOf } from '../../../study/statistics.ts';
import { createQuadratic } from '../../simulate/quadratic.ts';
import {
  each,
  type Lab,
  type PaperFinding,
  type Result,
  spread,
  trial,
  updates,
} from '../result.ts';

export const staleness: Result = {
  name: 'staleness',
  title: 'staleness of 10 to 60 workers by the law of their compute times',
  paper: 'Hermans 2017 (arXiv:1710.02368); Mitliagkas et al. 2016 (arXiv:1605.09774)',
  claim:
    'With n workers the mean staleness is n − 1. It is geometric where compute times are exponential; measured histograms are geometric on their right half only.',
  setting: 'a quadratic, 20,000 updates for each number of workers and law',
  minutes: 2,
  seeds: 5,
  repeat,
};

const LAWS = ['constant:100', 'gamma:100', 'gamma:100,0.6', 'lognormal:100', 'exponential:100'];
const problem = createQuadratic({ curvatures: [1], noise: 0, start: 1 });

interface StalenessPoint {
  readonly law: string;
  readonly workers: number;
  readonly seed: number;
  readonly counts: readonly number[];
  readonly facts: StalenessFacts;
  /** R² of a line through the logarithms of all shares: 1 is geometric. Null: too few values. */
  readonly whole: number | null;
  /** The same of the right half. */
  readonly right: number | null;
}

async function repeat(lab: Lab): Promise<PaperFinding> {
  const counts = lab.quick ? [10] : [10, 20, 30, 40, 50, 60];
  const steps = lab.quick ? 4_000 : 20_000;
  const arms = LAWS.flatMap((law) =>
    counts.flatMap((workers) => lab.seeds.map((seed) => ({ law, workers, seed }))),
  );
  const results = await each(
    lab,
    arms,
    ({ law, workers }) => `${law}, ${workers} workers`,
    async ({ law, workers, seed }): Promise<StalenessPoint> => {
      const found: number[] = [];
      await trial(lab, {
        ...{ problem, workers, seed, law },
        config: { ...updates(steps), learningRate: 1e-4, consistency: { correction: 'none' } },
        onStep({ step, staleness: value }) {
          // The first pulls were all at the same time.
          if (step <= 20 * workers) return;
          while (found.length <= value) found.push(0);
          found[value]!++;
        },
      });
      const facts = stalenessFacts(found)!;
      const [whole, right] = [straightness(found, 0), straightness(found, facts.p50)];
      return { law, workers, seed, counts: found, facts, whole, right };
    },
  );
  const of = (law: string, workers: number) =>
    results.filter((r) => r.law === law && r.workers === workers);
  const meanGap = Math.max(
    ...results.map(({ facts, workers }) => Math.abs(facts.mean / (workers - 1) - 1)),
  );
  const straight = (half: 'whole' | 'right', own: readonly StalenessPoint[]) => {
    const values = own.flatMap((r) => r[half] ?? []);
    return values.length === 0 ? null : meanOf(values);
  };
  const r2 = (half: 'whole' | 'right', law: string) =>
    straight(
      half,
      results.filter((r) => r.law === law),
    ) ?? 0;
  const [memoryless, narrow] = ['exponential:100', 'gamma:100'] as const;
  const isGeometric = r2('whole', memoryless) > 0.95;
  const isHalf = r2('right', narrow) > 0.9 && r2('whole', narrow) < 0.8;
  const holds = meanGap < 0.02 && isGeometric && isHalf;
  const last = counts.at(-1)!;
  return {
    verdict: holds ? 'holds' : 'partly',
    text: `The mean staleness differs from n − 1 by at most ${(100 * meanGap).toFixed(1)} % for every law. Its deviation is what the law decides: with ${last} workers ${LAWS.map((law) => `${meanOf(of(law, last).map(({ facts }) => facts.deviation)).toFixed(1)} (${law})`).join(', ')}. On a logarithmic scale the histogram is a straight line with exponential times (R² ${r2('whole', memoryless).toFixed(2)}); with Γ(100) its right half alone is one (${r2('right', narrow).toFixed(2)}, the whole ${r2('whole', narrow).toFixed(2)}), as in the measured ones.`,
    headings: [
      'law',
      'workers',
      'mean',
      'n − 1',
      'deviation',
      'p95',
      'geometric, R²',
      'right half, R²',
    ],
    rows: LAWS.flatMap((law) =>
      counts.map((workers) => {
        const own = of(law, workers);
        const told = (half: 'whole' | 'right') => straight(half, own)?.toFixed(2) ?? '–';
        return [
          ...[law, String(workers)],
          spread(estimate(own.map(({ facts }) => facts.mean))),
          String(workers - 1),
          spread(estimate(own.map(({ facts }) => facts.deviation))),
          meanOf(own.map(({ facts }) => facts.p95)).toFixed(0),
          ...[told('whole'), told('right')],
        ];
      }),
    ),
    plots: {
      'histograms.svg': chart({
        title: `Staleness of ${last} workers`,
        x: { label: 'updates between pull and push' },
        y: { label: 'share', log: true },
        series: LAWS.slice(1).map((law) => {
          const own = of(law, last)[0]!.counts;
          const all = own.reduce((sum, count) => sum + count, 0);
          return {
            ...{ name: law, style: 'curve' as const },
            points: own.flatMap((count, x) => (count > 0 ? [{ x, y: count / all }] : [])),
          };
        }),
      }),
    },
    runs: results.map(({ counts: _, facts, ...rest }) => ({ ...rest, ...facts })),
  };
}

/** R² of a line through ln(count) over staleness from `least` on, weighed by counts; null: too few values. */
function straightness(counts: readonly number[], least: number): number | null {
  const points = counts.flatMap((n, x) => (x >= least && n > 0 ? [{ n, x, y: Math.log(n) }] : []));
  if (points.length < 4) return null;
  const sum = (f: (p: (typeof points)[number]) => number) =>
    points.reduce((total, point) => total + point.n * f(point), 0);
  const n = sum(() => 1);
  const [mx, my] = [sum(({ x }) => x) / n, sum(({ y }) => y) / n];
  const xy = sum(({ x, y }) => (x - mx) * (y - my));
  return xy ** 2 / (sum(({ x }) => (x - mx) ** 2) * sum(({ y }) => (y - my) ** 2));
}
