import type { RowTableFacts } from '../../../shared/rest.ts';
import { wholeKeys } from '../../../shared/row-groups.ts';
import { ALL_ROWS, type RowShare } from '../../../shared/row-shards.ts';
import type { EncodedRows, RowEncoding } from '../../../shared/rows.ts';
import type { TableConfig } from '../../../shared/tables.ts';
import type { Clip } from '../fused.ts';
import { createInitialRow, type InitialRow } from './initial-rows.ts';
import { PretrainedRows } from './pretrained-rows.ts';
import { type CaptureMoment, RowCaptures, type RowTensorsOfCapture } from './row-captures.ts';
import { RowCheckpoints } from './row-checkpoints.ts';
import {
  createRowIndex,
  fullTable,
  type RowIndex,
  type RowIndexState,
  rowCapacity,
} from './row-index.ts';
import { NUMBERS_OF_ROW, RowMemory } from './row-memory.ts';
import { RowReader, type RowsNow, scaleRow } from './row-reader.ts';
import { createRowRule, type RowRule } from './row-rules.ts';
import { type RowTensors, wholeDoubles } from './row-tensors.ts';
import { RowUndo } from './row-undo.ts';
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
  /** The initial values follow from it. Absent: that of all tables, written by an older release. */
  readonly seed?: number;
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
  readonly #pretrained: PretrainedRows;
  readonly #now: RowsNow;
  #began = 0;
  readonly #captures: RowCaptures;
  readonly #reader: RowReader;
  /** How its rows come to checkpoints. */
  readonly checkpoints: RowCheckpoints;
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
    this.#pretrained = new PretrainedRows(this.#index.capacity);
    this.#staged = new StagedRows(this.#memory);
    this.#undo = new RowUndo(this.#memory);
    this.#now = { count: 0, decay: 0, seed, initial: this.#initialOf(seed) };
    const of = { memory: this.#memory, index: this.#index, now: this.#now };
    this.#captures = new RowCaptures(name, width, (key, then, out) =>
      this.#reader.readCaptured(key, then, out),
    );
    this.#reader = new RowReader({ ...of, captures: this.#captures });
    const more = { captures: this.#captures, pretrained: this.#pretrained };
    this.checkpoints = new RowCheckpoints(name, { ...of, ...more });
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
    return this.#now.count;
  }

  facts(): RowTableFacts {
    const { updates, staleness, stalenessMax: max, admitted, forgotten } = this.#tally;
    const { width, stateSize, decays } = this.#memory;
    const { rows, rowsMax } = this.#config;
    const rowBytes = 4 * (width + stateSize) + 8 + (decays.length > 0 ? 8 : 0);
    return {
      ...{
        name: this.name,
        width,
        rows: this.#now.count,
        rowsMax: rows === 'hash' ? rowsMax : rows,
      },
      ...{
        pretrained: this.#pretrained.count,
        dropped: this.dropped,
        admitted,
        forgotten,
        updates,
      },
      memoryBytes: this.#now.count * rowBytes,
      staleness: updates > 0 ? { mean: staleness / updates, max } : null,
    };
  }

  /** All rows have their initial values; captures stay as they are. */
  reset(seed: number): void {
    this.checkpoints.reset();
    this.#keepAll();
    this.#now.seed = seed;
    this.#now.initial = this.#initialOf(seed);
    this.#index.clear();
    // Pages that nobody has written to take no memory.
    if (this.#now.count > 0) this.#memory.changed.fill(0);
    this.#pretrained.clear();
    this.#now.count = 0;
    this.#now.decay = 0;
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
    this.#undo.begin(keys.length, { decay: this.#now.decay, rowStep });
    this.#index.begin();
    Object.assign(this.#tallyBefore, this.#tally);
    if (learningRate === 0) return true;
    const own = rate * learningRate;
    if (weightDecay > 0) this.#now.decay += Math.log(Math.max(KEEP_MIN, 1 - own * weightDecay));
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
    const factor = this.#pretrained.has(given) ? this.#config.pretrainedRate : 1;
    const slot = factor === 0 ? -1 : given;
    const { slots, numbers, changed, decays, width, at: addresses } = this.#memory;
    slots[i] = slot;
    this.#undo.note(slot);
    if (slot < 0) return;
    const last = changed[slot]!;
    this.checkpoints.before(slot);
    if (!this.#captures.isEmpty) this.#captures.keep(key, last);
    if (last === 0) this.#now.initial(key, addresses.theta + 4 * slot * width);
    numbers[NUMBERS_OF_ROW * i] = this.#reader.missed(last === 0 ? -1 : slot, this.#now.decay);
    if (decays.length > 0) decays[slot] = this.#now.decay;
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

  /** @param rowStep of its last change; 0: it has its initial values again. */
  #mark(slot: number, rowStep: number): void {
    const { changed } = this.#memory;
    const last = changed[slot]!;
    this.#now.count += Number(rowStep > 0) - Number(last > 0);
    this.checkpoints.onDisk.note(last, rowStep);
    changed[slot] = rowStep;
  }

  /** Takes the last `apply` back, with the rows that it has forgotten. */
  undo(): void {
    const { rowStep } = this.#undo;
    this.#now.decay = this.#undo.decay;
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
        this.checkpoints.onDisk.returned(key, rowStep);
        return slot;
      },
    );
  }

  // Reading.

  /**
   * Rows as they are, or as they were. Changes nothing.
   * @param capture null: as they are. @param out shape [keys.length, width].
   */
  read(keys: Uint32Array, capture: number | null, out: Float32Array): void {
    const bytes = new Uint8Array(out.buffer, out.byteOffset, out.byteLength);
    this.write(keys, capture, 'f32', bytes);
  }

  /** The same as they are sent. @param out the values of all of them in the encoding. */
  write(...read: Parameters<RowReader['write']>): void {
    this.#reader.write(...read);
  }

  // Captures.

  hasCapture(id: number): boolean {
    return this.#captures.has(id);
  }

  capture(id: number, rowStep: number): void {
    const at = { rowStep, decay: this.#now.decay, seed: this.#now.seed };
    this.#captures.make(id, at, this.#now.initial);
  }

  forget(id: number): void {
    this.#captures.forget(id);
  }

  /** The row of a slot is about to change: it is kept for those who look at it as it was. */
  #keep(slot: number): void {
    this.checkpoints.before(slot);
    if (this.#captures.isEmpty) return;
    this.#captures.keep(this.#index.keyOf(slot), this.#memory.changed[slot]!);
  }

  /** All rows are about to go: captures keep them, and which of them are those of a file. */
  #keepAll(): void {
    if (this.#captures.isEmpty) return;
    const pretrained = new Set<number>();
    for (const slot of this.#used()) {
      this.#keep(slot);
      if (this.#pretrained.has(slot)) pretrained.add(this.#index.keyOf(slot));
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
      this.#pretrained.clear();
      for (const key of then.pretrained) this.#pretrained.add(this.#index.find(key));
    }
    this.#captures.make(id, { ...then.at, rowStep }, then.initial);
    this.#now.decay = then.at.decay;
    this.#now.seed = then.at.seed;
    this.#now.initial = then.initial;
  }

  /** The row has its initial values again, and is no row of a file any more. */
  #remove(slot: number, key: number, rowStep: number): void {
    this.#index.remove(key);
    this.checkpoints.onDisk.removed(key, rowStep);
    this.#mark(slot, 0);
    this.#pretrained.remove(slot);
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
      for (const key of piece) this.#pretrained.add(this.#index.find(key));
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
      if (decays.length > 0) decays[slot] = this.#now.decay;
    }
  }

  /** Rows that were in no push for too long are as if they had never been. */
  #expire(rowStep: number): void {
    const { expireAfter } = this.#config;
    const { changed } = this.#memory;
    for (let slot = 0; slot < changed.length; slot++) {
      const last = changed[slot]!;
      if (last === 0 || rowStep - last <= expireAfter! || this.#pretrained.has(slot)) continue;
      const key = this.#index.keyOf(slot);
      this.#keep(slot);
      this.#undo.forget(key, slot);
      this.#remove(slot, key, rowStep);
      this.#tally.forgotten++;
    }
  }

  // Checkpoints.

  state(): RowTableState {
    const { decay, seed } = this.#now;
    return { began: this.#began, decay, index: this.#index.state(), seed };
  }

  /** Slots of rows that have values of their own, rising. */
  #used(): Int32Array {
    const { changed } = this.#memory;
    const slots = new Int32Array(this.#now.count);
    let at = 0;
    for (let slot = 0; slot < changed.length; slot++) if (changed[slot]! > 0) slots[at++] = slot;
    return slots;
  }

  restoreState({ began, decay, index }: RowTableState): void {
    this.#began = began;
    this.#now.decay = decay;
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
      if (sumsOf.length > 0) sumsOf[slot] = sums[i] ?? this.#now.decay;
      else if (i < sums.length) {
        scaleRow(theta, slot * width, width, Math.exp(this.#now.decay - sums[i]!));
      }
      if (pretrained[i] === 1) this.#pretrained.add(slot);
    }
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
    this.#now.decay = at.decay;
    this.#place(Uint32Array.from(keys), values, rowStep);
    for (const [i, key] of keys.entries()) {
      if (pretrained[i] === 1) this.#pretrained.add(this.#index.find(key));
    }
  }

  momentOf(id: number): CaptureMoment {
    return this.#captures.momentOf(id);
  }

  /** Adds what was kept of a capture, of a table that is being restored. */
  restoreCapture(id: number, at: CaptureMoment, kept: RowTensorsOfCapture): void {
    this.#captures.restore(id, at, this.#initialOf(at.seed), kept);
  }
}
