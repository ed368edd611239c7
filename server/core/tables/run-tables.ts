import type { RunConfig } from '../../../shared/config.ts';
import { DownpourError } from '../../../shared/errors.ts';
import { STATE_PREFIX } from '../../../shared/layout.ts';
import { LIMITS } from '../../../shared/limits.ts';
import { normAndFinite } from '../../../shared/optimizer.ts';
import type { Push } from '../../../shared/protocol.ts';
import type { RowTableFacts } from '../../../shared/rest.ts';
import { type KeyedRows, wholeKeys } from '../../../shared/row-groups.ts';
import { ALL_ROWS, mustBeOwnRows, type RowShare } from '../../../shared/row-shards.ts';
import {
  decodeKeys,
  decodeRows,
  type RowShape,
  readEncodedRows,
  rowBytes,
  rowValueBytes,
  type TableRows,
  writeKeys,
} from '../../../shared/rows.ts';
import { rowShapes, tablesOf } from '../../../shared/tables.ts';
import type { CheckpointKind } from '../../../shared/trained-last.ts';
import type { Clip } from '../fused.ts';
import { flatTensor, type NamedTensor, takeTensor } from '../vectors.ts';
import type { MomentCopy } from './moment-copy.ts';
import type { CaptureMoment } from './row-captures.ts';
import type { RowCheckpoints } from './row-checkpoints.ts';
import { freshRoom, type RoomFor } from './row-copy.ts';
import { RowTable, type RowTableState } from './row-table.ts';
import {
  mustBeStoredKeys,
  mustBeStoredRows,
  type RowTensors,
  splitDoubles,
  splitKeys,
  wholeDoubles,
} from './row-tensors.ts';
import { TablesCopy } from './tables-copy.ts';

/**
 * The tables of a run, all under one clock: the row step, which counts the pushes whose rows were applied. The rows of a
 * push are staged, looked at and applied as its gradient is (docs/decisions/0018-sparse-rows.md).
 */

/** What a push says of its rows. */
export type PushedRows = NonNullable<Push['rows']>;

/** The JSON half of the tables in a checkpoint. */
export interface RunTablesState {
  readonly rowStep: number;
  readonly seed: number;
  readonly tables: Readonly<Record<string, RowTableState>>;
  /** The best parameters, and what is evaluated, by name: the moment for each table, in their order. */
  readonly captures: Readonly<Record<string, readonly CaptureMoment[]>>;
}

/** Keys of all tables with their counts. */
export const KEYS_BYTES_MAX = 4 * (LIMITS.rowsPerMessageMax + LIMITS.tableCountMax);
/** Rows of a push, and the keys of those that it wants. */
export const PUSHED_ROWS_BYTES_MAX = LIMITS.rowBytesMax + 2 * KEYS_BYTES_MAX;

const PREFIX = `${STATE_PREFIX}table.`;
/** Tensors of the rows of a table in a checkpoint, and of those that a capture keeps. */
export const ROW_FIELDS = ['keys', 'values', 'state', 'changed', 'decays', 'pretrained'] as const;
export const CAPTURE_FIELDS = ['keys', 'values', 'initial', 'fromFile'] as const;
export const BEST_ROWS = 'best';
/** Keys whose rows have their initial values again, in a checkpoint of changes. */
const GONE = 'gone';
const EVALUATED_ROWS = 'evaluated';
/** Keys that wait on other shards than the first one, with their sightings, and what was dropped there. */
const WAITING = 'waiting';
const DROPPED = 'dropped';
const MODEL_MOMENT = 'model.moment';
const MODEL_KEYS = 'model.keys';
const MODEL_VALUES = 'model.values';
const MODEL_PRETRAINED = 'model.pretrained';

/** @param share of the rows that are here. @throws DownpourError DP_LAYOUT_INVALID: a table is too large. */
export function createRunTables(config: RunConfig, share = ALL_ROWS): RunTables | null {
  return tablesOf(config) ? new RunTables(config, share) : null;
}

export class RunTables {
  readonly shapes: readonly RowShape[];
  /** The rows that are here. */
  readonly share: RowShare;
  readonly #tables: readonly RowTable[];
  readonly #pull: 'f32' | 'bf16';
  #seed: number;
  #rowStep = 0;
  /** The row step that the worker of the staged push read. */
  #readStep = 0;
  /** Keys of the rows that the staged push wants with its answer; null: none. */
  #wanted: readonly Uint32Array[] | null = null;

