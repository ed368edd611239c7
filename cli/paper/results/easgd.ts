import type { PartialConfig } from '../../../shared/config.ts';
import { chart, pointOf } from '../../../study/plot.ts';
import { type Estimate, estimate } from '../../../study/statistics.ts';
import { type Lab, type PaperFinding, type Result, separated, spread } from '../result.ts';
import { SMALL_DIGITS, trainSmall } from '../small-digits.ts';
import { tuneRate, tuningMean } from '../tune.ts';

export const easgd: Result = {
  name: 'easgd',
  title: 'elastic averaging (EASGD) against plain exchanges every 1, 10 and 40 minibatches',
  paper: 'Zhang et al. 2015 (arXiv:1412.6651)',
  claim:
    'Workers that are tied to the server by an elastic force keep their accuracy if they exchange only every τ minibatches; workers that add up their changes do not.',
  setting: `${SMALL_DIGITS}; 4 workers without momentum, Γ(100) compute times; at the rate 0.1 of the claim, and with each rate tuned on two other seeds`,
  minutes: 3,
  seeds: 5,
  repeat,
};

const WORKERS = 4;
const LAW = 'gamma:100';
const RATE = 0.1;
const PERIODS = [1, 10, 40];
/** Points that EASGD may lose from the shortest period to the longest. */
const KEPT = 1;
const KINDS = ['elastic', 'plain'] as const;

type EasgdKind = (typeof KINDS)[number];

interface EasgdPoint {
  readonly kind: EasgdKind;
  readonly period: number;
  readonly fixed: readonly number[];
  readonly tuned: readonly number[];
  readonly rate: number;
}

async function repeat(lab: Lab): Promise<PaperFinding> {
  const periods = lab.quick ? [1, 10] : PERIODS;
  const arms = KINDS.flatMap((kind) => periods.map((period) => ({ kind, period })));
  const runs: Record<string, string | number | null>[] = [];
  const results: EasgdPoint[] = [];
  for (const { kind, period } of arms) {
    const train = async (learningRate: number, seed: number) => {
      lab.progress(results.length / arms.length, `${kind}, τ = ${period}, rate ${learningRate}`);
      const config: PartialConfig = {
        ...{ learningRate, optimizer: { kind: 'sgd' }, consistency: { correction: 'none' } },
        local: { steps: period, push: kind === 'elastic' ? 'elastic' : 'delta' },
        // The claim is of changes that are added up whole, not shared out among the workers.
        ...(kind === 'plain' ? { outer: { learningRate: 1 } } : {}),
      };
      const { accuracy } = await trainSmall(lab, {
        ...{ workers: WORKERS, seed, law: LAW, config, updateOf: period },
      });
      runs.push({ kind, period, rate: learningRate, seed, accuracy });
      return accuracy;
    };
    const fixed: number[] = [];
    for (const seed of lab.seeds) fixed.push(await train(RATE, seed));
    let rate = RATE;
    if (!lab.quick) {
      const best = await tuneRate(RATE, (at) => tuningMean((seed) => train(at, seed)));
      rate = best.rate;
    }
    const tuned: number[] = [];
    for (const [i, seed] of lab.seeds.entries()) {
      tuned.push(rate === RATE ? fixed[i]! : await train(rate, seed));
    }
    results.push({ kind, period, fixed, tuned, rate });
  }
  return findingOf(results, periods, runs);
}

function findingOf(
  results: readonly EasgdPoint[],
  periods: readonly number[],
  runs: PaperFinding['runs'],
): PaperFinding {
  const of = (kind: EasgdKind, period: number) =>
    results.find((r) => r.kind === kind && r.period === period)!;
  const [least, most] = [periods[0]!, periods.at(-1)!];
  const by = (a: readonly number[], b: readonly number[]): Estimate =>
    estimate(a.map((value, i) => value - b[i]!));
  const gain = by(of('elastic', most).fixed, of('plain', most).fixed);
  const kept = by(of('elastic', most).fixed, of('elastic', least).fixed);
  const tuned = by(of('elastic', most).tuned, of('plain', most).tuned);
  const list = (kind: EasgdKind, what: 'fixed' | 'tuned') =>
    periods.map((period) => spread(estimate(of(kind, period)[what]), 1)).join(' / ');
  const note = (value: Estimate) => (separated(value) === 0 ? ' (not separated)' : '');
  const better = separated(gain) > 0;
  const keeps = kept.mean > -KEPT;
  return {
    verdict: better && keeps ? 'holds' : better || keeps ? 'partly' : 'no',
    text: `At the rate ${RATE} and τ = ${periods.join(' / ')} EASGD reaches ${list('elastic', 'fixed')} %, plain exchanges ${list('plain', 'fixed')} %; at τ = ${most} EASGD is better by ${spread(gain, 1)} points${note(gain)}, and it differs from τ = ${least} by ${spread(kept, 1)}${note(kept)}. With rates tuned: ${list('elastic', 'tuned')} and ${list('plain', 'tuned')} %, at τ = ${most} a difference of ${spread(tuned, 1)}${note(tuned)}.`,
    headings: ['exchange', 'τ', `test accuracy at ${RATE}, %`, 'tuned, %', 'tuned rate'],
    rows: results.map(({ kind, period, fixed, tuned, rate }) => [
      ...[kind, String(period), spread(estimate(fixed)), spread(estimate(tuned)), String(rate)],
    ]),
    plots: {
      'accuracy.svg': chart({
        title: 'Accuracy over the minibatches between two exchanges',
        x: { label: 'τ', log: true },
        y: { label: 'test accuracy, %' },
        series: KINDS.flatMap((kind) =>
          (['fixed', 'tuned'] as const).map((what) => ({
            name: `${kind}, ${what === 'fixed' ? `rate ${RATE}` : 'rate tuned'}`,
            ...(what === 'tuned' ? { style: 'dashed' as const } : {}),
            points: periods.map((x) => pointOf(x, estimate(of(kind, x)[what]))),
          })),
        ),
      }),
    },
    runs,
  };
}
