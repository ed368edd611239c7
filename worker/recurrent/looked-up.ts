import { isLibraryClass, type Layer, type Tensor } from '../tf.ts';

/**
 * Inputs of a recurrent layer that are rows of a table. The product of a row with the layer's weights is the same wherever
 * its id stands. So a table with fewer rows than the minibatch has ids is multiplied as a whole, and the products are
 * looked up.
 */

interface LookedUp {
  /** Shape [rows, width]. */
  readonly table: Tensor;
  /** Shape [B, T]. */
  readonly ids: Tensor;
}

const lookedUp = new WeakMap<Tensor, LookedUp>();

/** Remembers what a layer looked up. @param rows shape [B, T, width]. */
export function noteLookedUp(rows: Tensor, table: Tensor, ids: Tensor): void {
  lookedUp.set(rows, { table, ids });
}

/**
 * @param x inputs of all steps, shape [B, T, width].
 * @returns null: they are not rows of a table, or the table has so many rows that nothing is won.
 */
export function lookedUpRows(x: Tensor): LookedUp | null {
  const found = lookedUp.get(x);
  if (!found) return null;
  const { table, ids } = found;
  if (table.isDisposed || ids.isDisposed) return null;
  // A step backward sums the slopes of equal ids, which costs less than the product of as many.
  return 2 * table.shape[0]! > ids.size ? null : found;
}

/** Makes an `embedding` of TensorFlow.js remember its lookups. */
export function adaptEmbedding(layer: Layer): void {
  if (layer.getClassName() !== 'Embedding' || !isLibraryClass(layer)) return;
  if (Object.hasOwn(layer, 'call')) return;
  const call = layer.call.bind(layer);
  layer.call = (inputs, kwargs) => {
    const rows = call(inputs, kwargs) as Tensor;
    const ids = Array.isArray(inputs) ? inputs[0]! : inputs;
    const { embeddings } = layer as unknown as { embeddings: { read(): Tensor } };
    if (rows.rank === 3) noteLookedUp(rows, embeddings.read(), ids);
    return rows;
  };
}
