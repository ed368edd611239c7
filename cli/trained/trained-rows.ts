import { type CheckpointTensor, type OpenTensors, openTensors } from '../../files/tensor-file.ts';
import { createRunTables, type RunTables, rowsName } from '../../server/core/tables/run-tables.ts';
import type { RunConfig } from '../../shared/config.ts';
import { DownpourError } from '../../shared/errors.ts';
import { wholeKeys } from '../../shared/row-groups.ts';
import type { RowShape } from '../../shared/rows.ts';
import { tablesOf } from '../../shared/tables.ts';
import type { Model } from '../../worker/model.ts';
import type { RowSource } from '../../worker/rows/model-rows.ts';
import { rowSourceOf } from '../own-tables.ts';

/** Rows of tables for a model that is used without the server of its run. */

const MOMENT = 'model.moment';

/**
 * Gives a model the rows of a checkpoint. Rows that no push has changed have their initial values.
 * @param tensors of the checkpoint. A model without tables is left alone.
 * @returns what gives the rows; null: there are none.
 * @throws DownpourError DP_USAGE: it is a checkpoint to continue from, whose rows are not those of one moment.
 */
export function giveRows(
  model: Pick<Model, 'rows'>,
  config: RunConfig,
  tensors: readonly CheckpointTensor[],
): RowSource | null {
  const tables = createRunTables(config);
  if (!tables || !model.rows) return null;
  if (!tensors.some(({ name }) => name.endsWith(`.${MOMENT}`))) throw notOfOneMoment(config);
  tables.adopt(asAtBeginning(config), tensors);
  const source = rowSourceOf(tables);
  model.rows.from(source);
  return source;
}

const asAtBeginning = ({ seed }: RunConfig) => ({ rowStep: 0, seed, tables: {}, captures: {} });

const notOfOneMoment = (config: RunConfig) =>
  new DownpourError(
    'DP_USAGE',
    `the run has tables (${Object.keys(tablesOf(config)!).join(', ')}), and this checkpoint is one to continue from: use its best or final parameters`,
  );

/** One table of a checkpoint. */
export interface StoredTable extends RowShape {
  /** The table grows by the ids that appear. */
  readonly isGrowing: boolean;
  /** Keys of the rows that have values of their own, rising. All others have their initial values. */
  readonly keys: Uint32Array;
  /** 1 for each of these keys whose row began with the values of a file; empty: none did. */
  readonly pretrained: Uint8Array;
  /** @param keys that rise. @returns their rows, shape [keys.length, width]. @throws DownpourError DP_CHECKPOINT_CORRUPT, DP_DISK. */
  read(keys: Uint32Array): Promise<Float32Array>;
}

/** Rows of a checkpoint that stay in its file until they are read: a table takes about 9 bytes of memory a row. */
export interface StoredRows {
  readonly tables: readonly StoredTable[];
  close(): Promise<void>;
}

/**
 * Opens the tables of a checkpoint. @param path of its tensors, which were checked before.
 * @returns null: the run has no tables.
 * @throws DownpourError DP_USAGE: it is a checkpoint to continue from; DP_CHECKPOINT_CORRUPT, DP_DISK.
 */
export async function openStoredRows(path: string, config: RunConfig): Promise<StoredRows | null> {
  // It stores no row: it knows the initial values, and what decay has made of them.
  const initial = createRunTables(config);
  if (!initial) return null;
  const file = await openTensors(path);
  try {
    const moments: CheckpointTensor[] = [];
    for (const table of initial.shapes) {
      const name = rowsName(table.name, MOMENT);
      const size = file.size(name);
      if (size > 0) moments.push({ name, shape: [size], values: await file.read(name, 0, size) });
    }
    if (moments.length === 0) throw notOfOneMoment(config);
    initial.adopt(asAtBeginning(config), moments);
    const tables: StoredTable[] = [];
    for (const [t, shape] of initial.shapes.entries()) {
      const isGrowing = config.tables![shape.name]!.rows === 'hash';
      tables.push({ ...shape, isGrowing, ...(await openTable(file, initial, t)) });
    }
    return { tables, close: () => file.close() };
  } catch (error) {
    await file.close();
    throw error;
  }
}

/** Numbers read at once. */
const PIECE = 2 ** 20;

async function openTable(
  file: OpenTensors,
  initial: RunTables,
  t: number,
): Promise<Pick<StoredTable, 'keys' | 'pretrained' | 'read'>> {
  const { name, width } = initial.shapes[t]!;
  const { keys, places } = rising(await keysIn(file, rowsName(name, 'model.keys')));
  const flags = rowsName(name, 'model.pretrained');
  const pretrained = new Uint8Array(file.size(flags));
  for (let at = 0; at < pretrained.length; at += PIECE) {
    pretrained.set(await file.read(flags, at, Math.min(PIECE, pretrained.length - at)), at);
  }
  const none = new Uint32Array();
  const readInitial = rowSourceOf(initial);
  const read = async (wanted: Uint32Array) => {
    const asked = initial.shapes.map((_, i) => (i === t ? wanted : none));
    const out = (await readInitial(asked))[t]!.values;
    // Where each own row is in the file, and where it belongs; neighbours are read at once.
    const own: { place: number; to: number }[] = [];
    for (let i = 0, at = firstFrom(keys, wanted[0] ?? 0); i < wanted.length; i++) {
      while (at < keys.length && keys[at]! < wanted[i]!) at++;
      if (keys[at] === wanted[i]) own.push({ place: places?.[at] ?? at, to: i });
    }
    own.sort((a, b) => a.place - b.place);
    const values = rowsName(name, 'model.values');
    for (let from = 0; from < own.length; ) {
      const first = own[from]!.place;
      let end = from + 1;
      while (end < own.length && own[end]!.place === first + end - from) end++;
      const rows = await file.read(values, first * width, (end - from) * width);
      for (let i = from; i < end; i++) {
        const at = (i - from) * width;
        out.set(rows.subarray(at, at + width), own[i]!.to * width);
      }
      from = end;
    }
    return out;
  };
  const inOrder = places ? Uint8Array.from(places, (place) => pretrained[place] ?? 0) : pretrained;
  return { keys, pretrained: pretrained.length > 0 ? inOrder : pretrained, read };
}

async function keysIn(file: OpenTensors, name: string): Promise<Uint32Array> {
  const size = file.size(name);
  const keys = new Uint32Array(size / 2);
  for (let at = 0; at < size; at += PIECE) {
    keys.set(wholeKeys(await file.read(name, at, Math.min(PIECE, size - at))), at / 2);
  }
  return keys;
}

/** Keys in order: those of several shards stand behind each other. @returns places null: they are in order. */
function rising(given: Uint32Array): { keys: Uint32Array; places: Uint32Array | null } {
  if (given.every((key, i) => i === 0 || key > given[i - 1]!)) return { keys: given, places: null };
  const both = BigUint64Array.from(given, (key, i) => (BigInt(key) << 32n) | BigInt(i)).sort();
  return {
    keys: Uint32Array.from(both, (each) => Number(each >> 32n)),
    places: Uint32Array.from(both, (each) => Number(each & 0xffff_ffffn)),
  };
}

/** The place of the first key that is not below another. */
function firstFrom(keys: Uint32Array, least: number): number {
  let low = 0;
  let high = keys.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (keys[middle]! < least) low = middle + 1;
    else high = middle;
  }
  return low;
}
