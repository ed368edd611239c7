import { type Tensor, tf } from '../tf.ts';
import type { CellBack, FourGates } from './cells.ts';
import type { WasmCell } from './sequence.ts';

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

/**
 * A step of an LSTM backward as one operation instead of twenty, `LSTMBlockCellGrad`: characters of bench/recurrent.ts take
 * 26.9 → 25.0 ms of the processor's time, with one thread. Null: another engine is set, or the gates are not sigmoids.
 *
 * @param weights recurrent, shape [H, 4·H]. @param batch examples.
 */
export function nativeLstmBackward(
  cell: WasmCell | null,
  weights: Tensor,
  batch: number,
): StepBackward | null {
  if (cell?.kind !== 'lstm' || cell.hard || tf.getBackend() !== 'tensorflow') return null;
  const backend = tf.backend() as unknown as OperationBackend;
  if (backend.isUsingGpuDevice) return null;
  const { TF_ATTR_TYPE, TF_ATTR_BOOL, TF_FLOAT } = backend.binding;
  const attrs = [
    { name: 'T', type: TF_ATTR_TYPE, value: TF_FLOAT },
    { name: 'use_peephole', type: TF_ATTR_BOOL, value: false },
  ];
  const units = weights.shape[0]!;
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
    const [dCell, gates] = backend.executeMultipleOutputs(
      'LSTMBlockCellGrad',
      attrs,
      [...given, dc ?? zeros, dh!],
      5,
    ) as [Tensor, Tensor];
    // Its gates are input, candidate, forget, output.
    const [di, dg, df, dOutput] = tf.split(gates, 4, 1) as FourGates;
    const dz = tf.concat([di, df, dg, dOutput], 1);
    return { dz, dState: first ? null : [tf.matMul(dz, weights, false, true), dCell] };
  };
}
