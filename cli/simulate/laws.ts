import { DownpourError } from '../../shared/errors.ts';
import { type Random, random } from '../../shared/random.ts';

/**
 * How long minibatches take virtual workers. The law matters, not only its mean: with 32 workers and a rate of 0.1
 * exponential times learn where narrow ones do not (docs/asynchrony.md).
 */
export interface ComputeLaw {
  /** As it was written. */
  readonly text: string;
  /** Mean time of a worker of ordinary speed, ms. */
  readonly meanMs: number;
  /** Times of one worker, ms: each worker draws from a stream of its own, so others do not change them. */
  worker(index: number, seed: number): () => number;
}

/** Stream of the compute times of worker i: this plus i. Far from what runs and experiments use. */
const COMPUTE_STREAM = 0x4000_0000;
const SPEED_STREAM = 0x4800_0000;

/** Times on a machine that does nothing else: Γ with shape 100. */
const NARROW_CV = 0.1;

type Draw = (draw: Random) => number;

interface LawForm {
  /** What may follow the mean. */
  readonly more: string;
  readonly moreMax: number;
  readonly help: string;
  /** A law of mean 1. @param more numbers after the mean. */
  readonly make: (more: readonly number[]) => {
    speed?: (index: number, draw: Random) => number;
  } & {
    readonly each: Draw;
  };
  readonly problem?: (more: readonly number[]) => string | null;
}

const above = (least: number, what: string) => (more: readonly number[]) =>
  more.every((value) => value > least) ? null : `${what} must be above ${least}`;

/** By name, as `--compute` has them. */
export const LAWS: Readonly<Record<string, LawForm>> = {
  constant: {
    ...{ more: '', moreMax: 0, help: 'always the same' },
    make: () => ({ each: () => 1 }),
  },
  gamma: {
    ...{
      more: ',cv',
      moreMax: 1,
      help: 'similar machines; coefficient of variation 0.1 by default, 0.6 for dissimilar machines',
    },
    make: ([cv = NARROW_CV]) => ({ each: gamma(1 / cv ** 2) }),
    problem: above(0, 'the coefficient of variation'),
  },
  exponential: {
    ...{ more: '', moreMax: 0, help: 'often short, sometimes long, as if interrupted at random' },
    make: () => ({ each: exponential }),
  },
  halfnormal: {
    ...{ more: '', moreMax: 0, help: 'the absolute value of a normally distributed number' },
    make: () => ({ each: (draw) => Math.abs(draw.normal()) * Math.sqrt(Math.PI / 2) }),
  },
  pareto: {
    ...{ more: ',tail', moreMax: 1, help: 'sometimes very long; tail 2.5 by default' },
    make: ([tail = 2.5]) => ({
      each: (draw) => ((tail - 1) / tail) * (1 - draw.uniform()) ** (-1 / tail),
    }),
    problem: above(1, 'the tail'),
  },
  lognormal: {
    ...{ more: ',sigma', moreMax: 1, help: 'workers with different speeds; sigma 0.6 by default' },
    make: ([sigma = 0.6]) => ({
      speed: (_, draw) => Math.exp(sigma * draw.normal() - sigma ** 2 / 2),
      each: gamma(1 / NARROW_CV ** 2),
    }),
    problem: above(0, 'sigma'),
  },
  ladder: {
    ...{ more: '', moreMax: 0, help: 'worker i needs i times as long as worker 1' },
    make: () => ({ speed: (index) => index + 1, each: () => 1 }),
  },
  speeds: {
    ...{
      more: ',s1,s2,…',
      moreMax: 1_000,
      help: 'speed of each worker relative to the mean; the list repeats',
    },
    make: (more) => ({
      speed: (index) => 1 / (more[index % more.length] ?? 1),
      each: gamma(1 / NARROW_CV ** 2),
    }),
    problem: above(0, 'a speed'),
  },
};

/** One line for each law, for help. */
export const LAWS_HELP = [
  ...Object.entries(LAWS).map(([name, { more, help }]) => [`${name}:ms${more}`, help]),
  ['trace:file', 'times drawn from a file with the times of a real run in ms, one per line'],
]
  .map(([form, help]) => `  ${form!.padEnd(20)} ${help}`)
  .join('\n');

