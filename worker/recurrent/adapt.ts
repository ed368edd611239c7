import type { NoiseSource } from '../noise.ts';
import { isLibraryClass, type Layer, type Tensor, tf } from '../tf.ts';
import { ACTIVATIONS } from './activations.ts';
import { gruCell, lstmCell, type RecurrentCell, resetAfterGruCell, simpleCell } from './cells.ts';
import { lookedUpRows } from './looked-up.ts';
import { cellOfEngine, inCellsPlaces } from './native.ts';
import { recurrence } from './recurrence.ts';

/**
 * Makes tfjs-layers' own recurrent layers compute all steps as one operation (`recurrence.ts`): `lstm`, `gru`,
 * `simpleRNN`, our `resetAfterGru`, and `rnn` with one of their cells or a stack of them. What the user's model is stays as it is; a layer
 * that has something unusual goes on as TensorFlow.js has it.
 */

type Weight = { read(): Tensor };

interface LibraryCell extends Layer {
  readonly cells?: readonly LibraryCell[];
  readonly units: number;
  readonly activation: { getClassName(): string };
  readonly recurrentActivation?: { getClassName(): string };
  readonly kernel: Weight;
  readonly recurrentKernel: Weight;
  readonly bias: Weight | null;
  readonly dropout: number;
  readonly recurrentDropout: number;
  readonly dropoutFunc?: unknown;
}

interface LibraryRnn extends Layer {
  readonly cell: LibraryCell;
  readonly returnSequences: boolean;
  readonly returnState: boolean;
  readonly goBackwards: boolean;
}

interface RnnKwargs {
  readonly training?: boolean;
  /** Shape [B, T] or [B, T, 1]: 0 where a step does not count. */
  readonly mask?: Tensor | null;
  readonly initialState?: Tensor[] | null;
}

const LAYERS: ReadonlySet<string> = new Set(['LSTM', 'GRU', 'ResetAfterGRU', 'SimpleRNN', 'RNN']);

/** @param source of dropout, which a recorded step is fed. */
export function adaptRecurrent(layer: Layer, source: { readonly noise: NoiseSource }): void {
  if (!isLibraryClass(layer) || Object.hasOwn(layer, 'call')) return;
  if (layer.getClassName() === 'Bidirectional') {
    const { forwardLayer, backwardLayer } = layer as unknown as Record<string, Layer>;
    for (const each of [forwardLayer!, backwardLayer!]) adaptRecurrent(each, source);
    return;
  }
  if (!LAYERS.has(layer.getClassName()) || layer.stateful) return;
  const rnn = layer as LibraryRnn;
  const cells = rnn.cell.cells ?? [rnn.cell];
  const fused = cells.map(fusedCell);
  if (!isLibraryClass(rnn.cell) || fused.includes(null)) return;
  const call = layer.call.bind(layer);
  layer.call = (inputs, kwargs: RnnKwargs) => {
    const x = Array.isArray(inputs) ? inputs[0]! : inputs;
    if (x.shape[1] === 0) return call(inputs, kwargs);
    return tf.tidy(() => run(rnn, cells, fused as RecurrentCell[], x, kwargs, source));
  };
}

/** The layer's output, and its states where it returns them. */
function run(
  rnn: LibraryRnn,
  cells: readonly LibraryCell[],
  fused: readonly RecurrentCell[],
  x: Tensor,
  { training, mask: given, initialState }: RnnKwargs,
  source: { readonly noise: NoiseSource },
): Tensor | Tensor[] {
  const draw = (rate: number, shape: readonly number[]): Tensor | null =>
    training === true && rate > 0 && rate < 1
      ? source.noise({ kind: 'dropout', shape, rate, seed: undefined })
      : null;
  let mask = given ? timeMajorMask(given) : null;
  // The states of a stack are those of its last cell first.
  let unread = initialState?.length ?? 0;
  const states: Tensor[] = [];
  let output = x;
  for (const [i, cell] of cells.entries()) {
    const own = cellOfEngine(fused[i]!);
    const { stateCount } = own;
    unread -= stateCount;
    const dropped = draw(cell.dropout, [output.shape[0]!, output.shape[2]!]);
    const [sequence, ...after] = recurrence(
      own,
      {
        z: inputGates(cell, own, output, dropped),
        weights: inCellsPlaces(recurrentWeights(cell), own),
        initial: initialState?.slice(unread, unread + stateCount) ?? null,
        mask,
        dropout: draw(cell.recurrentDropout, [x.shape[0]!, cell.units]),
      },
      {
        backwards: rnn.goBackwards && i === 0,
        sequences: rnn.returnSequences || i < cells.length - 1,
        states: rnn.returnState,
      },
    );
    // What the first cell gives is in the order of its steps, and so are the other cells' steps.
    if (rnn.goBackwards && i === 0 && mask) mask = tf.reverse(mask, 0);
    output = sequence!;
    states.unshift(...after);
  }
  return rnn.returnState ? [output, ...states] : output;
}

