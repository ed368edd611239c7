import type { RowTableFacts } from '../../../shared/rest.ts';
import { wholeKeys } from '../../../shared/row-groups.ts';
import { ALL_ROWS, type RowShare } from '../../../shared/row-shards.ts';
import type { EncodedRows, RowEncoding } from '../../../shared/rows.ts';
import type { TableConfig } from '../../../shared/tables.ts';
import type { Clip } from '../fused.ts';
import { createInitialRow, type InitialRow } from './initial-rows.ts';
import { MomentCopy, type MomentOfRows } from './moment-copy.ts';
import {
  type CaptureMoment,
  type RowCapture,
  RowCaptures,
  type RowTensorsOfCapture,
} from './row-captures.ts';
import { type CaptureCopy, freshRoom, type RoomFor, RowCopy } from './row-copy.ts';
import {
  createRowIndex,
  fullTable,
  type RowIndex,
  type RowIndexState,
  rowCapacity,
} from './row-index.ts';
import { NUMBERS_OF_ROW, RowMemory } from './row-memory.ts';
import { createRowRule, type RowRule } from './row-rules.ts';
import { type RowTensors, wholeDoubles } from './row-tensors.ts';
import { RowUndo } from './row-undo.ts';
import { RowsOnDisk } from './rows-on-disk.ts';
import { StagedRows } from './staged-rows.ts';

/**
 * One table: rows in slots of one memory, each with the state of its optimizer and the row step of its last change. A row
 * that was never changed has no values of its own: they follow from the seed and its key. What all rows undergo with each
 * update, decay and the fading of moments, is done to a row when it is read or changed.
 */

/** One update of the table. */
export interface TableUpdate {
  /** The row step that it makes. */
  readonly rowStep: number;
  /** Learning rate, before the factor of the table. */
  readonly rate: number;
  readonly clip: Clip;
  /** The factor of the rate of a row by its staleness. */
  scaleOf(staleness: number): number;
  /** The row step that the worker read. */
  readonly readStep: number;
}

/** The JSON half of a table in a checkpoint. */
export interface RowTableState {
  /** Row step at which the optimizer began. */
  readonly began: number;
  /** Σ log (1 − ε λ) over all updates. */
  readonly decay: number;
  readonly index: RowIndexState;
}

/** So small that no product of it is 0 for long, instead of a factor of 0 or below. */
const KEEP_MIN = 1e-30;
/** In this part of `expireAfter` updates, rows that are out of time are removed once. */
const SWEEPS = 4;

export class RowTable {
  readonly name: string;
  readonly width: number;
  readonly #config: TableConfig;
  readonly #index: RowIndex;
  readonly #rule: RowRule;
  readonly #memory: RowMemory;
  /**
   * 1 for slots whose row began with the values of a file. These rows have a rate of their own and are never forgotten.
   * Empty: no row did.
   */
  #pretrained = new Uint8Array();
  #pretrainedCount = 0;
  #seed: number;
  #initial: InitialRow;
  #began = 0;
  #decay = 0;
  #count = 0;
  readonly #captures: RowCaptures;
  readonly #onDisk: RowsOnDisk;
  /** The copy that a checkpoint is written from; null: it is complete, or there is none. */
  #copying: RowCopy | MomentCopy | null = null;
  /** Gradients of a push. */
  readonly #staged: StagedRows;
  /** Slots of the rows that are staged; below 0: they have none yet. */
  #slots = new Int32Array();
  readonly #undo: RowUndo;
  readonly #row = { rate: 0, age: 0 };
  /** Since the server has the run. */
  readonly #tally = { updates: 0, staleness: 0, stalenessMax: 0, admitted: 0, forgotten: 0 };
  /** The same before the last update. */
  readonly #tallyBefore = { ...this.#tally };

