import { pickPoints } from '../../shared/downsample.ts';
import type { Observed } from '../../shared/observed.ts';
import { medianOf } from '../../shared/quantile.ts';
import type { Evaluation, Metrics, Observations, ObservedSample } from '../../shared/rest.ts';
import { type Trouble, troubleIn } from './trouble.ts';

/**
 * What is remembered of a run's course: smoothed values for now, thinned curves for later. Memory
 * stays bounded however long the run: at 2,000 points every second one is dropped and the distance
 * between kept points doubles.
 */

const POINTS_MAX = 2000;
const EVALUATIONS_MAX = 10_000;
/** Metrics of all evaluations together: with names of 64 characters they take up to 60 MB of a checkpoint's manifest. */
const METRICS_MAX = 150_000;
/** Pushes that are remembered for the present speed. */
const WINDOW = 1000;
/** Told of the histogram; what is kept counts each staleness by itself, up to `STALENESS_MAX`. */
const HISTOGRAM_BINS = 129;
const STALENESS_MAX = 4096;
/**
 * So long after its first push a run, or a worker, has no speed: workers compile their operations with their first minibatches,
 * and a processor needs a moment until it is fast.
 */
export const WARM_UP_SECONDS = 2;
/** The present speed is that of so many seconds. */
const SPEED_SECONDS = 10;
const SPARKLINE_POINTS = 40;
/** Histograms are large: the more tensors, the fewer samples are kept, and never fewer than the least. */
const SAMPLES = { tensorsMax: 4000, least: 16, most: 120 } as const;
/** Weight of the past in the smoothed loss: about the last 50 pushes count. */
const SMOOTHING = 0.98;
/** Whose means tell how the training began. */
const FIRST_UPDATES = 20;

export interface Applied {
  readonly step: number;
  readonly seconds: number;
  readonly loss: number;
  /** Loss of the minibatch alone, where `loss` is smoothed; absent in points of older releases. */
  readonly minibatchLoss?: number;
  readonly learningRate: number;
  /** Momentum of the update rule; null: it has none. Absent in points of older releases. */
  readonly momentum?: number | null;
  readonly gradientNorm: number;
  readonly staleness: number;
  readonly examples: number;
  /** As its worker measured it; absent in points of older releases. */
  readonly computeMs?: number;
  /** Examples of all pushes up to this one; absent in points of older releases. */
  readonly examplesSoFar?: number;
}

export interface ObservationsState {
  readonly smoothed: { readonly sum: number; readonly weight: number };
  readonly stride: number;
  readonly points: readonly Applied[];
  readonly evaluations: readonly Evaluation[];
  /** [i]: pushes applied with staleness i. Of release 0.1.0: 129 numbers, the last one of 128 and more. */
  readonly histogram: readonly number[];
  readonly examples: number;
  /** Norm of the last update's gradient; absent in checkpoints of release 0.1.0. */
  readonly gradientNorm?: number | null;
  /** Sums over the first updates; absent in checkpoints of older releases. */
  readonly first?: { readonly count: number; readonly loss: number; readonly gradientNorm: number };
  /** Absent where nothing was sampled. */
  readonly sampled?: Sampled;
}

/** What workers sampled. */
interface Sampled {
  readonly stride: number;
  readonly count: number;
  readonly costMs: number;
  /** Compute time of all applied pushes. */
  readonly computeMs: number;
  readonly samples: readonly ObservedSample[];
}

export class Curves {
  #smoothed = { sum: 0, weight: 0 };
  #stride = 1;
  #points: Applied[] = [];
  #evaluations: Evaluation[] = [];
  #metricCount = 0;
  #histogram: number[] = [];
  #examples = 0;
  #gradientNorm: number | null = null;
  #first = { count: 0, loss: 0, gradientNorm: 0 };
  #trouble: Trouble | null = null;
  #sampled: Sampled = { stride: 1, count: 0, costMs: 0, computeMs: 0, samples: [] };
  /** Training time of the first push that this process has seen. */
  #began: number | null = null;
  /** (seconds, examples) of the last pushes, for the present speed: the first is the last one of the warm-up. */
  #recent: { seconds: number; examples: number; step: number }[] = [];

