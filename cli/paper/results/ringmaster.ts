import type { PartialConfig } from '../../../shared/config.ts';
import { chart, pointOf } from '../../../study/plot.ts';
import { estimate, meanOf } from '../../../study/statistics.ts';
import { curvatures } from '../../simulate/quadratic.ts';
import { raceTo } from '../race.ts';
import { type Lab, type PaperFinding, type Result, separated, spread } from '../result.ts';
import { TUNING_SEED, tuneCount, tuneRate } from '../tune.ts';

export const ringmaster: Result = {
  name: 'ringmaster',
  title:
    '1,000 workers of unlike speeds: plain, delay-adaptive, Rennala, m-synchronous, Ringmaster',
  paper:
    'Ringmaster (arXiv:2501.16168), Rennala (arXiv:2305.12387), delay-adaptive (arXiv:2206.07638), m-synchronous (arXiv:2602.03802)',
  claim:
    'If worker i takes i times as long, a bound on staleness (Ringmaster ASGD) reaches an accuracy many times sooner than plain asynchronous SGD, and sooner than delay-adaptive SGD and Rennala. m-synchronous SGD is close to the best. Here `stalenessMax` is the bound, and no calculation is stopped.',
  setting:
    'a quadratic of 200 dimensions, 1,000 workers, worker i takes i ms for each gradient, little and much noise; rate, bound, buffer and quorum of each method tuned on another seed; virtual time until the loss is 2 % of its first value',
  minutes: 12,
  seeds: 5,
  repeat,
};

const CURVATURES = curvatures(200, 0.1);
/** Deviation of the noise of each coordinate of a gradient; at the start a gradient's largest is 1. */
const NOISES = [0.3, 1];
const SHARE = 0.02;
/** A race that takes longer ends here, virtual ms; the fastest worker needs 1 ms for a gradient. */
const CAP_MS = 4_000;
const RATE_START = 0.02;
const COUNT_START = 16;

interface RingmasterMethod {
  readonly name: string;
  /** What the count stands for; null: the method has none. */
  readonly counts: string | null;
  readonly config: (count: number) => PartialConfig;
}

const METHODS: readonly RingmasterMethod[] = [
  {
    ...{ name: 'plain', counts: null },
    config: () => ({ consistency: { correction: 'none' } }),
  },
  {
    ...{ name: 'inverse (staleness-aware)', counts: null },
    config: () => ({ consistency: { correction: 'inverse' } }),
  },
  {
    ...{ name: 'delay (delay-adaptive)', counts: null },
    config: () => ({ consistency: { correction: 'delay' } }),
  },
  {
    ...{ name: 'Rennala', counts: 'buffer' },
    config: (bufferSize) => ({
      consistency: { mode: 'buffered', bufferSize, stalenessMax: 0, correction: 'none' },
    }),
  },
  {
    ...{ name: 'm-synchronous', counts: 'quorum' },
    config: (quorum) => ({ consistency: { mode: 'backup', quorum } }),
  },
  {
    ...{ name: 'Ringmaster', counts: 'bound' },
    config: (stalenessMax) => ({ consistency: { correction: 'none', stalenessMax } }),
  },
];

interface RingmasterPoint {
  readonly method: RingmasterMethod;
  readonly noise: number;
  readonly rate: number;
  readonly count: number | null;
  readonly times: readonly number[];
}