  /**
   * @param share of its rows that are here.
   * @throws DownpourError DP_LAYOUT_INVALID: it is too large for one memory.
   */
  constructor(name: string, config: TableConfig, seed: number, share: RowShare = ALL_ROWS) {
    const { width, optimizer, weightDecay } = config;
    this.name = name;
    this.width = width;
    this.#config = config;
    this.#rule = createRowRule(optimizer);
    this.#memory = new RowMemory(name, share, {
      capacity: rowCapacity(config, share),
      width,
      stateSize: this.#rule.stateSize(width),
      decays: weightDecay > 0,
    });
    this.#index = createRowIndex(config, share);
    this.#onDisk = new RowsOnDisk(this.#index.capacity);
    this.#staged = new StagedRows(this.#memory);
    this.#undo = new RowUndo(this.#memory);
    this.#seed = seed;
    this.#initial = this.#initialOf(seed);
    this.#captures = new RowCaptures(name, width, (key, then, out) =>
      this.#readRow(key, then, out),
    );
  }

  #initialOf(seed: number): InitialRow {
    return createInitialRow(this.#config.initializer, seed, this.name, this.#memory);
  }

  /** Rows that there is room for. */
  get capacity(): number {
    return this.#index.capacity;
  }

  /** Gradients of rows that were dropped, since their keys have no row. */
  get dropped(): number {
    return this.#index.dropped;
  }

  /** Rows with values of their own. */
  get count(): number {
    return this.#count;
  }

  facts(): RowTableFacts {
    const { updates, staleness, stalenessMax: max, admitted, forgotten } = this.#tally;
    const { width, stateSize, decays } = this.#memory;
    const { rows, rowsMax } = this.#config;
    const rowBytes = 4 * (width + stateSize) + 8 + (decays.length > 0 ? 8 : 0);
    return {
      ...{ name: this.name, width, rows: this.#count, rowsMax: rows === 'hash' ? rowsMax : rows },
      ...{ pretrained: this.#pretrainedCount, dropped: this.dropped, admitted, forgotten, updates },
      memoryBytes: this.#count * rowBytes,
      staleness: updates > 0 ? { mean: staleness / updates, max } : null,
    };
  }

  /** All rows have their initial values; captures stay as they are. */
  reset(seed: number): void {
    this.#copying?.finish();
    this.#copying = null;
    this.#onDisk.reset();
    this.#captures.endWriting(false);
    this.#keepAll();
    this.#seed = seed;
    this.#initial = this.#initialOf(seed);
    this.#index.clear();
    // Pages that nobody has written to take no memory.
    if (this.#count > 0) this.#memory.changed.fill(0);
    this.#pretrained = new Uint8Array();
    this.#count = 0;
    this.#pretrainedCount = 0;
    this.#decay = 0;
    this.#began = 0;
  }

  /** Forgets the state of the optimizer. @param rowStep of now. */
  resetOptimizer(rowStep: number): void {
    this.#began = rowStep;
  }

  // A push.

  /**
   * Takes the gradients of a push in.
   * @param encoded values are read until the update. @throws DownpourError DP_ROWS_INVALID: they are too many.
   */
  stage(encoded: EncodedRows, encoding: RowEncoding): void {
    this.#staged.take(this.name, encoded, encoding);
    const { keys } = encoded;
    if (this.#slots.length < keys.length) this.#slots = new Int32Array(keys.length);
    this.#index.findAll(keys, this.#slots);
  }

  /** Σ g² of what is staged, with elements cut to ±limit; NaN: not all of it is finite. */
  squares(limit: number): number {
    return this.#staged.squares(limit);
  }

  /** Steps between the reading of a row and its last change, the most of what is staged. */
  staleness(readStep: number): number {
    const { changed } = this.#memory;
    let last = 0;
    for (let i = 0; i < this.#staged.keys.length; i++) {
      const slot = this.#slots[i]!;
      if (slot >= 0 && changed[slot]! > last) last = changed[slot]!;
    }
    return Math.max(0, last - readStep);
  }

  /**
   * Updates the rows that are staged.
   * @returns false: a row overflowed. `undo` follows, then or later.
   */
  apply(update: TableUpdate): boolean {
    const { rowStep, rate, clip } = update;
    const { learningRate, weightDecay, maxNorm, expireAfter } = this.#config;
    const { keys } = this.#staged;
    this.#undo.begin(keys.length, { decay: this.#decay, rowStep });
    this.#index.begin();
    Object.assign(this.#tallyBefore, this.#tally);
    if (learningRate === 0) return true;
    const own = rate * learningRate;
    if (weightDecay > 0) this.#decay += Math.log(Math.max(KEEP_MIN, 1 - own * weightDecay));
    const sweepSteps = Math.ceil((expireAfter ?? Infinity) / SWEEPS);
    if (expireAfter !== null && rowStep % sweepSteps === 0) {
      this.#expire(rowStep);
      this.#index.findAll(keys, this.#slots);
    }
    this.#rule.begin(rowStep - this.#began);
    let finite = true;
    for (let from = 0; from < keys.length; ) {
      const count = this.#staged.load(from);
      this.#staged.clip(count, clip);
      for (let i = 0; i < count; i++) this.#touch(i, from + i, own, update);
      if (!this.#rule.update(this.#memory, count, maxNorm)) finite = false;
      this.#undo.keep(count);
      from += count;
    }
    return finite;
  }

  /**
   * A row is about to change: it is kept for those who look at it as it was, and the kernel is said what it has missed.
   * @param i in its piece. @param at in the push.
   */
  #touch(i: number, at: number, own: number, { rowStep, scaleOf, readStep }: TableUpdate): void {
    const key = this.#staged.keys[at]!;
    const found = this.#slots[at]!;
    const given = found < 0 ? this.#index.admit(key) : found;
    if (found < 0 && given >= 0) this.#tally.admitted++;
    const factor = this.#isPretrained(given) ? this.#config.pretrainedRate : 1;
    const slot = factor === 0 ? -1 : given;
    const { slots, numbers, changed, decays, width, at: addresses } = this.#memory;
    slots[i] = slot;
    this.#undo.note(slot);
    if (slot < 0) return;
    const last = changed[slot]!;
    if (this.#copying) this.#copying.before(slot);
    if (!this.#captures.isEmpty) this.#captures.keep(key, last);
    if (last === 0) this.#initial(key, addresses.theta + 4 * slot * width);
    numbers[NUMBERS_OF_ROW * i] = this.#missed(last === 0 ? -1 : slot, this.#decay);
    if (decays.length > 0) decays[slot] = this.#decay;
    const row = this.#row;
    const staleness = Math.max(0, last - readStep);
    row.rate = own * factor * scaleOf(staleness);
    this.#tally.updates++;
    this.#tally.staleness += staleness;
    if (staleness > this.#tally.stalenessMax) this.#tally.stalenessMax = staleness;
    row.age = last <= this.#began ? 0 : rowStep - last;
    this.#rule.note(numbers, i, row);
    this.#mark(slot, rowStep);
  }

  /**
   * The factor of the decays that a row has missed.
   * @param slot below 0: it has its initial values. In a fork of a run that decayed, they have missed some in a table that
   * does not decay itself.
   */
  #missed(slot: number, decay: number): number {
    const { decays } = this.#memory;
    if (slot < 0) return Math.exp(decay);
    return decays.length > 0 ? Math.exp(decay - decays[slot]!) : 1;
  }

  /** @param rowStep of its last change; 0: it has its initial values again. */
  #mark(slot: number, rowStep: number): void {
    const { changed } = this.#memory;
    const last = changed[slot]!;
    this.#count += Number(rowStep > 0) - Number(last > 0);
    this.#onDisk.note(last, rowStep);
    changed[slot] = rowStep;
  }

  /** Takes the last `apply` back, with the rows that it has forgotten. */
  undo(): void {
    const { rowStep } = this.#undo;
    this.#decay = this.#undo.decay;
    Object.assign(this.#tally, this.#tallyBefore);
    this.#index.undo();
    this.#undo.restore(
      (slot, changed) => {
        this.#mark(slot, changed);
        if (changed === 0) this.#index.remove(this.#index.keyOf(slot));
      },
      (key, changed) => {
        const slot = this.#index.insert(key);
        this.#mark(slot, changed);
        this.#onDisk.returned(key, rowStep);
        return slot;
      },
    );
  }

  // Reading.

  /** −1: its values are the initial ones. */
  #find(key: number): number {
    const slot = this.#index.find(key);
    return slot < 0 || this.#memory.changed[slot] === 0 ? -1 : slot;
  }

  /**
   * Rows as they are, or as they were. Changes nothing.
   * @param capture null: as they are. @param out shape [keys.length, width].
   */
  read(keys: Uint32Array, capture: number | null, out: Float32Array): void {
    const bytes = new Uint8Array(out.buffer, out.byteOffset, out.byteLength);
    this.write(keys, capture, 'f32', bytes);
  }

  /** The same as they are sent. @param out the values of all of them in the encoding. */
  write(
    keys: Uint32Array,
    capture: number | null,
    encoding: 'f32' | 'bf16',
    out: Uint8Array,
  ): void {
    const { width, pieceRows, rowsAsBytes, encoded, compression, at } = this.#memory;
    const then = capture === null ? null : this.#captures.of(capture);
    for (let from = 0; from < keys.length; from += pieceRows) {
      const count = Math.min(pieceRows, keys.length - from);
      this.#gather(keys, from, count, then);
      const [start, size] = [from * width, count * width];
      if (encoding === 'f32') out.set(rowsAsBytes.subarray(0, 4 * size), 4 * start);
      else {
        compression.encode_bf16(at.rows, size, at.encoded);
        out.set(encoded.subarray(0, 2 * size), 2 * start);
      }
    }
  }

  /** Brings a piece of rows to the room `rows`. */
  #gather(keys: Uint32Array, from: number, count: number, then: RowCapture | null): void {
    const { width, kernels, slots, numbers, decays, rows, at } = this.#memory;
    const decay = then ? then.at.decay : this.#decay;
    const initial = then ? then.initial : this.#initial;
    const isDecaying = decays.length > 0;
    for (let i = 0; i < count; i++) {
      const key = keys[from + i]!;
      const kept = then?.rows.get(key);
      const slot = kept === undefined ? this.#find(key) : -1;
      slots[i] = slot;
      if (isDecaying) numbers[i] = this.#missed(slot, decay);
    }
    const factors = isDecaying ? at.numbers : 0;
    kernels.rows_gather(count, width, slots.byteOffset, at.theta, factors, at.rows);
    for (let i = 0; i < count; i++) {
      if (slots[i]! >= 0) continue;
      const key = keys[from + i]!;
      const kept = then?.rows.get(key);
      if (kept) {
        rows.set(kept, i * width);
        continue;
      }
      initial(key, at.rows + 4 * i * width);
      if (decay !== 0) scale(rows, i * width, width, this.#missed(-1, decay));
    }
  }

  /** A row that has not changed since a capture, as it was then. */
  #readRow(key: number, then: RowCapture, out: Float32Array): void {
    const { width, theta, decays } = this.#memory;
    const slot = this.#find(key);
    out.set(theta.subarray(slot * width, (slot + 1) * width));
    if (decays.length > 0) scale(out, 0, width, Math.exp(then.at.decay - decays[slot]!));
  }

  // Captures.

  hasCapture(id: number): boolean {
    return this.#captures.has(id);
  }

  capture(id: number, rowStep: number): void {
    const at = { rowStep, decay: this.#decay, seed: this.#seed };
    this.#captures.make(id, at, this.#initial);
  }

  forget(id: number): void {
    this.#captures.forget(id);
  }

  /** The row of a slot is about to change: it is kept for those who look at it as it was. */
  #keep(slot: number): void {
    this.#copying?.before(slot);
    if (this.#captures.isEmpty) return;
    this.#captures.keep(this.#index.keyOf(slot), this.#memory.changed[slot]!);
  }

  /** All rows are about to go: captures keep them, and which of them are those of a file. */
  #keepAll(): void {
    if (this.#captures.isEmpty) return;
    const pretrained = new Set<number>();
    for (const slot of this.#used()) {
      this.#keep(slot);
      if (this.#isPretrained(slot)) pretrained.add(this.#index.keyOf(slot));
    }
    this.#captures.keepPretrained(pretrained);
  }

  /** All rows as they were then; those that were changed since are changed by this. */
  replace(id: number, rowStep: number): void {
    const { theta, decays, width } = this.#memory;
    const then = this.#captures.of(id);
    // It will have no rows of its own: all are as they were.
    this.#captures.forget(id);
    // Those that came later go first, so that there is room for those that went.
    for (const [key, row] of then.rows) {
      const slot = row === null ? this.#index.find(key) : -1;
      if (slot < 0) continue;
      this.#keep(slot);
      this.#remove(slot, key, rowStep);
    }
    for (const [key, row] of then.rows) {
      if (row === null) continue;
      const slot = this.#index.insert(key);
      this.#keep(slot);
      theta.set(row, slot * width);
      this.#mark(slot, rowStep);
      if (decays.length > 0) decays[slot] = then.at.decay;
    }
    if (then.pretrained) {
      this.#pretrainedCount = 0;
      for (const key of then.pretrained) this.#markPretrained(this.#index.find(key));
    }
    this.#captures.make(id, { ...then.at, rowStep }, then.initial);
    this.#decay = then.at.decay;
    this.#seed = then.at.seed;
    this.#initial = then.initial;
  }

  /** The row has its initial values again, and is no row of a file any more. */
  #remove(slot: number, key: number, rowStep: number): void {
    this.#index.remove(key);
    this.#onDisk.removed(key, rowStep);
    this.#mark(slot, 0);
    if (!this.#isPretrained(slot)) return;
    this.#pretrained[slot] = 0;
    this.#pretrainedCount--;
  }

  /**
   * Rows that are staged begin with these values, which are those of a file, instead of those of the initializer.
   * @throws DownpourError DP_LAYOUT_INVALID.
   */
  begin(rowStep: number): void {
    const { keys } = this.#staged;
    for (let from = 0; from < keys.length; ) {
      const count = this.#staged.load(from);
      const piece = keys.subarray(from, from + count);
      this.#place(piece, this.#memory.gradients, rowStep);
      for (const key of piece) this.#markPretrained(this.#index.find(key));
      from += count;
    }
  }

  /** @param values shape [keys.length, width] or longer. @throws DownpourError DP_LAYOUT_INVALID: there is no room. */
  #place(keys: Uint32Array, values: Float32Array, rowStep: number): void {
    const { width, theta, decays } = this.#memory;
    for (let i = 0; i < keys.length; i++) {
      const slot = this.#index.insert(keys[i]!);
      if (slot < 0) throw fullTable(this.name, this.capacity);
      this.#keep(slot);
      theta.set(values.subarray(i * width, (i + 1) * width), slot * width);
      this.#mark(slot, rowStep);
      if (decays.length > 0) decays[slot] = this.#decay;
    }
  }

  #isPretrained(slot: number): boolean {
    return this.#pretrainedCount > 0 && this.#pretrained[slot] === 1;
  }

  #markPretrained(slot: number): void {
    if (this.#pretrainedCount === 0) this.#pretrained = new Uint8Array(this.#index.capacity);
    this.#pretrainedCount += 1 - this.#pretrained[slot]!;
    this.#pretrained[slot] = 1;
  }

  /** Rows that were in no push for too long are as if they had never been. */
  #expire(rowStep: number): void {
    const { expireAfter } = this.#config;
    const { changed } = this.#memory;
    for (let slot = 0; slot < changed.length; slot++) {
      const last = changed[slot]!;
      if (last === 0 || rowStep - last <= expireAfter! || this.#isPretrained(slot)) continue;
      const key = this.#index.keyOf(slot);
      this.#keep(slot);
      this.#undo.forget(key, slot);
      this.#remove(slot, key, rowStep);
      this.#tally.forgotten++;
    }
  }

  // Checkpoints.

  state(): RowTableState {
    return { began: this.#began, decay: this.#decay, index: this.#index.state() };
  }

  /** Rows that have values of their own, with all that belongs to them. */
  tensors(): RowTensors {
    const copy = this.#copyOf(null, Infinity, freshRoom);
    copy.finish();
    return copy.tensors;
  }

  /** @param since that of rows on disk; null: all rows. */
  #copyOf(since: number | null, until: number, room: RoomFor): RowCopy {
    const isPretrained =
      this.#pretrainedCount > 0 ? (slot: number) => this.#isPretrained(slot) : null;
    const rows =
      since === null
        ? { since: 0, until, count: this.#count, gone: [], isPretrained }
        : { since, until, count: this.#onDisk.changed, gone: this.#onDisk.gone, isPretrained };
    return new RowCopy(this.#memory, this.#index, rows, room);
  }

  /**
   * Begins to copy the rows of this moment for a checkpoint; see `RowCopy`.
   * @param rowStep of now. @param changes those alone that the checkpoint on disk does not have.
   */
  beginCopy(rowStep: number, changes: boolean, room: RoomFor): RowCopy {
    this.#copying?.finish();
    const { step } = this.#onDisk;
    if (changes && step === null) throw new Error(`table ${this.name} has no rows on disk`);
    this.#copying = this.#copyOf(changes ? step : null, rowStep, room);
    this.#onDisk.begin(rowStep);
    return this.#copying;
  }

  /**
   * Begins to copy the rows by themselves, for a checkpoint of a model.
   * @param rowStep of now. @param id of a capture; null: as they are now.
   */
  beginMoment(rowStep: number, id: number | null, room: RoomFor): MomentCopy {
    this.#copying?.finish();
    this.#copying = this.#copyOfMoment(rowStep, id, room);
    return this.#copying;
  }

  #copyOfMoment(rowStep: number, id: number | null, room: RoomFor): MomentCopy {
    const at = { rowStep, decay: this.#decay, seed: this.#seed };
    const then =
      id === null
        ? { at, rows: new Map(), kept: { rows: 0, initial: 0 }, pretrained: null }
        : this.#captures.of(id);
    const of: MomentOfRows = {
      then,
      count: this.#count,
      isPretrained:
        (then.pretrained?.size ?? this.#pretrainedCount) === 0
          ? null
          : (key) => then.pretrained?.has(key) ?? this.#isPretrained(this.#index.find(key)),
    };
    return new MomentCopy(this.#memory, this.#index, of, room);
  }

  /** The rows are copied. */
  copied(): void {
    this.#copying = null;
  }

  /** @param isWritten the checkpoint is on disk. */
  endCopy(isWritten: boolean): void {
    this.#copying = null;
    // The checkpoint was of another kind, or all rows have begun afresh since.
    if (!this.#onDisk.isWriting) return;
    this.#onDisk.end(isWritten);
    this.#captures.endWriting(isWritten);
  }

  /** Bytes of a checkpoint's rows: of all, and of those alone that have changed since the one on disk; null: all have to be written. */
  copyBytes(): { readonly all: number; readonly changed: number | null } {
    const { width, stateSize, decays } = this.#memory;
    const rowBytes = 4 * (width + stateSize + 5 + (decays.length > 0 ? 3 : 0));
    const { step, changed } = this.#onDisk;
    return { all: rowBytes * this.#count, changed: step === null ? null : rowBytes * changed };
  }

  /** Slots of rows that have values of their own, rising. */
  #used(): Int32Array {
    const { changed } = this.#memory;
    const slots = new Int32Array(this.#count);
    let at = 0;
    for (let slot = 0; slot < changed.length; slot++) if (changed[slot]! > 0) slots[at++] = slot;
    return slots;
  }

  restoreState({ began, decay, index }: RowTableState): void {
    this.#began = began;
    this.#decay = decay;
    this.#index.restore(index);
  }

  /**
   * Some rows, or all. Those of a fork may have decayed where this table does not, or the other way round.
   * @param rows as `mustBeStoredRows` wants them. @throws DownpourError DP_LAYOUT_INVALID: there is no room for them.
   */
  restoreRows({ keys, values, state: own, changed, decays, pretrained }: RowTensors): void {
    const { width, stateSize: size, theta, state, decays: sumsOf } = this.#memory;
    const steps = wholeDoubles(changed);
    const sums = wholeDoubles(decays);
    for (const [i, key] of wholeKeys(keys).entries()) {
      const slot = this.#index.insert(key);
      if (slot < 0) throw fullTable(this.name, this.capacity);
      theta.set(values.subarray(i * width, (i + 1) * width), slot * width);
      state.set(own.subarray(i * size, (i + 1) * size), slot * size);
      this.#mark(slot, steps[i]!);
      if (sumsOf.length > 0) sumsOf[slot] = sums[i] ?? this.#decay;
      else if (i < sums.length) {
        scale(theta, slot * width, width, Math.exp(this.#decay - sums[i]!));
      }
      if (pretrained[i] === 1) this.#markPretrained(slot);
    }
  }

  /** All rows that have values of their own, now or at a capture, as they are when they are read. @param rowStep of now. */
  rows(rowStep: number, id: number | null): MomentCopy {
    const copy = this.#copyOfMoment(rowStep, id, freshRoom);
    copy.finish();
    return copy;
  }

  /**
   * Begins with the rows of another run. @param at whose initial values and decay the other rows have.
   */
  adopt(
    at: Omit<CaptureMoment, 'rowStep'>,
    keys: readonly number[],
    { values, pretrained }: Pick<RowTensors, 'values' | 'pretrained'>,
    rowStep: number,
  ): void {
    this.reset(at.seed);
    this.#decay = at.decay;
    this.#place(Uint32Array.from(keys), values, rowStep);
    for (const [i, key] of keys.entries()) {
      if (pretrained[i] === 1) this.#markPretrained(this.#index.find(key));
    }
  }

  momentOf(id: number): CaptureMoment {
    return this.#captures.momentOf(id);
  }

  /**
   * Copies rows that have changed since a capture, as they were then.
   * @param changes without those that the checkpoint on disk has.
   */
  copyCaptured(id: number, changes: boolean, room: RoomFor): CaptureCopy {
    return this.#captures.copy(id, changes, room);
  }

  /** A checkpoint of this moment has what the capture has kept up to now. */
  beginWriting(id: number): void {
    this.#captures.beginWriting(id);
  }

  /** The checkpoint on disk has some rows of the capture. */
  isOnDisk(id: number): boolean {
    return this.#captures.of(id).onDisk !== null;
  }

  /** The same, of a table that is being restored; added to what has been restored of it. */
  restoreCapture(id: number, at: CaptureMoment, kept: RowTensorsOfCapture): void {
    this.#captures.restore(id, at, this.#initialOf(at.seed), kept);
  }
}

function scale(values: Float32Array, at: number, count: number, factor: number): void {
  for (let i = at; i < at + count; i++) values[i] = values[i]! * factor;
}
