import type { BackendWasm } from '@tensorflow/tfjs-backend-wasm';
import { type OwnKernels, ownKernels, packedSize } from '../kernels/wasm-own.ts';
import { type Tensor, tf } from '../tf.ts';
import type { RecurrenceInputs, RecurrenceOptions, WasmCell } from './sequence.ts';

/**
 * Recurrent steps by our own kernels on the wasm engine, where an operation for each part of a step costs more than its
 * arithmetic. Shapes as in `recurrence.ts`: T steps, B examples, H units.
 */

export interface SequenceKernel {
  /** @returns what `recurrence` takes apart, and what `gradients` needs. */
  forward(inputs: RecurrenceInputs): { value: Tensor; kept: Tensor[] };
  /** @returns by z, the weights and the initial states that are given. */
  gradients(inputs: RecurrenceInputs, dy: Tensor, kept: readonly Tensor[]): Tensor[];
}

/** Null: another engine is set, its kernels cannot be had, or dropout of the state is asked for. */
export function wasmKernel(
  cell: WasmCell | null,
  { dropout }: RecurrenceInputs,
  options: RecurrenceOptions,
): SequenceKernel | null {
  if (!cell || dropout || tf.getBackend() !== 'wasm') return null;
  const backend = tf.backend() as BackendWasm;
  const kernels = ownKernels(backend);
  if (!kernels) return null;
  const Kind = cell.kind === 'lstm' ? LstmSequence : GruSequence;
  return new Kind(new Heap(backend), kernels, options, cell.hard);
}

/** Tensors and their addresses. */
class Heap {
  readonly #backend: BackendWasm;

  constructor(backend: BackendWasm) {
    this.#backend = backend;
  }

  /** Its content is arbitrary. */
  make(...shape: number[]): Tensor {
    return tf.engine().makeTensorFromTensorInfo(this.#backend.makeOutput(shape, 'float32'));
  }

  zeros(...shape: number[]): Tensor {
    const tensor = this.make(...shape);
    this.floats(tensor).fill(0);
    return tensor;
  }

  copy(from: Tensor): Tensor {
    const tensor = this.make(...from.shape);
    this.floats(tensor).set(this.floats(from));
    return tensor;
  }

  /** Valid until the next tensor is made: the memory may grow. */
  floats(tensor: Tensor): Float32Array {
    return this.#backend.typedArrayFromHeap(tensor) as Float32Array;
  }

  /** The address of its element `index`. */
  at(tensor: Tensor, index = 0): number {
    return this.#backend.getMemoryOffset(tensor.dataId) + 4 * index;
  }
}

/** One step, in the order in which they are computed. */
interface TimeStep {
  readonly index: number;
  readonly time: number;
  /** The output of the step before: its address, and the floats between two examples. */
  readonly h: number;
  readonly hRow: number;
  /** The address of its mask; 0: there is none. */
  readonly mask: number;
}

abstract class Sequence implements SequenceKernel {
  protected readonly heap: Heap;
  protected readonly kernels: OwnKernels;
  protected readonly options: RecurrenceOptions;
  protected readonly hard: boolean;

  constructor(heap: Heap, kernels: OwnKernels, options: RecurrenceOptions, hard: boolean) {
    this.heap = heap;
    this.kernels = kernels;
    this.options = options;
    this.hard = hard;
  }

  abstract forward(inputs: RecurrenceInputs): { value: Tensor; kept: Tensor[] };
  abstract gradients(inputs: RecurrenceInputs, dy: Tensor, kept: readonly Tensor[]): Tensor[];

  protected sizes({ z, weights }: RecurrenceInputs) {
    const [steps, batch] = z.shape as [number, number];
    const [units, width] = weights.shape as [number, number];
    return { steps, batch, units, width };
  }

  /** @param hs the outputs in the order of the steps, shape [B, T, H]. @param first the state before the first step. */
  protected steps({ z, weights, mask }: RecurrenceInputs, hs: Tensor, first: Tensor): TimeStep[] {
    const { steps, batch, units } = this.sizes({ z, weights } as RecurrenceInputs);
    return Array.from({ length: steps }, (_, index) => {
      const time = this.options.backwards ? steps - 1 - index : index;
      return {
        index,
        time,
        ...(index === 0
          ? { h: this.heap.at(first), hRow: units }
          : { h: this.heap.at(hs, (index - 1) * units), hRow: steps * units }),
        mask: mask ? this.heap.at(mask, time * batch) : 0,
      };
    });
  }

  /** Some columns of the weights for h · W. */
  protected packed(weights: Tensor, first: number, count: number): Tensor {
    const [units, width] = weights.shape as [number, number];
    const out = this.heap.make(packedSize(units, count));
    this.kernels.pack(this.heap.at(out), this.heap.at(weights, first), units, count, width, 1);
    return out;
  }

