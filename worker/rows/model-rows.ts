import { DownpourError } from '../../shared/errors.ts';
import type { RowShape, TableRows } from '../../shared/rows.ts';
import type { Minibatch } from '../data/examples.ts';
import type { Fed } from '../graph.ts';
import { type Tensor, tf, type Variable } from '../tf.ts';
import { findKeys } from './find-keys.ts';
import type { RowLookup } from './layer.ts';
import { type PlacedMinibatch, type RowBinding, RowPlaces } from './places.ts';

/** Gives rows by their keys, of each table in the order of the shapes. */
export type RowSource = (keys: readonly Uint32Array[]) => Promise<readonly TableRows[]>;

/** How the rest of the worker sees the tables of a model. */
export interface ModelRows {
  /** The tables that the model looks rows up in, by name. */
  readonly shapes: readonly RowShape[];
  /** By which fields it looks them up. */
  readonly bindings: readonly RowBinding[];
  /** Keys of each table that a training step of a minibatch needs. @param seed as for `step`. */
  keysOf(minibatch: Minibatch, seed: number): Promise<readonly Uint32Array[]>;
  /** Rows of the parameters loaded; null: what was loaded before belongs to others. */
  load(rows: readonly TableRows[] | null): void;
  /** Where rows come from that are needed and were not loaded; null: nowhere. */
  from(source: RowSource | null): void;
}

/** Rows that a tensor has beyond those of the minibatch at hand, as a share: shapes of recorded steps stay. */
const ROOM = 1.25;
const ROOM_ROWS = 64;

/** One table as the engine has it. */
interface TableOnDevice {
  readonly shape: RowShape;
  /** Rows of the tensor, the one of padding included. */
  capacity: number;
  values: Float32Array;
  variable: Variable | null;
}

/** The rows of a minibatch as small dense variables, in which layers look them up by their places. */
export class RowsOnDevice implements RowLookup {
  readonly shapes: readonly RowShape[];
  bindings: readonly RowBinding[] = [];
  #places: RowPlaces;
  readonly #tables: readonly TableOnDevice[];
  #source: RowSource | null = null;
  #loaded: readonly TableRows[] | null = null;
  /** Those of the minibatch at hand. */
  #keys: readonly Uint32Array[] = [];
  #isUploaded = false;

