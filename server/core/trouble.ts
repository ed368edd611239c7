import type { Evaluation } from '../../shared/rest.ts';

/**
 * Does the optimisation get on? The norm of the gradient over time tells a training that has arrived from one
 * that is held up (Deep Learning §8.2.2), and batch normalisation is what to try first then (§11.2).
 */

/** Means over updates. */
export interface UpdateMeans {
  readonly loss: number;
  readonly gradientNorm: number;
}

export interface Trouble {
  /** `rises`: the loss is higher than before; `stalls`: it no longer falls and is still high. */
  readonly kind: 'rises' | 'stalls';
  /** Progress in the first updates, in the middle third of all, and in the last third. */
  readonly first: UpdateMeans;
  readonly middle: UpdateMeans;
  readonly last: UpdateMeans;
  /** The last third's. */
  readonly updates: number;
}

/** Before, nothing is said: a warm-up, or a slow start, is no trouble. */
export const UPDATES_MIN = 200;
/** In each third, so that the noise of minibatches averages out. */
const POINTS_MIN = 30;
/** A smaller fall of the loss from one third to the next is none. */
const FALL = 0.01;
/** Below this share of the first loss a training that stands still has arrived, as far as one can tell. */
const LEARNT = 0.5;
/** Share of the highest learning rate: with less, a schedule has ended, and little is to be expected of updates. */
const DECAYED = 0.1;

/**
 * @param points of the course, evenly thinned, oldest first. @param first of the first updates.
 * @param evaluations of the validation part, oldest first.
 * @returns null: all is well, or too early to say.
 */
export function troubleIn(
  points: readonly (UpdateMeans & { readonly step: number; readonly learningRate: number })[],
  first: UpdateMeans,
  evaluations: readonly Pick<Evaluation, 'step' | 'loss' | 'error'>[] = [],
): Trouble | null {
  const end = points.at(-1)?.step ?? 0;
  if (end < UPDATES_MIN) return null;
  const from = (share: number) => points.filter(({ step }) => step > share * end);
  const late = from(2 / 3);
  const middle = meanOf(from(1 / 3).slice(0, -late.length));
  const last = meanOf(late);
  if (late.length < POINTS_MIN || last.loss < LEARNT * first.loss) return null;
  // What is still close to nothing cannot be judged by shares.
  if (!(last.loss > (1 - FALL) * middle.loss) || !(middle.loss > 0)) return null;
  const kind = last.loss > 1.1 * middle.loss ? 'rises' : 'stalls';
  const highest = Math.max(...points.map(({ learningRate }) => learningRate));
  if (kind === 'stalls' && rateOf(late) < DECAYED * highest) return null;
  // What is measured without the noise of training gets on, or has nowhere to go.
  const known = evaluations.filter(({ loss }) => loss !== null);
  const before = known.filter(({ step }) => step <= (2 / 3) * end);
  const least = (list: typeof known) => Math.min(...list.map(({ loss }) => loss!));
  if (before.length < known.length && least(known) < (1 - FALL) * least(before)) return null;
  if (evaluations.some(({ error }) => error === 0)) return null;
  return { kind, first, middle, last, updates: Math.round(end / 3) };
}

const rateOf = (points: readonly { readonly learningRate: number }[]) =>
  points.reduce((sum, { learningRate }) => sum + learningRate, 0) / points.length;

function meanOf(points: readonly UpdateMeans[]): UpdateMeans {
  const sum = { loss: 0, gradientNorm: 0 };
  for (const { loss, gradientNorm } of points) {
    sum.loss += loss / points.length;
    sum.gradientNorm += gradientNorm / points.length;
  }
  return sum;
}

/** A smaller share of the first norm is an insignificant one. */
const INSIGNIFICANT = 0.1;

/** For the user: what is seen, and what to try. @param normalised the model has batch normalisation. */
export function troubleText(
  { kind, first, middle, last, updates }: Trouble,
  normalised: boolean,
): string {
  if (!(first.gradientNorm > 0)) {
    return `the training loss does not fall (${short(first.loss)} at first, ${short(last.loss)} over the last ${updates} updates), and the first gradients were 0: no parameter moves the loss; look at initial values, at units that are dead from the start and at the loss (\`downpour check\`).`;
  }
  const share = last.gradientNorm / first.gradientNorm;
  const seen = `the training loss ${kind === 'rises' ? 'rises' : 'no longer falls'} (${short(first.loss)} at first, ${short(middle.loss)}, then ${short(last.loss)} over the last ${updates} updates)`;
  const norm =
    share < INSIGNIFICANT
      ? `the gradient norm is ${short(share)} of what it was: a flat region, or units that are saturated or dead`
      : `the gradient norm is ${short(share)} of what it was, so it is no minimum or saddle that holds it up (Deep Learning §8.2.2)`;
  const rate = 'another learning rate (`downpour lr-find`)';
  const next =
    kind === 'rises'
      ? `try a lower learning rate (\`downpour lr-find\`)${normalised ? '' : ', or batch normalisation (§11.2)'}`
      : normalised
        ? `try ${rate}, other initial values, or a larger model`
        : `try batch normalisation at once (§11.2, §8.7.1), then ${rate}`;
  return `${seen}, and ${norm}: ${next}; if the targets are mostly noise, this is all there is to learn.`;
}

const short = (value: number) => String(Number(value.toPrecision(3)));
