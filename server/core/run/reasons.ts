import type { RunInternals } from './state.ts';

/** What is told of a training that goes wrong: what was seen, and what to do. */

/** @param step that the update makes. @param norm of its gradient, as it was applied. */
export function overflowText(
  { options }: RunInternals,
  step: number,
  learningRate: number,
  norm: number | null,
): string {
  const clip = options.config.clip.norm ?? 'none';
  return `the update at step ${step} made the parameters overflow with learning rate ${learningRate} and gradient norm ${norm}: lower learningRate, or clip.norm (now ${clip})`;
}

/** Text about a loss or gradient at the parameters of step `readStep`, the latest of `nonFiniteInRow`. */
export function nonFiniteText({ options, fields }: RunInternals, readStep: number): string {
  const { nonFiniteMax, clip } = options.config;
  const count = `${fields.nonFiniteInRow} in a row, the run counts as diverged at ${nonFiniteMax}`;
  if (fields.initialLoss === null) {
    return `the loss or gradient is NaN or infinite at the initial parameters, before any update (${count}): learningRate has no part in it; look for bad or far too large values in the data, at the loss, and at the model's initialisers`;
  }
  const clipping = clip.norm === null ? 'set clip.norm' : 'lower clip.norm';
  return `the loss or gradient at step ${readStep} is NaN or infinite (${count}): lower learningRate, ${clipping}, or look for bad values in the data`;
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
