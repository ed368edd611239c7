import type { OpenTensors } from '../../files/tensor-file.ts';
import { concatFloats } from '../../shared/codec.ts';
import { DownpourError } from '../../shared/errors.ts';
import { wholeKeys } from '../../shared/row-groups.ts';
import { shardOfRow } from '../../shared/row-shards.ts';
import { rowShapes } from '../../shared/tables.ts';
import type { RunState } from '../core/run/state.ts';
import { RESTORED_BEST } from '../core/run/vector.ts';
import type { CaptureMoment } from '../core/tables/row-captures.ts';
import { rowCapacity } from '../core/tables/row-index.ts';
import { mustBeStoredKeys, mustBeStoredRows } from '../core/tables/row-tensors.ts';
import {
  BEST_ROWS,
  CAPTURE_FIELDS,
  namesBeside,
  ROW_FIELDS,
  rowsName,
  wholeRowsState,
} from '../core/tables/run-tables.ts';
import { flatTensor, type NamedTensor } from '../core/vectors.ts';
import type { ShardPool } from './pool.ts';

/** Rows of tables of a checkpoint on their way to the shards that have them. They pass through the coordinator in pieces. */

const PIECE_ELEMENTS = 2 ** 22;

/** What is needed of the shards. */
type RowPool = Pick<ShardPool, 'count' | 'tell' | 'tellOne' | 'drained'>;
/** What rows are read from. */
type ReadTensors = Pick<OpenTensors, 'size' | 'read'>;

/** Takes some rows of a shard, field by field. */
type TakeRows = (shard: number, fields: readonly Float32Array[]) => Promise<void>;
type Fields = [
  keys: Float32Array,
  values: Float32Array,
  state: Float32Array,
  changed: Float32Array,
  decays: Float32Array,
  pretrained: Float32Array,
];
/** Which capture rows belong to; null: they are the present ones. */
type OfCapture = ({ readonly id: number } & CaptureMoment) | null;

/**
 * Gives the other shards their rows.
 * @returns the rows of the first one, and what `RunTables.restore` needs besides.
 * @throws DownpourError DP_LAYOUT_INVALID: they do not fit on these shards; DP_SHARD_LOST; DP_CHECKPOINT_CORRUPT.
 */
export async function restoreRows(
  pool: RowPool,
  file: ReadTensors,
  { options: { id: run, config }, tables: saved, best }: RunState,
): Promise<NamedTensor[]> {
  if (!saved) return [];
  const tensors: NamedTensor[] = [];
  for (const name of namesBeside(saved)) {
    const size = file.size(name);
    if (size > 0) tensors.push(flatTensor(name, await file.read(name, 0, size)));
  }
  const valuesOf = (name: string) => tensors.find((tensor) => tensor.name === name)?.values ?? NONE;
  const state = wholeRowsState(saved, valuesOf);
  pool.tell(pool.count, { kind: 'restoreRows', run, state });
  for (const [i, shape] of rowShapes(config).entries()) {
    const { name: table } = shape;
    const room = rowCapacity(config.tables![table]!, { index: 0, count: pool.count });
    const rows = new RowGiver(pool, run, table, null, room);
    const present = ROW_FIELDS.map((field) => rowsName(table, field));
    const looked = (fields: readonly Float32Array[]) => {
      const [keys, values, state, changed, decays, pretrained] = fields as Fields;
      const read = { keys, values, state, changed, decays, pretrained };
      mustBeStoredRows(shape, read, saved.rowStep);
    };
    const ofKeys = ([keys]: readonly Float32Array[]) => mustBeStoredKeys(shape, keys!);
    await cutRowsOf(file, present, looked, pool.count, (shard, fields) => rows.give(shard, fields));
    tensors.push(...rows.own(present));
    const moment = state.captures[BEST_ROWS]?.[i];
    if (!best || !moment) continue;
    const kept = CAPTURE_FIELDS.map((field) => rowsName(table, `${BEST_ROWS}.${field}`));
    const captured = new RowGiver(pool, run, table, { id: RESTORED_BEST, ...moment });
    // A capture that keeps no rows on a shard is one all the same.
    for (let shard = 0; shard < pool.count; shard++) {
      await captured.give(shard, [NONE, NONE, NONE, NONE]);
    }
    const [keys, values, initial, fromFile] = kept;
    await cutRowsOf(file, [keys!, values!], ofKeys, pool.count, (shard, fields) =>
      captured.give(shard, [...fields, NONE, NONE]),
    );
    await cutRowsOf(file, [initial!], ofKeys, pool.count, (shard, fields) =>
      captured.give(shard, [NONE, NONE, ...fields, NONE]),
    );
    await cutRowsOf(file, [fromFile!], ofKeys, pool.count, (shard, fields) =>
      captured.give(shard, [NONE, NONE, NONE, ...fields]),
    );
    tensors.push(...captured.own(kept));
  }
  return tensors;
}

