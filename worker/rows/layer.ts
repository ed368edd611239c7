import { DownpourError } from '../../shared/errors.ts';
import type { RowShape } from '../../shared/rows.ts';
import { nearest } from '../../shared/spelling.ts';
import { noteLookedUp } from '../recurrent/looked-up.ts';
import {
  type Layer,
  type LayerArguments,
  type LayerInputs,
  registerOwnClass,
  type Tensor,
  tf,
} from '../tf.ts';

/** The layer that looks up rows of a table: an embedding whose table stays on the server. */

export interface RowsArguments extends NonNullable<LayerArguments> {
  /** Name of the table in `tables` of the experiment. */
  readonly table: string;
  /**
   * What becomes of the rows of several ids: `none` (default) gives each of them, `sum` and `mean` one vector for the last
   * axis of the ids, a bag. With a second input, weights of the shape of the ids and
   * not below 0, the bag is weighted.
   */
  readonly combine?: 'none' | 'sum' | 'mean';
  /** The id 0 is padding: it has no row, and layers behind this one get a mask. Negative ids are padding always. */
  readonly maskZero?: boolean;
  /** In an objective: the field that has the ids. Default: the one that the layer's input is named by. */
  readonly field?: string;
  /** Numbers in a row. Default: as the table has it. */
  readonly width?: number;
}

/** Where a layer finds the rows of a minibatch. */
export interface RowLookup {
  /** Shape [rows, width]; row 0 is zeros, for padding. */
  of(table: string): Tensor;
}

type Shape = (number | null)[];

/** Tables of the model that is being built, for layers that are made meanwhile. */
let known: readonly RowShape[] | null = null;

/** Makes the widths of tables known to the layers that `build` makes. */
export async function withTables<T>(
  shapes: readonly RowShape[],
  build: () => T | Promise<T>,
): Promise<T> {
  const before = known;
  known = shapes;
  try {
    return await build();
  } finally {
    known = before;
  }
}

export class RowsLayer extends tf.layers.Layer {
  static readonly className = 'Rows';
  readonly table: string;
  readonly combine: 'none' | 'sum' | 'mean';
  readonly maskZero: boolean;
  readonly field: string | null;
  readonly width: number;
  /** The model that the layer is in puts it in place. */
  tensors: RowLookup | null = null;

  constructor(args: RowsArguments) {
    super(args);
    const { table, combine = 'none', maskZero = false, field = null } = args;
    this.table = table;
    this.combine = combine;
    this.maskZero = maskZero;
    this.field = field;
    this.width = args.width ?? widthOf(table);
    this.supportsMasking = true;
  }

  override computeOutputShape(inputShape: never) {
    const given = inputShape as Shape | Shape[];
    const ids = (Array.isArray(given[0]) ? given[0] : given) as Shape;
    return [...(this.combine === 'none' ? ids : ids.slice(0, -1)), this.width] as never;
  }

  override computeMask(inputs: LayerInputs, mask?: Tensor | Tensor[]): Tensor | Tensor[] {
    if (this.combine !== 'none') return null as never;
    if (!this.maskZero) return mask as Tensor;
    const ids = Array.isArray(inputs) ? inputs[0]! : inputs;
    return tf.notEqual(ids, tf.zerosLike(ids));
  }

  override call(inputs: LayerInputs): Tensor {
    return tf.tidy(() => {
      const [given, weights] = Array.isArray(inputs) ? inputs : [inputs];
      const places = tf.cast(given!, 'int32');
      const table = this.tensors?.of(this.table) ?? tf.zeros([1, this.width]);
      const flat = tf.gather(table, tf.reshape(places, [places.size]));
      const rows = tf.reshape(flat, [...places.shape, this.width]);
      if (this.combine === 'none') {
        if (weights) return tf.mul(rows, tf.expandDims(weights, -1));
        if (places.rank === 2) noteLookedUp(rows, table, given!);
        return rows;
      }
      const isThere = tf.cast(tf.notEqual(places, tf.zerosLike(places)), 'float32');
      const parts = weights ? tf.mul(isThere, weights) : isThere;
      const sum = tf.sum(weights ? tf.mul(rows, tf.expandDims(weights, -1)) : rows, -2);
      if (this.combine === 'sum') return sum;
      // An empty bag is zeros.
      return tf.div(sum, tf.maximum(tf.sum(parts, -1, true), 1e-12));
    });
  }

  override getConfig() {
    const { table, combine, maskZero, field, width } = this;
    return { ...super.getConfig(), table, combine, maskZero, field, width };
  }
}
registerOwnClass(RowsLayer);

function widthOf(table: string): number {
  const shape = known?.find(({ name }) => name === table);
  if (shape) return shape.width;
  const names = (known ?? []).map(({ name }) => name);
  const near = nearest(table, names);
  throw new DownpourError(
    'DP_EXPERIMENT_INVALID',
    known === null
      ? `layers.rows({ table: '${table}' }) is made outside of model(): make it there, or give width`
      : `layers.rows: there is no table '${table}'; ${near ? `did you mean '${near}'?` : names.length > 0 ? `known: ${names.join(', ')}` : 'the experiment has no tables'}: add it to tables of the experiment`,
  );
}

const COMBINES = ['none', 'sum', 'mean'];

/**
 * Rows of a table by the ids of an Int32Array field. A minibatch pulls and pushes these rows alone.
 *
 *     tables: { word: { rows: 341479, width: 100 } },
 *     model: ({ tf }) => tf.sequential({ layers: [
 *       layers.rows({ table: 'word', combine: 'mean', inputShape: [200] }), … ] }),
 *
 * @returns ids of shape [n, …] give [n, …, width]; a bag of ids [n, …, k] gives [n, …, width].
 * @throws DownpourError DP_EXPERIMENT_INVALID: there is no such table, or a field is something else.
 */
export function rows(args: RowsArguments): Layer {
  const { combine = 'none' } = args;
  if (!COMBINES.includes(combine)) {
    throw new DownpourError(
      'DP_EXPERIMENT_INVALID',
      `layers.rows: combine is '${String(combine)}'; allowed: ${COMBINES.join(', ')}`,
    );
  }
  return new RowsLayer(args);
}
