import { type Tensor, tf } from '../tf.ts';
import type { RecurrentCell } from './cells.ts';
import { nativeLstmBackward } from './native.ts';
import type { RecurrenceInputs, RecurrenceOptions } from './sequence.ts';
import { wasmKernel } from './wasm.ts';

/**
 * A recurrent cell over all steps of a sequence as one operation with a gradient of its own. TensorFlow.js
 * differentiates single operations: about 60 of them for each time step of an LSTM, among them a product for the
 * recurrent weights. Here a time step takes half as many, and those weights get one product over all steps.
 */

/** @returns the output, shape [B, T, H] or [B, H], then the states if they are asked for, each of shape [B, H]. */
export function recurrence(
  cell: RecurrentCell,
  inputs: RecurrenceInputs,
  options: RecurrenceOptions,
): Tensor[] {
  const { z, weights, initial, mask, dropout } = inputs;
  const given = [z, weights, ...(initial ?? [])];
  const constants = [mask, dropout].filter((tensor) => tensor !== null);
  const whole = tf.customGrad((...args) => {
    const save = args.at(-1) as unknown as (tensors: Tensor[]) => void;
    const own = wasmKernel(cell.wasm, inputs, options);
    const { value, kept } = own ? own.forward(inputs) : forward(cell, inputs, options);
    save([...given, ...constants, ...kept.flat()]);
    const gradFunc = (dy: Tensor, saved: Tensor[]) => {
      const rest = [...saved];
      const next = (count: number) => rest.splice(0, count);
      const [zSaved, weightsSaved] = next(2) as [Tensor, Tensor];
      const again: RecurrenceInputs = {
        ...{ z: zSaved, weights: weightsSaved },
        initial: initial && next(initial.length),
        mask: mask && next(1)[0]!,
        dropout: dropout && next(1)[0]!,
      };
      if (isDifferentiatedAgain()) return tapedGradients(cell, again, options, dy);
      if (own) return own.gradients(again, dy, rest);
      const steps = (kept as Tensor[][]).map((tensors) => next(tensors.length));
      return gradients(cell, again, options, dy, steps);
    };
    return { value, gradFunc } as never;
  })(...given) as Tensor;
  return partsOf(whole, cell, options);
}

/** The times of the steps in the order in which they are computed. */
function order(z: Tensor, { backwards }: RecurrenceOptions): number[] {
  const steps = z.shape[0]!;
  return Array.from({ length: steps }, (_, i) => (backwards ? steps - 1 - i : i));
}

/** @returns `value` is what `partsOf` takes apart; `kept` is by step, in the order in which they are computed. */
function forward(cell: RecurrentCell, inputs: RecurrenceInputs, options: RecurrenceOptions) {
  const { z, weights, initial, mask, dropout } = inputs;
  const shape: [number, number] = [z.shape[1]!, z.shape[2]! / cell.gateCount];
  const zeros = initial ? null : tf.zeros(shape);
  let state = initial ?? Array.from({ length: cell.stateCount }, () => zeros!);
  const zs = tf.unstack(z);
  const masks = mask && tf.unstack(mask);
  const outputs: Tensor[] = [];
  const kept: (readonly Tensor[])[] = [];
  for (const t of order(z, options)) {
    const [h, ...others] = state as [Tensor, ...Tensor[]];
    const dropped = dropout ? tf.mul(h, dropout) : h;
    const step = cell.step(zs[t]!, [dropped, ...others], weights);
    const before = state;
    state = masks
      ? step.state.map((next, i) => tf.add(before[i]!, tf.mul(masks[t]!, tf.sub(next, before[i]!))))
      : step.state;
    kept.push(step.kept);
    if (options.sequences) outputs.push(state[0]!);
  }
  if (!options.sequences) outputs.push(state[0]!);
  if (options.states) outputs.push(...state.slice(1));
  return { value: outputs.length === 1 ? outputs[0]! : tf.stack(outputs, 1), kept };
}

