import { random } from '../../../shared/random.ts';
import { chart, pointOf } from '../../../study/plot.ts';
import { estimate, meanOf } from '../../../study/statistics.ts';
import type { VirtualProblem } from '../../simulate/virtual-cluster.ts';
import {
  each,
  type Lab,
  type PaperFinding,
  type Result,
  spread,
  trial,
  updates,
} from '../result.ts';

export const momentum: Result = {
  name: 'momentum',
  title: 'asynchrony begets momentum: with exponential times, and not with others',
  paper: 'Mitliagkas et al. 2016 (arXiv:1605.09774)',
  claim:
    'M asynchronous workers without momentum behave like one with a momentum of 1 − 1/M, if compute times are exponential.',
  setting:
    'a quadratic with noise: the mean response to the noise of one gradient, over all updates, is fitted by Δₜ₊₁ = μ Δₜ − a xₜ',
  minutes: 3,
  seeds: 5,
  repeat,
};

const LAWS = ['exponential:100', 'gamma:100', 'constant:100'];
const DIMENSIONS = 64;
/** Holds within so much. */
const NEAR = 0.05;
/** Share of the mean's course that a momentum may leave open. */
const DESCRIBED = 0.1;
const NOISE_STREAM = 92;

async function repeat(lab: Lab): Promise<PaperFinding> {
  const counts = lab.quick ? [4] : [2, 4, 8, 16];
  const arms = LAWS.flatMap((law) =>
    counts.flatMap((workers) => lab.seeds.map((seed) => ({ law, workers, seed }))),
  );
  const results = await each(
    lab,
    arms,
    ({ law, workers, seed }) => `${law}, ${workers} workers, seed ${seed}`,
    async (arm) => ({ ...arm, ...(await momentumOf(lab, arm)) }),
  );
  const own = (law: string, workers: number) =>
    results.filter((r) => r.law === law && r.workers === workers);
  const of = (law: string, workers: number) => estimate(own(law, workers).map((r) => r.momentum));
  const unexplained = (law: string) =>
    Math.max(...counts.map((n) => meanOf(own(law, n).map((r) => r.unexplained))));
  const theory = (workers: number) => 1 - 1 / workers;
  const gap = (law: string) =>
    Math.max(...counts.map((workers) => Math.abs(of(law, workers).mean - theory(workers))));
  const told = (law: string) =>
    counts.map((workers) => `${of(law, workers).mean.toFixed(2)}`).join(' / ');
  const [memoryless, narrow, constant] = LAWS as [string, string, string];
  const holds = gap(memoryless) < NEAR && unexplained(memoryless) < DESCRIBED;
  const fails = [narrow, constant].every(
    (law) => gap(law) > NEAR || unexplained(law) > 2 * DESCRIBED,
  );
  const share = (law: string) => `${(100 * unexplained(law)).toFixed(0)} %`;
  return {
    verdict: holds && fails ? 'holds' : holds || fails ? 'partly' : 'no',
    text: `For M = ${counts.join(' / ')} the momentum is ${told(memoryless)} with exponential times, where 1 − 1/M is ${counts.map((workers) => theory(workers).toFixed(2)).join(' / ')} (${gap(memoryless) < NEAR ? 'within' : 'not within'} ${NEAR}), and it describes all but ${share(memoryless)} of what the mean does. With Γ(100) it is ${told(narrow)} and leaves up to ${share(narrow)} undescribed, with constant times ${told(constant)} and up to ${share(constant)}: up to ${Math.max(gap(narrow), gap(constant)).toFixed(2)} away from 1 − 1/M${fails ? '' : ', which is no more than with exponential times'}.`,
    headings: ['law', 'workers', 'momentum', '1 − 1/M', 'step × M / rate', 'not described'],
    rows: LAWS.flatMap((law) =>
      counts.map((workers) => [
        ...[law, String(workers), spread(of(law, workers), 3), theory(workers).toFixed(3)],
        meanOf(own(law, workers).map((r) => r.step)).toFixed(2),
        `${(100 * meanOf(own(law, workers).map((r) => r.unexplained))).toFixed(0)} %`,
      ]),
    ),
    plots: {
      'momentum.svg': chart({
        title: 'Momentum that asynchrony brings',
        x: { label: 'workers', log: true },
        y: { label: 'momentum' },
        series: [
          ...LAWS.map((law) => ({
            name: law,
            points: counts.map((workers) => pointOf(workers, of(law, workers))),
          })),
          {
            ...{ name: '1 − 1/M', style: 'dashed' as const },
            points: counts.map((workers) => ({ x: workers, y: theory(workers) })),
          },
        ],
      }),
    },
    runs: results,
  };
}