  /** Some columns of the weights for dz · Wᵀ. */
  protected packedTransposed(weights: Tensor, first: number, count: number): Tensor {
    const [units, width] = weights.shape as [number, number];
    const out = this.heap.make(packedSize(count, units));
    this.kernels.pack(this.heap.at(out), this.heap.at(weights, first), count, units, 1, width);
    return out;
  }

  /** dy by the output of a step, 0 where there is none, and the floats between two examples of it. */
  protected slope(
    dy: Tensor,
    steps: number,
    units: number,
  ): { at(step: TimeStep): number; row: number } {
    const { sequences } = this.options;
    const row = (dy.rank === 2 ? 1 : dy.shape[1]!) * units;
    return {
      row,
      at: ({ index }) =>
        sequences ? this.heap.at(dy, index * units) : index === steps - 1 ? this.heap.at(dy) : 0,
    };
  }

  /** Adds hᵀ · dz of one step to the weights' gradient. @param panels room for dz. */
  protected addToWeights(
    dWeights: Tensor,
    column: number,
    h: { readonly at: number; readonly row: number },
    dz: number,
    count: number,
    panels: Tensor,
    { batch, units, width }: { batch: number; units: number; width: number },
  ): void {
    this.kernels.pack(this.heap.at(panels), dz, batch, count, width, 1);
    this.kernels.multiply(
      this.heap.at(dWeights, column),
      width,
      ...([h.at, 1, h.row, this.heap.at(panels), units, count, batch, true] as const),
    );
  }

  /** @param states after the last step, but for the output. */
  protected value(hs: Tensor, states: readonly Tensor[]): Tensor {
    const { sequences, states: wanted } = this.options;
    const [batch, steps, units] = hs.shape as [number, number, number];
    const more = wanted ? states : [];
    if (sequences && steps + more.length > 1) {
      return tf.concat([hs, ...more.map((state) => tf.expandDims(state, 1))], 1);
    }
    const last = tf.reshape(tf.slice(hs, [0, steps - 1, 0], [batch, 1, units]), [batch, units]);
    return more.length === 0 ? last : tf.stack([last, ...more], 1);
  }
}

class LstmSequence extends Sequence {
  forward(inputs: RecurrenceInputs): { value: Tensor; kept: Tensor[] } {
    const { heap, kernels, hard } = this;
    const { steps, batch, units, width } = this.sizes(inputs);
    const { z, weights, initial } = inputs;
    const size = batch * units;
    const [gates, hs] = [heap.copy(z), heap.make(batch, steps, units)];
    const [cs, as] = [heap.make(steps + 1, batch, units), heap.make(steps, batch, units)];
    const first = initial?.[0] ?? heap.zeros(batch, units);
    const panels = this.packed(weights, 0, width);
    const before = heap.floats(cs).subarray(0, size);
    if (initial) before.set(heap.floats(initial[1]!));
    else before.fill(0);
    for (const { index, time, h, hRow, mask } of this.steps(inputs, hs, first)) {
      const gate = heap.at(gates, time * batch * width);
      kernels.multiply(
        ...([gate, width, h, hRow, 1, heap.at(panels), batch, width, units, true] as const),
      );
      kernels.lstm_forward(
        gate,
        heap.at(cs, index * size),
        ...([h, hRow, heap.at(cs, (index + 1) * size), heap.at(hs, index * units)] as const),
        ...([steps * units, heap.at(as, index * size), mask, batch, units, hard] as const),
      );
    }
    const last = () => tf.reshape(tf.slice(cs, [steps, 0, 0], [1, batch, units]), [batch, units]);
    const value = this.value(hs, this.options.states ? [last()] : []);
    return { value, kept: [gates, hs, cs, as] };
  }

