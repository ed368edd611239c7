import type { RunInternals } from './state.ts';

/** What is told of a training that goes wrong: what was seen, and what to do. */

/** A gradient that is this many times the usual one has exploded: minibatches alone differ by less. */
const EXPLODES = 10;

/**
 * The gradient of a recurrent model explodes where it grows from step to step of a sequence, and clipping its norm is what
 * helps (Deep Learning §10.11.1). @param norm of the last gradient that was finite. @returns null: the model is not
 * recurrent, or its gradient has not exploded.
 */
function clippingOf({ components }: RunInternals, norm: number | null): string | null {
  const { layout } = components.vector;
  const isRecurrent = layout?.tensors.some(
    ({ name, role }) => role === 'trainable' && /(^|\/)recurrent_kernel(_\d+)?$/.test(name),
  );
  const usual = components.observations.usualGradientNorm;
  if (!isRecurrent || norm === null || !usual || !(norm > EXPLODES * usual)) return null;
  const told = (value: number) => Number(value.toPrecision(2));
  return `the norm of the gradient was ${told(norm)}, and ${told(usual)} in the median of the updates, as happens where it grows along the steps of a sequence: set clip.norm to about ${told(usual)} first, and lower learningRate only if that does not help`;
}

/** @param step that the update makes. @param norm of its gradient, as it was applied. */
export function overflowText(
  inside: RunInternals,
  step: number,
  learningRate: number,
  norm: number | null,
): string {
  const { clip } = inside.options.config;
  const advice =
    clippingOf(inside, norm) ?? `lower learningRate, or clip.norm (now ${clip.norm ?? 'none'})`;
  return `the update at step ${step} made the parameters overflow with learning rate ${learningRate} and gradient norm ${norm}: ${advice}`;
}

/**
 * Text about a loss or gradient at the parameters of step `readStep`, the latest of `nonFiniteInRow`.
 * @param overflows it is finite, but its square is not.
 */
export function nonFiniteText(inside: RunInternals, readStep: number, overflows: boolean): string {
  const { options, fields, components } = inside;
  const { nonFiniteMax, clip } = options.config;
  const what = overflows
    ? 'gradient is so large that its square, which the optimizer keeps, is infinite in float32, or soon would be in a sum'
    : 'loss or gradient is NaN or infinite';
  const count = `${fields.nonFiniteInRow} in a row, the run counts as diverged at ${nonFiniteMax}`;
  if (fields.initialLoss === null) {
    return `the ${what} at the initial parameters, before any update (${count}): learningRate has no part in it; look for bad or far too large values in the data, at the loss, and at the model's initialisers`;
  }
  const clipping = clip.norm === null ? 'set clip.norm' : 'lower clip.norm';
  const advice =
    clippingOf(inside, components.observations.gradientNorm) ??
    `lower learningRate, ${clipping}, or look for bad values in the data`;
  return `the ${what} at step ${readStep} (${count}): ${advice}`;
}

/** No evaluation was ever good enough to be the best. */
export function nothingFiniteText({ fields, components }: RunInternals, reason: string): string {
  const { trainingLoss } = components.observations;
  const trains = trainingLoss !== null && fields.rollbacks.length === 0;
  const next = trains
    ? `the training loss is ${Number(trainingLoss.toPrecision(4))}, so look at the values of the validation part and at what is measured there`
    : 'lower learningRate';
  return `no evaluation gave a finite validation value (${reason}): ${next}`;
}