interface MomentumArm {
  readonly law: string;
  readonly workers: number;
  readonly seed: number;
}

interface FittedMomentum {
  readonly momentum: number;
  /** What the gradient is multiplied by, over rate / M: 1 where the theory holds. */
  readonly step: number;
  /** Share of what the mean does that no momentum describes. */
  readonly unexplained: number;
}

/**
 * What a unit of noise in one gradient makes of the parameters k updates later, on average over all updates and
 * coordinates: since all is linear, that is how the mean behaves. Its own jump apart it follows Δ = μ Δ − a x.
 */
async function momentumOf(lab: Lab, { law, workers, seed }: MomentumArm): Promise<FittedMomentum> {
  // Stable for every law, and yet large enough for the mean to swing once in about nine times M updates.
  const rate = 0.5 / workers;
  const span = 8 * workers + 2;
  const steps = lab.quick ? 2_000 : 20_000;
  const draw = random(seed, NOISE_STREAM);
  const x: Float32Array[] = [];
  const noises: Float32Array[] = [];
  const given: Float32Array[] = [];
  let puller = 0;
  let pulls = 0;
  const problem: VirtualProblem = {
    tensors: [{ name: 'x', shape: [DIMENSIONS], role: 'trainable' }],
    data: {
      ...{ trainCount: 1_000_000, validationCount: 1, testCount: 0 },
      ...{ fingerprint: 'quadratic', source: 'a quadratic' },
    },
    initialise: () => new Float32Array(DIMENSIONS),
    gradient(_, parameters, payload) {
      // The one whose push was applied last pulls next; at first all do, in their order.
      const worker = pulls < workers ? pulls : puller;
      if (pulls++ >= workers) x.push(parameters.slice());
      const noise = Float32Array.from({ length: DIMENSIONS }, () => draw.normal());
      given[worker] = noise;
      for (let i = 0; i < DIMENSIONS; i++) payload[i] = parameters[i]! + noise[i]!;
      return 0;
    },
    evaluate: () => ({ loss: 1, error: 1 }),
  };
  await trial(lab, {
    ...{ problem, workers, seed, law },
    config: {
      ...{ ...updates(steps), learningRate: rate, minibatchSize: 1, optimizer: { kind: 'sgd' } },
      consistency: { correction: 'none' },
    },
    onStep({ worker }) {
      puller = worker;
      noises.push(given[worker]!);
    },
  });
  // The last update ends the run, and nobody pulls what it gave.
  const known = Math.min(x.length, noises.length);
  const response = Array.from({ length: span + 2 }, (_, k) => {
    let sum = 0;
    let n = 0;
    for (let t = 20 * workers; t + k < known; t++) {
      const noise = noises[t]!;
      const at = x[t + k]!;
      for (let i = 0; i < DIMENSIONS; i++) sum += noise[i]! * at[i]!;
      n += DIMENSIONS;
    }
    return sum / n;
  });
  // Least squares of Δ(k+1) on Δ(k) and x(k), from the first step that is not the jump itself.
  let [dd, dx, xx, yd, yx, yy] = [0, 0, 0, 0, 0, 0];
  for (let k = 1; k < span; k++) {
    const d = response[k]! - response[k - 1]!;
    const y = response[k + 1]! - response[k]!;
    const h = response[k]!;
    dd += d * d;
    dx += d * h;
    xx += h * h;
    yd += y * d;
    yx += y * h;
    yy += y * y;
  }
  const determinant = dd * xx - dx * dx;
  const momentum = (yd * xx - yx * dx) / determinant;
  const a = (yx * dd - yd * dx) / determinant;
  return { momentum, step: (-a * workers) / rate, unexplained: 1 - (momentum * yd + a * yx) / yy };
}
