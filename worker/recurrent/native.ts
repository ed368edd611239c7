import { type Tensor, tf } from '../tf.ts';
import type { CellBack, FourGates, NativeCell, RecurrentCell } from './cells.ts';

/** Recurrent steps by an operation that TensorFlow has for them, which is not part of TensorFlow.js. */

/** `back` of a cell, with the weights of one sequence. */
type StepBackward = (
  dState: readonly (Tensor | null)[],
  kept: readonly Tensor[],
  first: boolean,
) => CellBack;

interface OperationBackend {
  readonly isUsingGpuDevice: boolean;
  readonly binding: Readonly<Record<string, number>>;
  executeMultipleOutputs(
    name: string,
    attrs: readonly object[],
    inputs: readonly Tensor[],
    outputs: number,
  ): Tensor[];
}

/** The cell as the engine that is set computes it. */
export function cellOfEngine(cell: RecurrentCell): RecurrentCell | NativeCell {
  if (!cell.native || tf.getBackend() !== 'tensorflow') return cell;
  return (tf.backend() as unknown as OperationBackend).isUsingGpuDevice ? cell : cell.native;
}

/** Columns of a layer's weights where the cell has its gates. @param weights shape [..., gates · H]. */
export function inCellsPlaces(weights: Tensor, cell: RecurrentCell | NativeCell): Tensor {
  if (!('places' in cell)) return weights;
  const axis = weights.rank - 1;
  const gates = tf.split(weights, cell.gateCount, axis);
  return tf.concat(
    cell.places.map((place) => gates[place]!),
    axis,
  );
}

/**
 * A step of an LSTM backward as one operation instead of twenty, `LSTMBlockCellGrad`: characters of bench/recurrent.ts take
 * 26.9 → 25.0 ms of the processor's time, with one thread.
 *
 * @param weights recurrent, shape [H, 4·H]. @param batch examples.
 */
export function nativeLstmBackward(weights: Tensor, batch: number): StepBackward {
  const backend = tf.backend() as unknown as OperationBackend;
  const { TF_ATTR_TYPE, TF_ATTR_BOOL, TF_FLOAT } = backend.binding;
  const attrs = [
    { name: 'T', type: TF_ATTR_TYPE, value: TF_FLOAT },
    { name: 'use_peephole', type: TF_ATTR_BOOL, value: false },
  ];
  const units = weights.shape[0]!;
  const transposed = tf.transpose(weights);
  // The input's part of the gates was computed before: to TensorFlow it is an input of width 0.
  const input = tf.zeros([batch, 0]);
  const [none, bias, zeros] = [
    tf.zeros([units]),
    tf.zeros([4 * units]),
    tf.zeros([batch, units]),
  ] as const;
  return ([dh, dc], kept, first) => {
    const [h, c, i, f, g, o, a] = kept as [...FourGates, Tensor, Tensor, Tensor];
    const given = [input, c, h, weights, none, none, none, bias, i, c, f, o, g, a];
    const [dCell, dz] = backend.executeMultipleOutputs(
      'LSTMBlockCellGrad',
      attrs,
      [...given, dc ?? zeros, dh!],
      5,
    ) as [Tensor, Tensor];
    return { dz, dState: first ? null : [tf.matMul(dz, transposed), dCell] };
  };
}