  gradients(inputs: RecurrenceInputs, dy: Tensor, kept: readonly Tensor[]): Tensor[] {
    const { heap, kernels, hard } = this;
    const sizes = this.sizes(inputs);
    const { steps, batch, units, width } = sizes;
    const { z, weights, initial } = inputs;
    const [gates, hs, cs, as] = kept as [Tensor, Tensor, Tensor, Tensor];
    const size = batch * units;
    const first = initial?.[0] ?? hs;
    const [dz, dWeights] = [heap.make(...z.shape), heap.zeros(units, width)];
    const [dh, dc] = [heap.zeros(batch, units), heap.zeros(batch, units)];
    const back = this.packedTransposed(weights, 0, width);
    const panels = heap.make(packedSize(batch, width));
    const slope = this.slope(dy, steps, units);
    if (this.options.states) {
      const [by, from] = [heap.floats(dc), heap.floats(dy)];
      for (let row = 0; row < batch; row++) {
        const end = (row + 1) * slope.row;
        by.set(from.subarray(end - units, end), row * units);
      }
    }
    for (const step of this.steps(inputs, hs, first).reverse()) {
      const { index, time, h, hRow, mask } = step;
      const at = heap.at(dz, time * batch * width);
      kernels.lstm_backward(
        ...([at, heap.at(dh), heap.at(dc), slope.at(step), slope.row] as const),
        heap.at(gates, time * batch * width),
        heap.at(cs, index * size),
        ...([heap.at(as, index * size), mask, batch, units, hard] as const),
      );
      if (index === 0 && !initial) break;
      kernels.multiply(
        ...([heap.at(dh), units, at, width, 1, heap.at(back), batch, units, width, true] as const),
      );
      this.addToWeights(dWeights, 0, { at: h, row: hRow }, at, width, panels, sizes);
    }
    return [dz, dWeights, ...(initial ? [dh, dc] : [])];
  }
}

class GruSequence extends Sequence {
  forward(inputs: RecurrenceInputs): { value: Tensor; kept: Tensor[] } {
    const { heap, kernels, hard } = this;
    const { steps, batch, units, width } = this.sizes(inputs);
    const { z, weights, initial } = inputs;
    const [gates, hs] = [heap.copy(z), heap.make(batch, steps, units)];
    const rhs = heap.make(steps, batch, units);
    const first = initial?.[0] ?? heap.zeros(batch, units);
    const [byGates, byCandidate] = [
      this.packed(weights, 0, 2 * units),
      this.packed(weights, 2 * units, units),
    ];
    for (const { index, time, h, hRow, mask } of this.steps(inputs, hs, first)) {
      const gate = heap.at(gates, time * batch * width);
      const rh = heap.at(rhs, index * batch * units);
      kernels.multiply(
        ...([gate, width, h, hRow, 1, heap.at(byGates), batch, 2 * units, units, true] as const),
      );
      kernels.gru_gates(gate, h, hRow, rh, batch, units, hard);
      kernels.multiply(
        ...([gate + 8 * units, width, rh, units, 1] as const),
        ...([heap.at(byCandidate), batch, units, units, true] as const),
      );
      kernels.gru_output(
        ...([
          gate,
          h,
          hRow,
          heap.at(hs, index * units),
          steps * units,
          mask,
          batch,
          units,
        ] as const),
      );
    }
    return { value: this.value(hs, []), kept: [gates, hs, rhs] };
  }

  gradients(inputs: RecurrenceInputs, dy: Tensor, kept: readonly Tensor[]): Tensor[] {
    const { heap, kernels, hard } = this;
    const sizes = this.sizes(inputs);
    const { steps, batch, units, width } = sizes;
    const { z, weights, initial } = inputs;
    const [gates, hs, rhs] = kept as [Tensor, Tensor, Tensor];
    const first = initial?.[0] ?? heap.zeros(batch, units);
    const [dz, dWeights] = [heap.make(...z.shape), heap.zeros(units, width)];
    const [dh, drh] = [heap.zeros(batch, units), heap.make(batch, units)];
    const byGates = this.packedTransposed(weights, 0, 2 * units);
    const byCandidate = this.packedTransposed(weights, 2 * units, units);
    const panels = heap.make(packedSize(batch, 2 * units));
    const slope = this.slope(dy, steps, units);
    for (const step of this.steps(inputs, hs, first).reverse()) {
      const { index, time, h, hRow, mask } = step;
      const at = heap.at(dz, time * batch * width);
      const candidate = at + 8 * units;
      const gate = heap.at(gates, time * batch * width);
      kernels.gru_backward(
        ...([at, heap.at(dh), slope.at(step), slope.row, gate, h, hRow] as const),
        ...([mask, batch, units, hard] as const),
      );
      kernels.multiply(
        ...([heap.at(drh), units, candidate, width, 1] as const),
        ...([heap.at(byCandidate), batch, units, units, false] as const),
      );
      kernels.gru_reset_backward(
        ...([at, heap.at(dh), heap.at(drh), gate, h, hRow, batch, units, hard] as const),
      );
      if (index === 0 && !initial) break;
      kernels.multiply(
        ...([heap.at(dh), units, at, width, 1] as const),
        ...([heap.at(byGates), batch, units, 2 * units, true] as const),
      );
      this.addToWeights(dWeights, 0, { at: h, row: hRow }, at, 2 * units, panels, sizes);
      const rh = { at: heap.at(rhs, index * batch * units), row: units };
      this.addToWeights(dWeights, 2 * units, rh, candidate, units, panels, sizes);
    }
    return [dz, dWeights, ...(initial ? [dh] : [])];
  }
}
