import { DownpourError } from '../../shared/errors.ts';
import { LIMITS } from '../../shared/limits.ts';
import type { RowShape } from '../../shared/rows.ts';
import type { Minibatch } from '../data/examples.ts';

/**
 * Ids of a minibatch and the rows that they mean. A model never sees ids: it sees places among the rows that the minibatch
 * has, from 1 on; 0 is padding. So the rows are one small dense tensor, which every engine can differentiate.
 */

/** A layer looks up rows of a table by the ids of a field. */
export interface RowBinding {
  readonly table: string;
  readonly field: string;
  readonly maskZero: boolean;
}

export interface PlacedMinibatch {
  /** With places instead of ids. */
  readonly minibatch: Minibatch;
  /** One array for each table, in the order of the shapes. Keys rise strictly, and keys[i] is the row at place i + 1. */
  readonly keys: readonly Uint32Array[];
}

/** Fields and tables that share places: a field that two tables are looked up by has one place for an id. */
export interface PlaceGroup {
  readonly fields: readonly { readonly name: string; readonly maskZero: boolean }[];
  readonly tables: readonly string[];
  /** Ids are below it, in all of its tables. */
  readonly idsMax: number;
}

export class RowPlaces {
  readonly #shapes: readonly RowShape[];
  readonly #groups: readonly PlaceGroup[];

  /** @param shapes of the tables that the bindings name. @throws DownpourError DP_EXPERIMENT_INVALID */
  constructor(bindings: readonly RowBinding[], shapes: readonly RowShape[]) {
    this.#shapes = shapes;
    this.#groups = placeGroups(bindings, shapes);
  }

  /** @throws DownpourError DP_EXPERIMENT_INVALID: a number is no id of its table. */
  place(minibatch: Minibatch): PlacedMinibatch {
    const keys = new Map<string, Uint32Array>();
    let { inputs, targets } = minibatch;
    const fields = { ...minibatch.fields };
    for (const { fields: names, tables, idsMax } of this.#groups) {
      const columns = names.map(({ name, maskZero }) => {
        const values =
          name === 'inputs' ? inputs : name === 'targets' ? targets : fields[name]!.values;
        return { name, maskZero, values };
      });
      const own = uniqueIds(columns, idsMax, tables);
      for (const { name, maskZero, values } of columns) {
        const placed = placesOf(values, own, maskZero ? 0 : -1);
        if (name === 'inputs') inputs = placed as Float32Array;
        else if (name === 'targets') targets = placed;
        else fields[name] = { ...fields[name]!, values: placed };
      }
      for (const table of tables) keys.set(table, own);
    }
    return {
      minibatch: { ...minibatch, inputs, targets, ...(minibatch.fields && { fields }) },
      keys: this.#shapes.map(({ name }) => keys.get(name)!),
    };
  }
}

/** @throws DownpourError DP_EXPERIMENT_INVALID: a field has two meanings of id 0. */
export function placeGroups(
  bindings: readonly RowBinding[],
  shapes: readonly RowShape[],
): readonly PlaceGroup[] {
  let groups: { fields: Map<string, boolean>; tables: Set<string> }[] = [];
  for (const { table, field, maskZero } of bindings) {
    const own = { fields: new Map([[field, maskZero]]), tables: new Set([table]) };
    const met = groups.filter(({ fields, tables }) => fields.has(field) || tables.has(table));
    for (const group of met) {
      if ((group.fields.get(field) ?? maskZero) !== maskZero) {
        throw new DownpourError(
          'DP_EXPERIMENT_INVALID',
          `two layers.rows look up the ids of field '${field}', one with maskZero and one without: id 0 is padding for both or for none`,
        );
      }
      for (const [name, mask] of group.fields) own.fields.set(name, mask);
      for (const name of group.tables) own.tables.add(name);
    }
    groups = [...groups.filter((group) => !met.includes(group)), own];
  }
  return groups.map(({ fields, tables }) => ({
    fields: [...fields].map(([name, maskZero]) => ({ name, maskZero })),
    tables: [...tables],
    idsMax: Math.min(...shapes.flatMap((s) => (tables.has(s.name) ? [s.keysMax] : []))),
  }));
}