/** Sends rows of one table to their shards, and keeps those of the first one. */
class RowGiver {
  readonly #pool: RowPool;
  readonly #run: string;
  readonly #table: string;
  readonly #capture: OfCapture;
  readonly #room: number;
  readonly #counts: number[];
  readonly #own: (readonly Float32Array[])[] = [];

  /** @param room rows that each shard takes. */
  constructor(pool: RowPool, run: string, table: string, capture: OfCapture, room = Infinity) {
    this.#pool = pool;
    this.#run = run;
    this.#table = table;
    this.#capture = capture;
    this.#room = room;
    this.#counts = new Array<number>(pool.count).fill(0);
  }

  async give(shard: number, fields: readonly Float32Array[]): Promise<void> {
    const pool = this.#pool;
    this.#counts[shard]! += fields[0]!.length / 2;
    if (this.#counts[shard]! > this.#room) throw this.#tooMany(shard);
    if (shard === 0) {
      this.#own.push(fields);
      return;
    }
    const sizes = fields.map(({ length }) => length);
    const [run, table, capture] = [this.#run, this.#table, this.#capture];
    pool.tellOne(shard, { kind: 'writeRows', run, table, capture, sizes }, concatFloats(fields));
    await pool.drained(shard);
  }

  /** The rows of the first shard. @param names of the fields. */
  own(names: readonly string[]): NamedTensor[] {
    return names.map((name, k) =>
      flatTensor(name, concatFloats(this.#own.map((each) => each[k]!))),
    );
  }

  #tooMany(shard: number): DownpourError {
    return new DownpourError(
      'DP_LAYOUT_INVALID',
      `table '${this.#table}' of the checkpoint has more than ${this.#room} rows for shard ${shard} of ${this.#pool.count}, which is what it has room for: start the server with another number of shards`,
    );
  }
}

/**
 * Reads rows piece by piece, and cuts each piece over the shards.
 * @param names of tensors that have a part for each row, the keys first.
 * @param look at each piece, before the shards are told: one that is given what it cannot take is lost.
 */
async function cutRowsOf(
  file: ReadTensors,
  names: readonly string[],
  look: (fields: readonly Float32Array[]) => void,
  count: number,
  take: TakeRows,
): Promise<void> {
  const rows = Math.ceil(file.size(names[0]!) / 2);
  if (rows === 0) return;
  const widths = names.map((name) => file.size(name) / rows);
  const width = widths.reduce((sum, each) => sum + each, 0);
  const most = Math.max(1, Math.floor(PIECE_ELEMENTS / width));
  for (let start = 0; start < rows; start += most) {
    const n = Math.min(most, rows - start);
    const fields: Float32Array[] = [];
    for (const [k, name] of names.entries()) {
      const own = widths[k]!;
      fields.push(own === 0 ? NONE : await file.read(name, own * start, own * n));
    }
    look(fields);
    const owners = wholeKeys(fields[0]!).map((key) => shardOfRow(key, count));
    for (let shard = 0; shard < count; shard++) {
      const places = owners.flatMap((owner, place) => (owner === shard ? [place] : []));
      if (places.length === 0) continue;
      await take(
        shard,
        fields.map((field, k) => gathered(field, widths[k]!, places)),
      );
    }
  }
}

function gathered(field: Float32Array, width: number, places: readonly number[]): Float32Array {
  const out = new Float32Array(width * places.length);
  for (const [i, place] of places.entries()) {
    out.set(field.subarray(width * place, width * (place + 1)), width * i);
  }
  return out;
}

const NONE = new Float32Array();