  constructor(config: RunConfig, share: RowShare = ALL_ROWS) {
    this.share = share;
    this.shapes = rowShapes(config);
    this.#pull = config.compression.pull;
    this.#seed = config.seed;
    this.#tables = this.shapes.map(
      ({ name }) => new RowTable(name, config.tables![name]!, config.seed, share),
    );
  }

  /** Pushes whose rows were applied. */
  get rowStep(): number {
    return this.#rowStep;
  }

  /** Rows that there is room for, here and on each other shard. */
  get rooms(): readonly Pick<RowTable, 'name' | 'capacity'>[] {
    return this.#tables;
  }

  facts(): RowTableFacts[] {
    return this.#tables.map((table) => table.facts());
  }

  /** Fresh parameters are asked for: all rows begin anew. */
  reset(seed: number): void {
    this.#seed = seed;
    for (const table of this.#tables) table.reset(seed);
    // Row steps are never used again: those of earlier rows are in captures and on the wire.
    for (const table of this.#tables) table.resetOptimizer(this.#rowStep);
  }

  resetOptimizer(): void {
    for (const table of this.#tables) table.resetOptimizer(this.#rowStep);
  }

  /** Values to begin with. @param payload rows in f32. @throws DownpourError DP_ROWS_INVALID, DP_GRADIENT_NOT_FINITE. */
  begin(payload: Uint8Array): void {
    const encoded = readEncodedRows(this.shapes, payload, 'f32');
    for (const [i, table] of this.#tables.entries()) table.stage(encoded[i]!, 'f32');
    if (!Number.isFinite(this.squares(Infinity))) {
      this.mustBeFinite(decodeRows(this.shapes, payload, 'f32'));
    }
    this.#rowStep++;
    for (const table of this.#tables) table.begin(this.#rowStep);
    this.resetOptimizer();
  }

  /** Looks at rows that others are to begin with. @throws DownpourError DP_GRADIENT_NOT_FINITE. */
  mustBeFinite(rows: readonly TableRows[]): void {
    for (const [i, { keys, values }] of rows.entries()) {
      if (Number.isFinite(normAndFinite(values))) continue;
      const { name, width } = this.shapes[i]!;
      const at = values.findIndex((value) => !Number.isFinite(value));
      throw new DownpourError(
        'DP_GRADIENT_NOT_FINITE',
        `the initial rows of table '${name}' hold ${values[at]} in the row of id ${keys[Math.floor(at / width)]}: look at the file that they come from`,
      );
    }
  }

  // A push.

  /**
   * Takes the rows of a push in.
   * @param payload all of it: rows and keys are at its end. @param rows absent: the push has none.
   * @returns what is before them: the push as if there were no tables.
   * @throws DownpourError DP_ROWS_INVALID.
   */
  stage(payload: Uint8Array, rows: PushedRows | undefined): Uint8Array {
    const { bytes, wanted, encoding, step } = rows ?? NO_ROWS;
    this.#wanted = null;
    const end = payload.length - wanted;
    const start = end - bytes;
    if (start < 0) {
      throw new DownpourError(
        'DP_ROWS_INVALID',
        `the push says ${bytes} bytes of rows and ${wanted} of keys; its payload has ${payload.length}`,
      );
    }
    if (bytes > 0) {
      const encoded = readEncodedRows(this.shapes, payload.subarray(start, end), encoding);
      for (const [i, table] of this.#tables.entries()) {
        mustBeOwnRows(encoded[i]!.keys, this.share, this.shapes[i]!);
        table.stage(encoded[i]!, encoding);
      }
    } else for (const table of this.#tables) table.stage(NOTHING, 'f32');
    if (wanted > 0) this.#wanted = this.readOwnKeys(payload.subarray(end));
    this.#readStep = step;
    return payload.subarray(0, start);
  }

  /** Keys of the rows that the last push that was staged wants with its answer, once; null: none. */
  takeWanted(): readonly Uint32Array[] | null {
    const wanted = this.#wanted;
    this.#wanted = null;
    return wanted;
  }

  /** Keys of rows that are here. @throws DownpourError DP_ROWS_INVALID: as `readKeys`, or a row is elsewhere. */
  readOwnKeys(payload: Uint8Array): readonly Uint32Array[] {
    const keys = this.readKeys(payload);
    for (const [i, own] of keys.entries()) mustBeOwnRows(own, this.share, this.shapes[i]!);
    return keys;
  }

  /** @throws DownpourError DP_ROWS_INVALID: they are not valid, or their rows are too many for an answer. */
  readKeys(payload: Uint8Array): readonly Uint32Array[] {
    const keys = decodeKeys(this.shapes, payload);
    const counts = keys.map(({ length }) => length);
    const bytes = rowBytes(this.shapes, counts, 'f32');
    if (bytes <= LIMITS.rowBytesMax) return keys;
    throw new DownpourError(
      'DP_ROWS_INVALID',
      `the rows that are wanted take ${bytes} bytes; allowed: ${LIMITS.rowBytesMax}: ask for fewer at once`,
    );
  }

  /** Σ g² of the rows that are staged; see `RowTable.squares`. */
  squares(limit: number): number {
    let sum = 0;
    for (const table of this.#tables) sum += table.squares(limit);
    return sum;
  }

  /** The largest staleness of a row that is staged. */
  staleness(): number {
    let most = 0;
    for (const table of this.#tables) most = Math.max(most, table.staleness(this.#readStep));
    return most;
  }

  /**
   * Updates the rows that are staged.
   * @param scaleOf the factor of the rate of a row by its staleness.
   * @returns false: a row overflowed, and all rows are as before.
   */
  apply(rate: number, clip: Clip, scaleOf: (staleness: number) => number): boolean {
    this.#rowStep++;
    const update = { rowStep: this.#rowStep, rate, clip, scaleOf, readStep: this.#readStep };
    let finite = true;
    for (const table of this.#tables) if (!table.apply(update)) finite = false;
    if (!finite) this.undo();
    return finite;
  }

  /** Takes the last `apply` back. */
  undo(): void {
    for (const table of this.#tables) table.undo();
    this.#rowStep--;
  }

  /** The other shards have made a row step; here it changed nothing. */
  pass(): void {
    this.#rowStep++;
  }

  // What workers are sent.

  /** How answers have their rows. */
  get pullEncoding(): 'f32' | 'bf16' {
    return this.#pull;
  }

  /**
   * Rows as bytes, for one message. Changes nothing.
   * @param capture null: as they are. @param take memory of so many bytes, with anything in it.
   */
  read(
    keys: readonly Uint32Array[],
    encoding: 'f32' | 'bf16',
    capture: number | null,
    take: (bytes: number) => Uint8Array = (bytes) => new Uint8Array(bytes),
  ): Uint8Array {
    const counts = keys.map(({ length }) => length);
    const bytes = take(rowBytes(this.shapes, counts, encoding));
    let at = 0;
    for (const [i, table] of this.#tables.entries()) {
      at = writeKeys(keys[i]!, bytes, at);
      const end = at + rowValueBytes(encoding, counts[i]!, table.width);
      // Behind an odd number of values in bf16 there are two bytes of padding.
      if (counts[i]! > 0) bytes.fill(0, end - 2, end);
      table.write(keys[i]!, capture, encoding, bytes.subarray(at, end));
      at = end;
    }
    return bytes;
  }

  // Captures.

  hasCapture(id: number): boolean {
    return this.#tables.every((table) => table.hasCapture(id));
  }

  capture(id: number): void {
    for (const table of this.#tables) table.capture(id, this.#rowStep);
  }

  forget(id: number): void {
    for (const table of this.#tables) table.forget(id);
  }

  replace(id: number): void {
    this.#rowStep++;
    for (const table of this.#tables) table.replace(id, this.#rowStep);
  }

  // Checkpoints.

  /** @param best capture. @param evaluated capture; null: none, as in checkpoints. */
  state(best: number | null, evaluated: number | null): RunTablesState {
    const captures: Record<string, readonly CaptureMoment[]> = {};
    for (const [name, id] of capturesOf(best, evaluated)) {
      captures[name] = this.#tables.map((table) => table.momentOf(id));
    }
    const tables = Object.fromEntries(this.#tables.map((table) => [table.name, table.state()]));
    return { rowStep: this.#rowStep, seed: this.#seed, tables, captures };
  }

  /** Copies of all rows that have values of their own, and of what captures keep. */
  tensors(best: number | null, evaluated: number | null): NamedTensor[] {
    return this.#tables.flatMap((table) => [
      ...ofFields(table.name, '', ROW_FIELDS, table.checkpoints.tensors()),
      ...capturesOf(best, evaluated).flatMap(([name, id]) => {
        const copy = table.checkpoints.copyCaptured(id, false, freshRoom);
        while (copy.more());
        return ofFields(table.name, `${name}.`, CAPTURE_FIELDS, copy);
      }),
    ]);
  }

  /**
   * Begins to copy what a checkpoint of this moment keeps of the rows that are here. `endCopy` follows.
   * @param best capture. @param changes without the rows that the checkpoint on disk has; of kind `last` alone.
   */
  beginCopy(
    what: CheckpointKind,
    best: number | null,
    { changes = false, room = freshRoom }: { changes?: boolean; room?: RoomFor } = {},
  ): TablesCopy {
    const { index } = this.share;
    const copied = () => {
      for (const table of this.#tables) table.checkpoints.copied();
    };
    if (what !== 'last') {
      const of = what === 'best' ? best : null;
      const rows = this.#tables.map((table) =>
        table.checkpoints.beginMoment(this.#rowStep, of, room),
      );
      const tensors = () =>
        rows.flatMap((copy, i) => ofModel(this.shapes[i]!.name, copy, index === 0));
      return new TablesCopy(rows, tensors, [], copied);
    }
    const parts: { more(): boolean }[] = [];
    const tensors: NamedTensor[] = [];
    const groups: KeyedRows[] = [];
    for (const table of this.#tables) {
      const nameOf = (field: string) => rowsName(table.name, field);
      const rows = table.checkpoints.beginCopy(this.#rowStep, changes, room);
      parts.push(rows);
      tensors.push(...ofFields(table.name, '', ROW_FIELDS, rows.tensors));
      if (changes) {
        tensors.push(flatTensor(nameOf(GONE), rows.tensors.gone));
        const [keys, ...fields] = ROW_FIELDS.map(nameOf);
        groups.push({ keys: keys!, fields, gone: nameOf(GONE) });
      }
      if (best === null) continue;
      const kept = table.checkpoints.copyCaptured(best, changes, room);
      parts.push(kept);
      tensors.push(...ofFields(table.name, `${BEST_ROWS}.`, CAPTURE_FIELDS, kept));
      if (changes && table.checkpoints.isOnDisk(best)) {
        const [keys, values, initial] = CAPTURE_FIELDS.map((f) => nameOf(`${BEST_ROWS}.${f}`));
        groups.push({ keys: keys!, fields: [values!] }, { keys: initial!, fields: [] });
      }
      table.checkpoints.beginWriting(best);
    }
    if (index > 0) tensors.push(...this.#elsewhere());
    return new TablesCopy(parts, () => tensors, groups, copied);
  }

  /** @param isWritten the checkpoint that was copied last is on disk. */
  endCopy(isWritten: boolean): void {
    for (const table of this.#tables) table.checkpoints.endCopy(isWritten);
  }

  /** As `RowCheckpoints.copyBytes`, of all tables that are here. */
  copyBytes(): ReturnType<RowCheckpoints['copyBytes']> {
    let all = 0;
    let changed: number | null = 0;
    for (const table of this.#tables) {
      const bytes = table.checkpoints.copyBytes();
      all += bytes.all;
      changed = changed === null || bytes.changed === null ? null : changed + bytes.changed;
    }
    return { all, changed };
  }

  /** What the JSON half of a checkpoint has of the first shard alone. */
  #elsewhere(): NamedTensor[] {
    return this.#tables.flatMap((table) => {
      const { waiting, dropped } = table.state().index;
      const keys = splitKeys(waiting.map(([key]) => key));
      const seen = waiting.flatMap(([, sightings], i) => [
        keys[2 * i]!,
        keys[2 * i + 1]!,
        sightings,
      ]);
      return [
        flatTensor(rowsName(table.name, WAITING), Float32Array.from(seen)),
        flatTensor(rowsName(table.name, DROPPED), splitDoubles(Float64Array.of(dropped))),
      ];
    });
  }

  /** The rows by themselves, as a model has them: keys and values of those that were ever changed. @param capture null: now. */
  named(capture: number | null): NamedTensor[] {
    return this.#tables.flatMap((table) =>
      ofModel(table.name, table.checkpoints.rows(this.#rowStep, capture), true),
    );
  }

  /**
   * Begins with the rows of another run; optimizers are as new. @param state absent: that run had no tables.
   * @param tensors of any kind of checkpoint. @throws DownpourError DP_CHECKPOINT_CORRUPT.
   */
  adopt(state: RunTablesState | undefined, tensors: readonly NamedTensor[]): void {
    if (!state) return;
    const isWhole = tensors.some(({ name }) => isOfRows(name) && name.endsWith('.changed'));
    if (isWhole) {
      const { tables } = wholeRowsState(state, (name) => found(tensors, name));
      const known = this.#tables.filter(({ name }) => Object.hasOwn(tables, name));
      this.#rowStep = state.rowStep;
      for (const table of known) {
        const own = tables[table.name]!;
        table.reset(own.seed ?? state.seed);
        table.restoreState(own);
        this.#restoreRows(table, rowsOf(table, tensors));
      }
    } else {
      this.#rowStep = state.rowStep + 1;
      for (const table of this.#tables) {
        const moment = wholeDoubles(found(tensors, rowsName(table.name, MODEL_MOMENT)));
        const split = found(tensors, rowsName(table.name, MODEL_KEYS));
        const values = taken(tensors, rowsName(table.name, MODEL_VALUES), split, table.width);
        const [decay = 0, seed] = moment;
        // The other run had no such table.
        if (seed === undefined) continue;
        const pretrained = found(tensors, rowsName(table.name, MODEL_PRETRAINED));
        table.adopt({ decay, seed }, wholeKeys(split), { values, pretrained }, this.#rowStep);
      }
    }
    this.resetOptimizer();
  }

  /**
   * Continues from a checkpoint, or as a replica.
   * @param best and evaluated the numbers that the captures get. @throws DownpourError DP_CHECKPOINT_CORRUPT.
   */
  restore(
    state: RunTablesState,
    tensors: readonly NamedTensor[],
    best: number | null,
    evaluated: number | null,
  ): void {
    this.restoreState(wholeRowsState(state, (name) => found(tensors, name)));
    for (const [i, table] of this.#tables.entries()) {
      this.#restoreRows(table, rowsOf(table, tensors));
      for (const [name, id] of capturesOf(best, evaluated)) {
        const keys = found(tensors, rowsName(table.name, `${name}.keys`));
        const values = taken(tensors, rowsName(table.name, `${name}.values`), keys, table.width);
        const initial = found(tensors, rowsName(table.name, `${name}.initial`));
        const fromFile = found(tensors, rowsName(table.name, `${name}.fromFile`));
        for (const each of [keys, initial, fromFile]) mustBeStoredKeys(this.shapes[i]!, each);
        const kept = { keys, values, initial, fromFile };
        table.restoreCapture(id, state.captures[name]![i]!, kept);
      }
    }
  }

  #restoreRows(table: RowTable, rows: RowTensors): void {
    mustBeStoredRows(this.shapes[this.#tables.indexOf(table)]!, rows, this.#rowStep);
    table.restoreRows(rows);
  }

  /** All but the rows, of which there are none yet. */
  restoreState(state: RunTablesState): void {
    this.#rowStep = state.rowStep;
    this.#seed = state.seed;
    for (const table of this.#tables) {
      const own = state.tables[table.name]!;
      table.reset(own.seed ?? state.seed);
      table.restoreState(own);
    }
  }

  /** Some rows of a table. @param kept of a capture; null: the present ones. */
  write(
    name: string,
    kept: ({ readonly id: number } & CaptureMoment) | null,
    fields: readonly Float32Array[],
  ): void {
    const table = this.#tables.find((each) => each.name === name)!;
    if (!kept) {
      const [keys, values, state, changed, decays, pretrained] = fields;
      table.restoreRows({
        ...{ keys: keys!, values: values!, state: state!, changed: changed!, decays: decays! },
        pretrained: pretrained!,
      });
      return;
    }
    const { id, ...at } = kept;
    const [keys, values, initial, fromFile] = fields;
    const captured = { keys: keys!, values: values!, initial: initial!, fromFile: fromFile! };
    table.restoreCapture(id, at, captured);
  }
}

/**
 * The JSON half of the tables, with what several shards have written besides.
 * @param tensorOf empty: there is no such tensor.
 */
export function wholeRowsState(
  state: RunTablesState,
  tensorOf: (name: string) => Float32Array,
): RunTablesState {
  const tables = Object.entries(state.tables).map(([name, table]) => {
    const { waiting, dropped } = table.index;
    const rows = tensorOf(rowsName(name, WAITING));
    const elsewhere = Array.from({ length: rows.length / 3 }, (_, i): [number, number] => {
      const [high, low, sightings] = rows.subarray(3 * i, 3 * i + 3);
      return [wholeKeys(Float32Array.of(high!, low!))[0]!, sightings!];
    });
    const more = wholeDoubles(tensorOf(rowsName(name, DROPPED)));
    const sum = more.reduce((sum, each) => sum + each, dropped);
    return [name, { ...table, index: { waiting: [...waiting, ...elsewhere], dropped: sum } }];
  });
  return { ...state, tables: Object.fromEntries(tables) };
}

const NO_ROWS: PushedRows = { step: 0, encoding: 'f32', bytes: 0, wanted: 0 };
const NOTHING = { keys: new Uint32Array(), values: new Uint8Array() };

export const rowsName = (table: string, field: string) => `${PREFIX}${table}.${field}`;
export const isOfRows = (name: string): boolean => name.startsWith(PREFIX);

/** What several shards have written beside the JSON half of the tables. */
export const namesBeside = (state: RunTablesState): string[] =>
  Object.keys(state.tables).flatMap((name) => [rowsName(name, WAITING), rowsName(name, DROPPED)]);

/** Tensors of a table. @param prefix of their names. */
function ofFields<F extends string>(
  table: string,
  prefix: string,
  fields: readonly F[],
  values: Readonly<Record<F, Float32Array>>,
): NamedTensor[] {
  return fields.map((field) => flatTensor(rowsName(table, prefix + field), values[field]));
}

/** The rows of a table as a model has them. @param withMoment with what its other rows follow from. */
function ofModel(table: string, copy: MomentCopy, withMoment: boolean): NamedTensor[] {
  const { keys, values, pretrained, at } = copy;
  const tensor = (field: string, values: Float32Array) =>
    flatTensor(rowsName(table, field), values);
  return [
    ...(withMoment ? [tensor(MODEL_MOMENT, splitDoubles(Float64Array.of(at.decay, at.seed)))] : []),
    ...[tensor(MODEL_KEYS, keys), tensor(MODEL_VALUES, values)],
    ...(pretrained.length > 0 ? [tensor(MODEL_PRETRAINED, pretrained)] : []),
  ];
}

function capturesOf(best: number | null, evaluated: number | null): (readonly [string, number])[] {
  const captures: (readonly [string, number])[] = [];
  if (best !== null) captures.push([BEST_ROWS, best]);
  if (evaluated !== null && evaluated !== best) captures.push([EVALUATED_ROWS, evaluated]);
  return captures;
}

function rowsOf({ name, width }: RowTable, tensors: readonly NamedTensor[]): RowTensors {
  const of = (field: keyof RowTensors) => found(tensors, rowsName(name, field));
  const keys = of('keys');
  const values = taken(tensors, rowsName(name, 'values'), keys, width);
  return {
    ...{ keys, values, state: of('state'), changed: of('changed') },
    ...{ decays: of('decays'), pretrained: of('pretrained') },
  };
}

const EMPTY = new Float32Array();
/** What has no elements may have been left out. */
function found(tensors: readonly NamedTensor[], name: string): Float32Array {
  return tensors.find((tensor) => tensor.name === name)?.values ?? EMPTY;
}

function taken(
  tensors: readonly NamedTensor[],
  name: string,
  keys: Float32Array,
  width: number,
): Float32Array {
  const size = (keys.length / 2) * width;
  return size === 0 ? EMPTY : takeTensor(tensors, name, size);
}