/**
 * Reads `gamma:100,0.1`.
 * @param readTrace gives the text of a trace's file. @throws DownpourError DP_USAGE.
 */
export function parseLaw(text: string, readTrace?: (path: string) => string): ComputeLaw {
  const colon = text.indexOf(':');
  const name = colon < 0 ? text : text.slice(0, colon);
  const rest = colon < 0 ? '' : text.slice(colon + 1);
  const refuse = (why: string) =>
    new DownpourError('DP_USAGE', `--compute is '${text}': ${why}; allowed:\n${LAWS_HELP}`);
  if (name === 'trace' && readTrace) {
    const times = readTrace(rest)
      .split(/[\s,]+/)
      .filter((part) => part !== '')
      .map(Number);
    const wrong = times.find((ms) => !(ms > 0 && Number.isFinite(ms)));
    if (times.length === 0) throw refuse('the file has no times');
    if (wrong !== undefined) throw refuse(`the file has ${wrong}, and times are above 0`);
    return tracedLaw(text, [times]);
  }
  if (!Object.hasOwn(LAWS, name)) throw refuse(`there is no law '${name}'`);
  const form = LAWS[name]!;
  const [meanMs = Number.NaN, ...more] = rest
    .split(',')
    .map((part) => (part.trim() === '' ? Number.NaN : Number(part)));
  if (!(meanMs > 0 && Number.isFinite(meanMs))) {
    throw refuse('after the colon comes the mean in ms, above 0');
  }
  if (more.length > form.moreMax) throw refuse(`at most ${1 + form.moreMax} numbers belong to it`);
  if (!more.every(Number.isFinite)) throw refuse('all that follows the mean must be numbers');
  const problem = form.problem?.(more) ?? null;
  if (problem !== null) throw refuse(problem);
  const { each, speed } = form.make(more);
  return {
    ...{ text, meanMs },
    worker(index, seed) {
      const own = speed?.(index, random(seed, SPEED_STREAM + index)) ?? 1;
      const draw = random(seed, COMPUTE_STREAM + index);
      return () => meanMs * own * each(draw);
    },
  };
}

/** Drawn from recorded times: those of one worker each, by turns. @param times ms, none empty. */
export function tracedLaw(text: string, times: readonly (readonly number[])[]): ComputeLaw {
  const all = times.flat();
  return {
    text,
    meanMs: all.reduce((sum, ms) => sum + ms, 0) / all.length,
    worker(index, seed) {
      const own = times[index % times.length]!;
      const draw = random(seed, COMPUTE_STREAM + index);
      return () => own[draw.below(own.length)]!;
    },
  };
}

/** Some workers are slower for good. @param factor times as long, of the first `count`. */
export function slowed(law: ComputeLaw, count: number, factor: number): ComputeLaw {
  return {
    ...law,
    text: `${law.text}, ${count} worker${count === 1 ? '' : 's'} ${factor} times slower`,
    worker(index, seed) {
      const own = law.worker(index, seed);
      return index < count ? () => factor * own() : own;
    },
  };
}

const exponential: Draw = (draw) => -Math.log(1 - draw.uniform());

/** A Γ number of mean 1 (Marsaglia and Tsang 2000). */
function gamma(shape: number): Draw {
  if (shape < 1) {
    const higher = gamma(shape + 1);
    // Γ(a) = Γ(a + 1) · U^(1/a); means are a + 1 and a.
    return (draw) => ((higher(draw) * (shape + 1)) / shape) * (1 - draw.uniform()) ** (1 / shape);
  }
  const d = shape - 1 / 3;
  const c = 1 / Math.sqrt(9 * d);
  return (draw) => {
    for (;;) {
      const x = draw.normal();
      const v = (1 + c * x) ** 3;
      if (v <= 0) continue;
      const u = 1 - draw.uniform();
      if (Math.log(u) < x ** 2 / 2 + d - d * v + d * Math.log(v)) return (d * v) / shape;
    }
  };
}