function partsOf(
  whole: Tensor,
  cell: RecurrentCell,
  { sequences, states }: RecurrenceOptions,
): Tensor[] {
  if (whole.rank === 2) {
    const output = sequences ? tf.expandDims(whole, 1) : whole;
    return states ? [output, whole] : [output];
  }
  if (!states) return [whole];
  const [batch, all, units] = whole.shape as [number, number, number];
  const steps = all - (cell.stateCount - 1);
  const at = (i: number) =>
    tf.reshape(tf.slice(whole, [0, i, 0], [batch, 1, units]), [batch, units]);
  const last = Array.from({ length: cell.stateCount }, (_, i) => at(steps - 1 + i));
  return [sequences ? tf.slice(whole, [0, 0, 0], [batch, steps, units]) : last[0]!, ...last];
}

/** @param kept as `forward` gave it. @returns the gradients by z, the weights and the initial states. */
function gradients(
  cell: RecurrentCell,
  inputs: RecurrenceInputs,
  options: RecurrenceOptions,
  dy: Tensor,
  kept: readonly (readonly Tensor[])[],
): Tensor[] {
  const { z, weights, initial, mask, dropout } = inputs;
  const times = order(z, options);
  const dys = dy.rank === 2 ? [dy] : tf.unstack(dy, 1);
  const masks = mask && tf.unstack(mask);
  const dzs: Tensor[] = [];
  const keptByTime: (readonly Tensor[])[] = [];
  const outputs = options.sequences ? times.length : 1;
  const native = 'places' in cell ? nativeLstmBackward(weights, z.shape[1]!) : null;
  const transposed = native ? null : tf.transpose(weights);
  let dState: (Tensor | null)[] = Array.from(
    { length: cell.stateCount },
    (_, i) => (i > 0 && dys[outputs - 1 + i]) || null,
  );
  for (let step = times.length - 1; step >= 0; step--) {
    const t = times[step]!;
    const direct = options.sequences ? dys[step]! : step === times.length - 1 ? dys[0]! : null;
    if (direct) dState[0] = dState[0] ? tf.add(dState[0], direct) : direct;
    const counted = masks ? dState.map((d) => d && tf.mul(d, masks[t]!)) : dState;
    const first = step === 0 && !initial;
    const back = native
      ? native(counted, kept[step]!, first)
      : cell.back(counted, kept[step]!, transposed!, first);
    dzs[t] = back.dz;
    keptByTime[t] = kept[step]!;
    if (!back.dState) break;
    const [dh, ...others] = back.dState as [Tensor, ...Tensor[]];
    const before = [dropout ? tf.mul(dh, dropout) : dh, ...others];
    const passed = masks && dState.map((d, i) => d && tf.sub(d, counted[i]!));
    dState = passed ? before.map((d, i) => (passed[i] ? tf.add(d, passed[i]) : d)) : before;
  }
  const dz = tf.stack(dzs);
  const dInitial = initial ? (dState as Tensor[]) : [];
  return [dz, cell.weightsGradient(dz, keptByTime), ...dInitial];
}

// Gradients of gradients: what `gradients` keeps of the pass forward is no function of the inputs any more.

let onceOnly = 0;

/** Runs `f`, which takes gradients while another gradient is being recorded, and lets nothing differentiate them again. */
export function withFirstGradientsOnly<T>(f: () => T): T {
  onceOnly++;
  try {
    return f();
  } finally {
    onceOnly--;
  }
}

/** Whether a gradient is being recorded, of which the one that is taken now may become a part. */
function isDifferentiatedAgain(): boolean {
  const { state } = tf.engine() as unknown as { state: { gradientDepth: number } };
  return onceOnly === 0 && state.gradientDepth > 0;
}

function tapedGradients(
  cell: RecurrentCell,
  inputs: RecurrenceInputs,
  options: RecurrenceOptions,
  dy: Tensor,
): Tensor[] {
  const run = (...[z, weights, ...initial]: Tensor[]) =>
    forward(
      cell,
      { ...inputs, z: z!, weights: weights!, initial: inputs.initial && initial },
      options,
    ).value;
  return tf.grads(run)([inputs.z, inputs.weights, ...(inputs.initial ?? [])], dy);
}