async function repeat(lab: Lab): Promise<PaperFinding> {
  const workers = lab.quick ? 50 : 1_000;
  const noises = lab.quick ? NOISES.slice(0, 1) : NOISES;
  const runs: Record<string, string | number | null>[] = [];
  const results: RingmasterPoint[] = [];
  const all = noises.length * METHODS.length;
  for (const noise of noises) {
    for (const method of METHODS) {
      const race = async (count: number, rate: number, seed: number) => {
        const of = method.counts === null ? '' : `, ${method.counts} ${count}`;
        lab.progress(results.length / all, `${method.name}${of}, noise ${noise}, rate ${rate}`);
        const { ms, score } = await raceTo(lab, {
          quadratic: { curvatures: CURVATURES, noise, start: 1 },
          ...{ share: SHARE, capMs: CAP_MS, workers, law: 'ladder:1', seed },
          config: { ...method.config(count), learningRate: rate },
        });
        runs.push({ method: method.name, noise, count, rate, seed, ms });
        return { ms: ms ?? CAP_MS, score };
      };
      const rates = new Map<number, number>();
      // The best rate of the last count is near that of the next one.
      let near = RATE_START;
      const scoreOf = async (count: number) => {
        const { rate, tried } = await tuneRate(near, async (at) => {
          return (await race(count, at, TUNING_SEED)).score;
        });
        rates.set(count, rate);
        near = rate;
        return Math.max(...tried.map(({ value }) => value));
      };
      let count = COUNT_START;
      if (method.counts === null) await scoreOf(count);
      else {
        const tuned = await tuneCount({ start: COUNT_START, least: 1, most: workers }, scoreOf);
        count = tuned.count;
      }
      const rate = rates.get(count)!;
      const times: number[] = [];
      for (const seed of lab.seeds) times.push((await race(count, rate, seed)).ms);
      results.push({ method, noise, rate, count: method.counts === null ? null : count, times });
    }
  }
  return findingOf(results, noises, runs);
}

function findingOf(
  results: readonly RingmasterPoint[],
  noises: readonly number[],
  runs: PaperFinding['runs'],
): PaperFinding {
  const of = (name: string, noise: number) =>
    results.find((r) => r.method.name === name && r.noise === noise)!;
  const told = (times: readonly number[]) =>
    `${times.some((ms) => ms >= CAP_MS) ? 'at least ' : ''}${spread(estimate(times), 0)}`;
  const judged = noises.map((noise) => {
    const bound = of('Ringmaster', noise);
    const against = (name: string) =>
      separated(estimate(of(name, noise).times.map((ms, i) => ms - bound.times[i]!)));
    const others = METHODS.map(({ name }) => name).filter((name) => name !== 'Ringmaster');
    return {
      ...{ noise, bound, gain: meanOf(of('plain', noise).times) / meanOf(bound.times) },
      beaten: others.filter((name) => against(name) > 0),
      equal: others.filter((name) => against(name) === 0),
    };
  });
  const claimed = ['plain', 'delay (delay-adaptive)', 'Rennala'];
  const met = judged.filter(({ beaten }) => claimed.every((name) => beaten.includes(name)));
  return {
    verdict:
      met.length === judged.length
        ? 'holds'
        : judged.some(({ beaten }) => beaten.includes('plain'))
          ? 'partly'
          : 'no',
    text: judged
      .map(
        ({ noise, bound, gain, beaten, equal }) =>
          `With noise ${noise}: ${METHODS.map(({ name }) => `${name} ${told(of(name, noise).times)}`).join(', ')} ms. The bound of ${bound.count} is ${gain.toFixed(1)} times as fast as plain${beaten.length === METHODS.length - 1 ? ', and faster than each other method' : `, and faster than ${beaten.join(', ') || 'none'}`}${equal.length > 0 ? ` (not separated: ${equal.join(', ')})` : ''}.`,
      )
      .join(' '),
    headings: ['noise', 'method', 'virtual ms', 'times faster than plain', 'rate', 'tuned count'],
    rows: results.map(({ method, noise, rate, count, times }) => [
      ...[String(noise), method.name, told(times)],
      (meanOf(of('plain', noise).times) / meanOf(times)).toFixed(1),
      ...[String(rate), count === null ? '' : `${method.counts} ${count}`],
    ]),
    plots: {
      'time.svg': chart({
        title: 'Virtual time to the accuracy, 1,000 workers',
        x: { label: 'method', names: METHODS.map(({ name }) => name) },
        y: { label: 'ms', log: true },
        series: noises.map((noise) => ({
          name: `noise ${noise}`,
          style: 'scatter' as const,
          points: METHODS.map(({ name }, x) => pointOf(x, estimate(of(name, noise).times))),
        })),
      }),
    },
    runs,
  };
}