  constructor(state?: ObservationsState) {
    if (!state) return;
    this.#smoothed = { ...state.smoothed };
    this.#stride = state.stride;
    this.#points = [...state.points];
    this.#evaluations = [...state.evaluations];
    for (const { metrics } of state.evaluations) this.#metricCount += Object.keys(metrics).length;
    this.#histogram = [...state.histogram];
    this.#examples = state.examples;
    if (state.first) this.#first = { ...state.first };
    if (state.sampled) this.#sampled = state.sampled;
    // Without thinning the last point is the last update.
    const last = this.#stride === 1 ? (this.#points.at(-1)?.gradientNorm ?? null) : null;
    this.#gradientNorm = state.gradientNorm === undefined ? last : state.gradientNorm;
    if (this.#evaluations.length > 0) this.#trouble = this.#findTrouble();
  }

  get examples(): number {
    return this.#examples;
  }

  get evaluations(): readonly Evaluation[] {
    return this.#evaluations;
  }

  get gradientNorm(): number | null {
    return this.#gradientNorm;
  }

  /** The median of the points, which a few gradients that explode do not move; null: there is no update yet. */
  get usualGradientNorm(): number | null {
    if (this.#points.length === 0) return null;
    return medianOf(this.#points.map(({ gradientNorm }) => gradientNorm));
  }

  /** What is wrong with the optimisation, as of the last evaluation. */
  get trouble(): Trouble | null {
    return this.#trouble;
  }

  /** Exponentially smoothed over pushes, bias corrected; null before the first. */
  get trainingLoss(): number | null {
    return this.#smoothed.weight === 0 ? null : this.#smoothed.sum / this.#smoothed.weight;
  }

  applied(push: Applied): void {
    this.#smoothed.sum = SMOOTHING * this.#smoothed.sum + (1 - SMOOTHING) * push.loss;
    this.#smoothed.weight = SMOOTHING * this.#smoothed.weight + (1 - SMOOTHING);
    this.#examples += push.examples;
    this.#gradientNorm = push.gradientNorm;
    if (this.#first.count < FIRST_UPDATES) {
      this.#first.count++;
      this.#first.loss = sumOf(this.#first.loss, push.loss);
      this.#first.gradientNorm = sumOf(this.#first.gradientNorm, push.gradientNorm);
    }
    const bin = Math.min(push.staleness, STALENESS_MAX);
    while (this.#histogram.length <= bin) this.#histogram.push(0);
    this.#histogram[bin]!++;
    this.#began ??= push.seconds;
    if (push.seconds <= this.#began + WARM_UP_SECONDS) this.#recent.length = 0;
    this.#recent.push({ seconds: push.seconds, examples: this.#examples, step: push.step });
    if (this.#recent.length > 2 * WINDOW) this.#recent = this.#recent.slice(-WINDOW);
    if (push.step % this.#stride !== 0) return;
    this.#points.push({
      ...push,
      loss: this.trainingLoss ?? push.loss,
      minibatchLoss: push.loss,
      examplesSoFar: this.#examples,
    });
    if (this.#points.length > POINTS_MAX) {
      this.#stride *= 2;
      this.#points = this.#points.filter((point) => point.step % this.#stride === 0);
    }
  }

  evaluated(evaluation: Evaluation): void {
    this.#evaluations.push(evaluation);
    this.#trouble = this.#findTrouble();
    this.#metricCount += Object.keys(evaluation.metrics).length;
    // The first one and the latest stay.
    while (
      this.#evaluations.length > EVALUATIONS_MAX ||
      (this.#metricCount > METRICS_MAX && this.#evaluations.length > 2)
    ) {
      const [gone] = this.#evaluations.splice(1, 1);
      this.#metricCount -= Object.keys(gone!.metrics).length;
    }
  }

  #findTrouble(): Trouble | null {
    const { count, loss, gradientNorm } = this.#first;
    if (count < FIRST_UPDATES) return null;
    return troubleIn(
      this.#points.map((p) => ({ ...p, loss: p.minibatchLoss ?? p.loss })),
      { loss: loss / count, gradientNorm: gradientNorm / count },
      this.#evaluations.filter(({ part }) => part === 'validation'),
    );
  }

  /** Thinned like the curves: beyond the limit every second one goes, and of later ones too. */
  sampled(observed: Observed, seconds: number): void {
    const { step, updateSteps, samples, tensors, layers } = observed;
    const { count, stride, costMs } = this.#sampled;
    const kept = [...this.#sampled.samples];
    if (count % stride === 0) kept.push({ step, seconds, updateSteps, samples, tensors, layers });
    const { tensorsMax, least, most } = SAMPLES;
    const room = Math.floor(tensorsMax / Math.max(1, tensors.length + layers.length));
    const isFull = kept.length > Math.max(least, Math.min(most, room));
    this.#sampled = {
      ...this.#sampled,
      stride: isFull ? 2 * stride : stride,
      count: count + 1,
      costMs: sumOf(costMs, observed.costMs),
      samples: isFull ? kept.filter((_, i) => i % 2 === 0) : kept,
    };
  }

  /** What a worker says that an applied push took it. */
  computed(ms: number): void {
    this.#sampled = { ...this.#sampled, computeMs: sumOf(this.#sampled.computeMs, ms) };
  }

  observed(): Omit<Observations, 'everySteps'> {
    const { samples, count, costMs, computeMs } = this.#sampled;
    const share = count === 0 ? null : costMs / Math.max(costMs + computeMs, 1e-9);
    return { samples: [...samples], cost: { samples: count, ms: costMs, share } };
  }

  /** A new phase with fresh parameters: the smoothed loss begins anew. */
  restartSmoothing(): void {
    this.#smoothed = { sum: 0, weight: 0 };
  }

  /** Staleness of all applied pushes, by the histogram; null before the first. */
  staleness(): { p50: number; p95: number; max: number } | null {
    const count = this.#histogram.reduce((sum, n) => sum + n, 0);
    if (count === 0) return null;
    const at = (share: number) => {
      const rank = Math.min(count - 1, Math.floor(share * count));
      let below = 0;
      return this.#histogram.findIndex((n) => {
        below += n;
        return below > rank;
      });
    };
    return { p50: at(0.5), p95: at(0.95), max: this.#histogram.findLastIndex((n) => n > 0) };
  }

  /**
   * Over the last 10 seconds of training up to `seconds`, or since the last push but one where pushes are rarer; without the
   * warm-up. Null: this process has seen fewer than two since then.
   */
  speed(seconds: number): { examplesPerSecond: number; stepsPerSecond: number } | null {
    const last = this.#recent.at(-1);
    const before = this.#recent.at(-2);
    if (!last || !before) return null;
    let first = this.#recent.find((point) => point.seconds >= seconds - SPEED_SECONDS) ?? last;
    if (first === last) {
      // Silent for longer than its pushes are apart: it stands still.
      const usual = last.seconds - before.seconds;
      if (seconds - last.seconds > Math.max(SPEED_SECONDS, 3 * usual)) {
        return { examplesPerSecond: 0, stepsPerSecond: 0 };
      }
      first = before;
    }
    const span = Math.max(seconds - first.seconds, 1e-3);
    return {
      examplesPerSecond: (last.examples - first.examples) / span,
      stepsPerSecond: (last.step - first.step) / span,
    };
  }

  /** Examples a second over the whole training, without the warm-up; null: there is nothing after it. */
  meanSpeed(): number | null {
    const [first, last] = [this.#points[0], this.#points.at(-1)];
    const until = (first?.seconds ?? 0) + WARM_UP_SECONDS;
    const from = this.#points.findLast(({ seconds }) => seconds <= until);
    if (from?.examplesSoFar === undefined || last?.examplesSoFar === undefined) return null;
    const span = last.seconds - from.seconds;
    return span > 0 ? (last.examplesSoFar - from.examplesSoFar) / span : null;
  }

  /** The smoothed loss at a few steps at equal distances, the last one among them; for a small picture. */
  sparkline(): number[] {
    const points = this.#points;
    const count = Math.min(SPARKLINE_POINTS, points.length);
    return Array.from({ length: count }, (_, i) => {
      const { loss } = points[Math.round(((i + 1) * points.length) / count) - 1]!;
      return Number(loss.toPrecision(4));
    });
  }

  /** @param pointsMax of each curve, at least 2; those that show its shape are chosen. */
  metrics(pointsMax = Infinity): Metrics {
    const points = thinned(this.#points, pointsMax, [
      (p) => p.loss,
      (p) => p.minibatchLoss ?? null,
      (p) => p.gradientNorm,
      (p) => p.staleness,
      (p) => p.learningRate,
    ]);
    const evaluations = thinned(this.#evaluations, pointsMax, [(e) => e.loss, (e) => e.error]);
    return {
      training: {
        step: points.map((p) => p.step),
        seconds: points.map((p) => p.seconds),
        examples: points.map((p) => p.examplesSoFar ?? null),
        loss: points.map((p) => p.loss),
        minibatchLoss: points.map((p) => p.minibatchLoss ?? null),
        learningRate: points.map((p) => p.learningRate),
        momentum: points.map((p) => p.momentum ?? null),
        gradientNorm: points.map((p) => p.gradientNorm),
        staleness: points.map((p) => p.staleness),
        computeMs: points.map((p) => p.computeMs ?? null),
      },
      evaluations: [...evaluations],
      stalenessHistogram: foldedAt(HISTOGRAM_BINS, this.#histogram),
    };
  }

  state(): ObservationsState {
    return {
      smoothed: { ...this.#smoothed },
      stride: this.#stride,
      points: [...this.#points],
      evaluations: [...this.#evaluations],
      histogram: [...this.#histogram],
      examples: this.#examples,
      gradientNorm: this.#gradientNorm,
      first: { ...this.#first },
      ...(this.#sampled.count > 0 ? { sampled: this.#sampled } : {}),
    };
  }
}

/** Ends at the largest number instead of infinity: an older release may have let one in that is close to it. */
export function sumOf(sum: number, more: number): number {
  return Math.max(-Number.MAX_VALUE, Math.min(Number.MAX_VALUE, sum + more));
}

/** So many counts, the last one of all beyond. */
function foldedAt(bins: number, counts: readonly number[]): number[] {
  const beyond = counts.slice(bins - 1).reduce((sum, n) => sum + n, 0);
  return Array.from({ length: bins }, (_, i) => (i === bins - 1 ? beyond : (counts[i] ?? 0)));
}

function thinned<P extends { readonly step: number }>(
  points: readonly P[],
  pointsMax: number,
  values: readonly ((point: P) => number | null)[],
): readonly P[] {
  if (points.length <= pointsMax) return points;
  const columns = values.map((value) => points.map(value));
  const steps = points.map(({ step }) => step);
  return pickPoints(steps, columns, pointsMax).map((i) => points[i]!);
}