interface IdColumn {
  readonly name: string;
  readonly maskZero: boolean;
  readonly values: Float32Array | Int32Array;
}

/** All ids of some fields, each once, rising. */
function uniqueIds(
  columns: readonly IdColumn[],
  idsMax: number,
  tables: readonly string[],
): Uint32Array {
  const all = new Uint32Array(columns.reduce((sum, { values }) => sum + values.length, 0));
  let count = 0;
  for (const { name, maskZero, values } of columns) {
    const isWhole = values instanceof Int32Array;
    const most = isWhole ? idsMax : Math.min(idsMax, LIMITS.floatIdsMax);
    for (let i = 0; i < values.length; i++) {
      const id = values[i]!;
      if (!Number.isInteger(id) || id >= most) {
        throw noId(id, `field '${name}'`, { idsMax, isWhole, tables });
      }
      if (id < 0 || (maskZero && id === 0)) continue;
      all[count++] = id;
    }
  }
  const sorted = all.subarray(0, count).sort();
  let unique = 0;
  for (let i = 0; i < count; i++) {
    if (i === 0 || sorted[i] !== sorted[i - 1]) sorted[unique++] = sorted[i]!;
  }
  if (unique > LIMITS.rowsPerMessageMax) {
    throw new DownpourError(
      'DP_EXPERIMENT_INVALID',
      `a minibatch has ${unique} different ids of table '${tables[0]}'; allowed: ${LIMITS.rowsPerMessageMax}. Set a smaller minibatchSize`,
    );
  }
  return sorted.slice(0, unique);
}

/** @param padding this id, and all below it, has place 0. */
function placesOf(
  values: Float32Array | Int32Array,
  ids: Uint32Array,
  padding: number,
): Float32Array | Int32Array {
  const places = new (values instanceof Int32Array ? Int32Array : Float32Array)(values.length);
  for (let i = 0; i < values.length; i++) {
    const id = values[i]!;
    if (id <= padding) continue;
    let low = 0;
    let high = ids.length - 1;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (ids[middle]! < id) low = middle + 1;
      else high = middle;
    }
    places[i] = low + 1;
  }
  return places;
}

/**
 * @param id null: some number that is not whole @param where the field, and its row if that is known
 * @param rules - `isWhole`: the field is int32; float32 does not keep large ids apart
 */
export function noId(
  id: number | null,
  where: string,
  rules: { readonly idsMax: number; readonly isWhole: boolean; readonly tables: readonly string[] },
): DownpourError {
  const { idsMax, isWhole, tables } = rules;
  const name = tables.join("', '");
  const isRounded = id !== null && Number.isInteger(id) && id < idsMax && !isWhole;
  if (isRounded) {
    return invalid(
      `${where} has the id ${id} of table '${name}', but its numbers are float32, which keeps whole numbers apart below ${LIMITS.floatIdsMax} only. Give the ids as an Int32Array in a field with a name: inputs: { town: { values, shape } }`,
    );
  }
  const isTooLarge = id !== null && Number.isInteger(id);
  const advice = !isTooLarge
    ? ''
    : id < LIMITS.rowIdsMax
      ? `; set rows of the table to ${id + 1} or more, or to 'hash'`
      : `; number the ids from 0 on, or take a hash of each that is below ${LIMITS.rowIdsMax}`;
  return invalid(
    `${where} has ${id ?? 'a number that is not whole'}, which is no id of table '${name}': ids are whole numbers from 0 to ${idsMax - 1}, and negative ones are padding${advice}`,
  );
}

const invalid = (message: string) => new DownpourError('DP_EXPERIMENT_INVALID', message);