  /** @param shapes of all tables that the run has. */
  constructor(shapes: readonly RowShape[]) {
    this.shapes = shapes;
    this.#places = new RowPlaces([], shapes);
    this.#tables = shapes.map((shape) => ({
      ...{ shape, capacity: 0, values: new Float32Array(0), variable: null },
    }));
  }

  /**
   * Says which layers look up rows, by which fields.
   * @throws DownpourError DP_EXPERIMENT_INVALID: no layer looks up rows of a table.
   */
  bind(bindings: readonly RowBinding[]): void {
    const unused = this.shapes.find(({ name }) => bindings.every(({ table }) => table !== name));
    if (unused) {
      throw new DownpourError(
        'DP_EXPERIMENT_INVALID',
        `no layer of the model looks up rows of table '${unused.name}': use layers.rows({ table: '${unused.name}' }) in a model of layers, or take the table out of tables`,
      );
    }
    this.bindings = bindings;
    this.#places = new RowPlaces(bindings, this.shapes);
  }

  place(minibatch: Minibatch): PlacedMinibatch {
    return this.#places.place(minibatch);
  }

  load(rows: readonly TableRows[] | null): void {
    this.#loaded = rows;
  }

  from(source: RowSource | null): void {
    this.#source = source;
  }

  /**
   * Takes a minibatch that `place` gave: its rows are the ones that layers find.
   * @returns it, with places instead of ids.
   * @throws DownpourError DP_USAGE: its rows are not there; what the source throws.
   */
  async take({ minibatch, keys }: PlacedMinibatch): Promise<Minibatch> {
    if (!this.#loaded || !this.#fill(keys, this.#loaded)) {
      if (!this.#source) {
        throw new DownpourError(
          'DP_USAGE',
          `rows of the tables ${this.shapes.map(({ name }) => name).join(', ')} are needed, and they are on the server of the run: this command does not reach them yet`,
        );
      }
      if (!this.#fill(keys, await this.#source(keys))) {
        throw new DownpourError('DP_ROWS_INVALID', 'the server gave other rows than asked for');
      }
    }
    this.#keys = keys;
    this.#isUploaded = false;
    return minibatch;
  }

  /** The same with small numbers in the place of the rows, which nobody knows before a run. */
  tryOut(given: Minibatch): Minibatch {
    const { minibatch, keys } = this.place(given);
    this.#fill(keys, madeUpRows(this.shapes, keys));
    this.#keys = keys;
    this.#isUploaded = false;
    return minibatch;
  }

  /** @returns false: some of them are missing. */
  #fill(keys: readonly Uint32Array[], rows: readonly TableRows[]): boolean {
    return this.#tables.every((table, t) => {
      const { width } = table.shape;
      this.#make(table, keys[t]!.length);
      return copyRows(keys[t]!, rows[t]!, width, table.values.subarray(width));
    });
  }

  #make(table: TableOnDevice, count: number): void {
    if (count < table.capacity) return;
    const rows = Math.ceil((ROOM * (count + 1)) / ROOM_ROWS) * ROOM_ROWS;
    table.capacity = Math.min(rows, table.shape.keysMax + 1);
    table.values = new Float32Array(table.capacity * table.shape.width);
    table.variable?.dispose();
    table.variable = null;
  }

  /** What a recorded step is fed, in the order of `variables`. */
  get fed(): readonly Fed[] {
    return this.#tables.map(({ values, capacity, shape }) => ({
      ...{ values, shape: [capacity, shape.width] },
    }));
  }

  /** Those of the minibatch at hand, on the device. */
  get variables(): readonly Variable[] {
    this.#upload();
    return this.#tables.map(({ variable }) => variable!);
  }

  of(name: string): Tensor {
    const table = this.#tables.find(({ shape }) => shape.name === name)!;
    // A model is tried with zeros before there are rows.
    if (table.capacity === 0) return tf.zeros([1, table.shape.width]);
    this.#upload();
    return table.variable!;
  }

  #upload(): void {
    if (this.#isUploaded) return;
    this.#isUploaded = true;
    for (const table of this.#tables) {
      // The tensor may share memory with the array, which the next minibatch is written to.
      const fresh = tf.tensor(table.values.slice(), [table.capacity, table.shape.width]);
      if (table.variable) table.variable.assign(fresh);
      else table.variable = tf.variable(fresh);
      fresh.dispose();
    }
  }

  /** Rows of a gradient. @param flat of all tables behind each other, each [capacity, width]. */
  gradients(flat: Float32Array): readonly TableRows[] {
    let at = 0;
    return this.#tables.map(({ capacity, shape: { width } }, t) => {
      const keys = this.#keys[t]!;
      const values = flat.subarray(at + width, at + (keys.length + 1) * width);
      at += capacity * width;
      return { keys, values };
    });
  }

  dispose(): void {
    for (const table of this.#tables) table.variable?.dispose();
  }
}

/** Small numbers, for steps whose results nobody uses. */
export function madeUpRows(
  shapes: readonly RowShape[],
  keys: readonly Uint32Array[],
): readonly TableRows[] {
  return keys.map((own, t) => ({
    keys: own,
    values: Float32Array.from(
      { length: own.length * shapes[t]!.width },
      (_, i) => 0.05 * Math.sin(1 + i),
    ),
  }));
}

/** @param out shape [keys, width]. @returns false: a key is missing. */
function copyRows(keys: Uint32Array, from: TableRows, width: number, out: Float32Array): boolean {
  if (keys.length === from.keys.length) {
    // As many, and all of them there: they are the same, as after each answer to a push.
    if (!findKeys(keys, from.keys)) return false;
    out.set(from.values.subarray(0, keys.length * width));
    return true;
  }
  return findKeys(keys, from.keys, (i, at) => {
    // By elements: two views cost more than the copy of a row.
    for (let k = 0; k < width; k++) out[i * width + k] = from.values[at * width + k]!;
  });
}
