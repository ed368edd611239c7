import { chart, pointOf } from '../../../study/plot.ts';
import { estimate, meanOf } from '../../../study/statistics.ts';
import { each, type Lab, type PaperFinding, type Result, separated, spread } from '../result.ts';
import { SMALL_DIGITS, trainSmall } from '../small-digits.ts';

export const laws: Result = {
  name: 'laws',
  title: 'the law of compute times decides what trains, and not only its mean',
  paper:
    'Mitliagkas et al. 2016 (arXiv:1605.09774) assume exponential times; most simulations assume Γ',
  claim:
    'Results of asynchronous SGD depend on the law of the compute times: what trains with exponential times may fail with times that are alike.',
  setting: `${SMALL_DIGITS}; 32 workers without momentum and without correction, rate 0.1 for all laws, which have the same mean`,
  minutes: 2,
  seeds: 5,
  repeat,
};

const LAWS = ['exponential:100', 'lognormal:100', 'gamma:100,0.6', 'gamma:100', 'constant:100'];
const RATE = 0.1;

async function repeat(lab: Lab): Promise<PaperFinding> {
  const workers = lab.quick ? 16 : 32;
  const arms = LAWS.flatMap((law) => lab.seeds.map((seed) => ({ law, seed })));
  const results = await each(
    lab,
    arms,
    ({ law, seed }) => `${law}, seed ${seed}`,
    async ({ law, seed }) => {
      const { accuracy, outcome } = await trainSmall(lab, {
        ...{ workers, seed, law },
        config: {
          ...{ learningRate: RATE, optimizer: { kind: 'sgd' } },
          consistency: { correction: 'none' },
        },
      });
      const counts = outcome.staleness;
      const n = counts.reduce((sum, count) => sum + count, 0);
      const mean = counts.reduce((sum, count, i) => sum + i * count, 0) / n;
      const square = counts.reduce((sum, count, i) => sum + (i - mean) ** 2 * count, 0) / n;
      return { law, seed, accuracy, staleness: mean, deviation: Math.sqrt(square) };
    },
  );
  const of = (law: string) => results.filter((r) => r.law === law);
  const [free, , , alike] = LAWS as [string, string, string, string];
  const gap = estimate(of(free).map((r, i) => r.accuracy - of(alike)[i]!.accuracy));
  const told = (law: string) => spread(estimate(of(law).map((r) => r.accuracy)), 1);
  const verdict = separated(gap) > 0 ? 'holds' : separated(gap) < 0 ? 'no' : 'not separated';
  return {
    verdict,
    text: `At the same rate and mean staleness, ${workers} workers reach ${LAWS.map((law) => `${told(law)} % (${law})`).join(', ')}. Exponential against Γ(100): ${spread(gap, 1)} points${verdict === 'not separated' ? ' (not separated)' : ''}.`,
    headings: ['law', 'test accuracy, %', 'mean staleness', 'deviation'],
    rows: LAWS.map((law) => [
      ...[law, told(law), meanOf(of(law).map((r) => r.staleness)).toFixed(1)],
      meanOf(of(law).map((r) => r.deviation)).toFixed(1),
    ]),
    plots: {
      'accuracy.svg': chart({
        title: `Accuracy of ${workers} workers at a rate of ${RATE}`,
        x: { label: 'law', names: LAWS },
        y: { label: 'test accuracy, %' },
        series: [
          {
            ...{ name: '', style: 'scatter' as const },
            points: LAWS.map((law, x) => pointOf(x, estimate(of(law).map((r) => r.accuracy)))),
          },
        ],
      }),
    },
    runs: results,
  };
}