/** x·W + b of all steps as one product, shape [T, B, gates]. @param x shape [B, T, D]. @param dropout [B, D]. */
function inputGates(
  cell: LibraryCell,
  fused: RecurrentCell,
  x: Tensor,
  dropout: Tensor | null,
): Tensor {
  const [batch, steps, width] = x.shape as [number, number, number];
  const kernel = inCellsPlaces(cell.kernel.read(), fused);
  const bias = inputBias(cell);
  const gates = (inputs: Tensor) => {
    const product = tf.matMul(inputs, kernel);
    return bias ? tf.add(product, inCellsPlaces(bias, fused)) : product;
  };
  const shape = [steps, batch, kernel.shape[1]!];
  const rows = dropout ? null : lookedUpRows(x);
  if (rows) {
    const ids = tf.transpose(tf.cast(rows.ids, 'int32'), [1, 0]);
    return tf.reshape(tf.gather(gates(rows.table), tf.reshape(ids, [steps * batch])), shape);
  }
  const byTime = tf.transpose(x, [1, 0, 2]);
  const dropped = dropout ? tf.mul(byTime, dropout) : byTime;
  return tf.reshape(gates(tf.reshape(dropped, [steps * batch, width])), shape);
}

function inputBias(cell: LibraryCell): Tensor | null {
  const { bias } = cell;
  if (!bias) return null;
  return resetsAfter(cell) ? tf.slice(bias.read(), [0, 0], [1, -1]) : bias.read();
}

const resetsAfter = (cell: LibraryCell) => cell.getClassName() === 'ResetAfterGRUCell';

/** As `resetAfterGruCell` has them where the cell is one: with the recurrent bias as the last row. */
function recurrentWeights(cell: LibraryCell): Tensor {
  const weights = cell.recurrentKernel.read();
  if (!resetsAfter(cell)) return weights;
  const row: [number, number] = [1, weights.shape[1]!];
  const bias = cell.bias ? tf.slice(cell.bias.read(), [1, 0], row) : tf.zeros(row);
  return tf.concat([weights, bias], 0);
}

/** @param mask shape [B, T] or [B, T, 1]. @returns float32 0 or 1, shape [T, B, 1]. */
function timeMajorMask(mask: Tensor): Tensor {
  const [batch, steps] = mask.shape as [number, number];
  const counts = tf.cast(tf.cast(tf.reshape(mask, [batch, steps, 1]), 'bool'), 'float32');
  return tf.transpose(counts, [1, 0, 2]);
}

/** Null: it has an activation or a way of dropout that is not known here, or it is of the user's own class. */
function fusedCell(cell: LibraryCell): RecurrentCell | null {
  if (!isLibraryClass(cell) || Object.hasOwn(cell, 'call') || cell.dropoutFunc != null) return null;
  const [activation, gate] = [cell.activation, cell.recurrentActivation].map((each) =>
    each && isLibraryClass(each) ? (ACTIVATIONS[each.getClassName()] ?? null) : null,
  );
  if (!activation) return null;
  const kind = cell.getClassName();
  if (kind === 'SimpleRNNCell') return simpleCell(activation);
  if (!gate) return null;
  if (kind === 'LSTMCell') return lstmCell(activation, gate);
  if (kind === 'ResetAfterGRUCell') return resetAfterGruCell(activation, gate);
  return kind === 'GRUCell' ? gruCell(activation, gate) : null;
}
