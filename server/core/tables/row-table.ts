import { DownpourError } from '../../../shared/errors.ts';
import { LIMITS } from '../../../shared/limits.ts';
import { MEMORY_BYTES_MAX, Memory, regionBytes } from '../../../shared/memory.ts';
import { ALL_ROWS, type RowShare } from '../../../shared/row-shards.ts';
import {
  decodeRowValues,
  type EncodedRows,
  type RowEncoding,
  type TableRows,
} from '../../../shared/rows.ts';
import type { TableConfig } from '../../../shared/tables.ts';
import type { Clip } from '../fused.ts';
import type { CopyVector } from '../vectors.ts';
import { createInitialRow, type InitialRow } from './initial-rows.ts';
import {
  type CaptureMoment,
  type RowCapture,
  RowCaptures,
  type RowTensorsOfCapture,
} from './row-captures.ts';
import { createRowIndex, type RowIndex, type RowIndexState, rowCapacity } from './row-index.ts';
import { createRowRule, type RowRule } from './row-rules.ts';
import {
  type RowTensors,
  splitDoubles,
  splitKeys,
  wholeDoubles,
  wholeKeys,
} from './row-tensors.ts';

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

/** A row that an update has changed, as it was before. */
interface Undo {
  /** Slots of the rows, and whether each had values of its own. */
  readonly slots: number[];
  readonly fresh: boolean[];
  readonly changed: number[];
  readonly decays: number[];
  values: Float32Array;
  decay: number;
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
  readonly #stateSize: number;
  /** Shape [capacity, width]. */
  readonly #theta: Float32Array;
  /** Shape [capacity, stateSize]. */
  readonly #state: Float32Array;
  /** The row step of the last change of each slot; 0: its row has its initial values, and takes no memory. */
  readonly #changed: Float64Array;
  /** The sum of `#decay` up to which each row has decayed; empty: the table does not decay. */
  readonly #decays: Float64Array;
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
  // What is staged: gradients of rows, not yet clipped.
  #keys: Uint32Array = new Uint32Array();
  #gradients: Float32Array = new Float32Array();
  readonly #undo: Undo = {
    ...{ slots: [], fresh: [], changed: [], decays: [] },
    ...{ values: new Float32Array(), decay: 0 },
  };

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
    this.#stateSize = this.#rule.stateSize(width);
    const rows = rowCapacity(config, share);
    const decaying = weightDecay > 0 ? rows : 0;
    const sizes = [4 * rows * width, 4 * rows * this.#stateSize, 8 * rows, 8 * decaying];
    const bytes = sizes.reduce((sum, size) => sum + regionBytes(size), 0);
    if (bytes > MEMORY_BYTES_MAX) throw tooLarge(name, bytes, share);
    this.#index = createRowIndex(config, share);
    const memory = new Memory(bytes);
    const [theta, state, changed, decays] = sizes.map((size) => memory.take(size));
    this.#theta = memory.floats(theta!, rows * width);
    this.#state = memory.floats(state!, rows * this.#stateSize);
    this.#changed = new Float64Array(memory.memory.buffer, changed!, rows);
    this.#decays = new Float64Array(memory.memory.buffer, decays!, decaying);
    this.#seed = seed;
    this.#initial = createInitialRow(config.initializer, seed, name);
    this.#captures = new RowCaptures(name, width, (key, then, out) =>
      this.#readRow(key, then, out),
    );
  }

  /** Gradients of rows that were dropped, since their keys have no row. */
  get dropped(): number {
    return this.#index.dropped;
  }

  /** Rows with values of their own. */
  get count(): number {
    return this.#count;
  }

  /** Rows that began with the values of a file. */
  get pretrainedCount(): number {
    return this.#pretrainedCount;
  }

  /** All rows have their initial values; captures stay as they are. */
  reset(seed: number): void {
    if (!this.#captures.isEmpty) for (const slot of this.#used()) this.#keep(slot);
    this.#seed = seed;
    this.#initial = createInitialRow(this.#config.initializer, seed, this.name);
    this.#index.clear();
    // Pages that nobody has written to take no memory.
    if (this.#count > 0) this.#changed.fill(0);
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

  /** Takes the gradients of a push in. @throws DownpourError DP_ROWS_INVALID: they are too many. */
  stage({ keys, values }: EncodedRows, encoding: RowEncoding): void {
    const size = keys.length * this.width;
    if (4 * size > LIMITS.rowBytesMax) {
      throw new DownpourError(
        'DP_ROWS_INVALID',
        `${keys.length} rows of table '${this.name}' take ${4 * size} bytes in f32; allowed: ${LIMITS.rowBytesMax}: push fewer rows at once`,
      );
    }
    this.#keys = keys;
    if (this.#gradients.length < size) this.#gradients = new Float32Array(size);
    decodeRowValues(encoding, values, this.width, this.#gradients.subarray(0, size));
  }

  /** Σ g² of what is staged, with elements cut to ±limit; NaN: not all of it is finite. */
  squares(limit: number): number {
    let sum = 0;
    const size = this.#keys.length * this.width;
    const gradients = this.#gradients;
    for (let i = 0; i < size; i++) {
      const g = gradients[i]!;
      // Infinity would be cut.
      if (g - g !== 0) return Number.NaN;
      const cut = Math.max(-limit, Math.min(limit, g));
      sum += cut * cut;
    }
    return sum;
  }

  /** Steps between the reading of a row and its last change, the most of what is staged. */
  staleness(readStep: number): number {
    let most = 0;
    for (const key of this.#keys) {
      const slot = this.#find(key);
      if (slot >= 0) most = Math.max(most, this.#changed[slot]! - readStep);
    }
    return most;
  }

  /**
   * Updates the rows that are staged.
   * @returns false: a row overflowed. `undo` follows, then or later.
   */
  apply(update: TableUpdate): boolean {
    const { rowStep, rate, clip, scaleOf, readStep } = update;
    const { learningRate, pretrainedRate, weightDecay, maxNorm, expireAfter } = this.#config;
    const { width } = this;
    this.#begin();
    if (learningRate === 0) return true;
    const own = rate * learningRate;
    if (weightDecay > 0) this.#decay += Math.log(Math.max(KEEP_MIN, 1 - own * weightDecay));
    const sweepSteps = Math.ceil((expireAfter ?? Infinity) / SWEEPS);
    if (expireAfter !== null && rowStep % sweepSteps === 0) this.#expire(rowStep);
    let finite = true;
    this.#clip(clip);
    const step = { rate: 0, step: rowStep - this.#began, age: 0 };
    for (let i = 0; i < this.#keys.length; i++) {
      const key = this.#keys[i]!;
      const slot = this.#index.admit(key);
      if (slot < 0) continue;
      const factor = this.#isPretrained(slot) ? pretrainedRate : 1;
      if (factor === 0) continue;
      const last = this.#changed[slot]!;
      this.#touch(slot, key, rowStep);
      const isNew = last <= this.#began;
      const stateAt = slot * this.#stateSize;
      if (isNew) this.#state.fill(this.#rule.initial, stateAt, stateAt + this.#stateSize);
      step.rate = own * factor * scaleOf(Math.max(0, last - readStep));
      step.age = isNew ? 0 : rowStep - last;
      const from = { values: this.#gradients, at: i * width, width };
      this.#rule.update(this.#theta, slot * width, from, this.#state, stateAt, step);
      if (!this.#settle(slot, maxNorm)) finite = false;
    }
    return finite;
  }

  #clip({ limit, factor }: Clip): void {
    if (limit === Infinity && factor === 1) return;
    const size = this.#keys.length * this.width;
    for (let i = 0; i < size; i++) {
      const g = this.#gradients[i]!;
      this.#gradients[i] = Math.max(-limit, Math.min(limit, g)) * factor;
    }
  }

  /** The row is about to change: it is kept for those who look at it as it was, and brought up to date. */
  #touch(slot: number, key: number, rowStep: number): void {
    const { width } = this;
    const last = this.#changed[slot]!;
    const start = slot * width;
    this.#captures.keep(key, last);
    this.#note(slot, last);
    if (last === 0) this.#initial(key, this.#theta.subarray(start, start + width));
    if (this.#decays.length > 0) {
      const factor = Math.exp(this.#decay - (last === 0 ? 0 : this.#decays[slot]!));
      const theta = this.#theta;
      for (let j = start; j < start + width; j++) theta[j] = theta[j]! * factor;
      this.#decays[slot] = this.#decay;
    }
    this.#mark(slot, rowStep);
  }

  /** @param rowStep of its last change; 0: it has its initial values again. */
  #mark(slot: number, rowStep: number): void {
    this.#count += Number(rowStep > 0) - Number(this.#changed[slot]! > 0);
    this.#changed[slot] = rowStep;
  }

  /** Enforces the limit of the norm. @returns whether the row is finite. */
  #settle(slot: number, maxNorm: number | null): boolean {
    const { width } = this;
    const start = slot * width;
    const theta = this.#theta;
    let squares = 0;
    for (let i = start; i < start + width; i++) squares += theta[i]! * theta[i]!;
    if (!Number.isFinite(squares)) return false;
    const norm = Math.sqrt(squares);
    if (maxNorm === null || norm <= maxNorm) return true;
    const factor = maxNorm / norm;
    for (let i = start; i < start + width; i++) this.#theta[i] = this.#theta[i]! * factor;
    return true;
  }

  // What an update is undone by.

  #begin(): void {
    const undo = this.#undo;
    undo.slots.length = undo.fresh.length = undo.changed.length = undo.decays.length = 0;
    undo.decay = this.#decay;
    const size = this.#keys.length * (this.width + this.#stateSize);
    if (undo.values.length < size) undo.values = new Float32Array(size);
  }

  #note(slot: number, last: number): void {
    const { slots, fresh, changed, decays, values } = this.#undo;
    const { width } = this;
    const size = width + this.#stateSize;
    const at = slots.length * size;
    slots.push(slot);
    fresh.push(last === 0);
    changed.push(last);
    decays.push(this.#decays[slot] ?? 0);
    copyRow(this.#theta, slot * width, values, at, width);
    copyRow(this.#state, slot * this.#stateSize, values, at + width, this.#stateSize);
  }

  /** Takes the last `apply` back. */
  undo(): void {
    const { slots, fresh, changed, decays, values, decay } = this.#undo;
    const { width } = this;
    const size = width + this.#stateSize;
    for (const [i, slot] of slots.entries()) {
      this.#mark(slot, changed[i]!);
      if (this.#decays.length > 0) this.#decays[slot] = decays[i]!;
      if (fresh[i]) this.#index.remove(this.#index.keyOf(slot));
      this.#theta.set(values.subarray(i * size, i * size + width), slot * width);
      const state = values.subarray(i * size + width, (i + 1) * size);
      this.#state.set(state, slot * this.#stateSize);
    }
    slots.length = 0;
    this.#decay = decay;
  }

  // Reading.

  /** −1: its values are the initial ones. */
  #find(key: number): number {
    const slot = this.#index.find(key);
    return slot < 0 || this.#changed[slot] === 0 ? -1 : slot;
  }

  /**
   * Rows as they are, or as they were. Changes nothing.
   * @param capture null: as they are. @param out shape [keys.length, width].
   */
  read(keys: Uint32Array, capture: number | null, out: Float32Array): void {
    const { width } = this;
    const then = capture === null ? null : this.#captures.of(capture);
    const isPlain = then === null && this.#decays.length === 0;
    for (let i = 0; i < keys.length; i++) {
      const slot = isPlain ? this.#find(keys[i]!) : -1;
      if (slot < 0) this.#readRow(keys[i]!, then, out.subarray(i * width, (i + 1) * width));
      else copyRow(this.#theta, slot * width, out, i * width, width);
    }
  }

  #readRow(key: number, then: RowCapture | null, out: Float32Array): void {
    const decay = then ? then.at.decay : this.#decay;
    const kept = then?.rows.get(key);
    if (kept) {
      out.set(kept);
      return;
    }
    const slot = kept === null ? -1 : this.#find(key);
    if (slot < 0) (then?.initial ?? this.#initial)(key, out);
    else out.set(this.#theta.subarray(slot * this.width, (slot + 1) * this.width));
    if (this.#decays.length === 0) return;
    const factor = Math.exp(decay - (slot < 0 ? 0 : this.#decays[slot]!));
    for (let j = 0; j < out.length; j++) out[j] = out[j]! * factor;
  }

  // Captures.

  capture(id: number, rowStep: number): void {
    const at = { rowStep, decay: this.#decay, seed: this.#seed };
    this.#captures.make(id, at, this.#initial);
  }

  forget(id: number): void {
    this.#captures.forget(id);
  }

  #keep(slot: number): void {
    this.#captures.keep(this.#index.keyOf(slot), this.#changed[slot]!);
  }

  /** All rows as they were then; those that were changed since are changed by this. */
  replace(id: number, rowStep: number): void {
    const then = this.#captures.of(id);
    // It will have no rows of its own: all are as they were.
    this.#captures.forget(id);
    // Those that came later go first, so that there is room for those that went.
    for (const [key, row] of then.rows) {
      const slot = row === null ? this.#index.find(key) : -1;
      if (slot < 0) continue;
      this.#keep(slot);
      this.#remove(slot, key);
    }
    for (const [key, row] of then.rows) {
      if (row === null) continue;
      const slot = this.#index.insert(key);
      this.#keep(slot);
      this.#theta.set(row, slot * this.width);
      this.#mark(slot, rowStep);
      if (this.#decays.length > 0) this.#decays[slot] = then.at.decay;
    }
    this.#captures.make(id, { ...then.at, rowStep }, then.initial);
    this.#decay = then.at.decay;
    this.#seed = then.at.seed;
    this.#initial = then.initial;
  }

  /** The row has its initial values again. */
  #remove(slot: number, key: number): void {
    this.#index.remove(key);
    this.#mark(slot, 0);
  }

  /**
   * Rows that are staged begin with these values instead of those of the initializer.
   * @param arePretrained the values are those of a file. @throws DownpourError DP_LAYOUT_INVALID.
   */
  begin(rowStep: number, arePretrained = true): void {
    const { width } = this;
    for (const [i, key] of this.#keys.entries()) {
      const slot = this.#index.insert(key);
      if (slot < 0) throw full(this.name, this.#index.capacity);
      this.#theta.set(this.#gradients.subarray(i * width, (i + 1) * width), slot * width);
      this.#mark(slot, rowStep);
      if (arePretrained) this.#markPretrained(slot);
      if (this.#decays.length > 0) this.#decays[slot] = this.#decay;
    }
  }

  #isPretrained(slot: number): boolean {
    return this.#pretrainedCount > 0 && this.#pretrained[slot] === 1;
  }

  #markPretrained(slot: number): void {
    if (this.#pretrainedCount === 0) this.#pretrained = new Uint8Array(this.#changed.length);
    this.#pretrainedCount += 1 - this.#pretrained[slot]!;
    this.#pretrained[slot] = 1;
  }

  /** Rows that were in no push for too long are as if they had never been. */
  #expire(rowStep: number): void {
    const { expireAfter } = this.#config;
    for (let slot = 0; slot < this.#changed.length; slot++) {
      const last = this.#changed[slot]!;
      if (last === 0 || rowStep - last <= expireAfter! || this.#isPretrained(slot)) continue;
      this.#keep(slot);
      this.#remove(slot, this.#index.keyOf(slot));
    }
  }

  // Checkpoints.

  state(): RowTableState {
    return { began: this.#began, decay: this.#decay, index: this.#index.state() };
  }

  /** Rows that have values of their own, with all that belongs to them. */
  tensors(copy: CopyVector): RowTensors {
    const slots = this.#used();
    const { width } = this;
    const size = this.#stateSize;
    const values = new Float32Array(slots.length * width);
    const state = new Float32Array(slots.length * size);
    for (const [i, slot] of slots.entries()) {
      values.set(this.#theta.subarray(slot * width, (slot + 1) * width), i * width);
      state.set(this.#state.subarray(slot * size, (slot + 1) * size), i * size);
    }
    const keys = slots.map((slot) => this.#index.keyOf(slot));
    const of = (numbers: Float64Array) => Float64Array.from(slots, (slot) => numbers[slot]!);
    return {
      keys: copy(splitKeys(keys)),
      values: copy(values),
      state: copy(state),
      changed: copy(splitDoubles(of(this.#changed))),
      decays: copy(splitDoubles(this.#decays.length > 0 ? of(this.#decays) : new Float64Array())),
      pretrained: copy(this.#flagsOf(slots)),
    };
  }

  /** @returns empty: no row is pretrained. */
  #flagsOf(slots: readonly number[]): Float32Array {
    if (this.#pretrainedCount === 0) return new Float32Array();
    return Float32Array.from(slots, (slot) => this.#pretrained[slot] ?? 0);
  }

  #used(): number[] {
    const slots: number[] = [];
    for (const [slot, step] of this.#changed.entries()) if (step > 0) slots.push(slot);
    return slots;
  }

  restore(
    state: RowTableState,
    { keys, values, state: own, changed, decays, pretrained }: RowTensors,
  ): void {
    this.#began = state.began;
    this.#decay = state.decay;
    const { width } = this;
    const size = this.#stateSize;
    const steps = wholeDoubles(changed);
    const sums = wholeDoubles(decays);
    for (const [i, key] of wholeKeys(keys).entries()) {
      const slot = this.#index.insert(key);
      if (slot < 0) throw full(this.name, this.#index.capacity);
      this.#theta.set(values.subarray(i * width, (i + 1) * width), slot * width);
      this.#state.set(own.subarray(i * size, (i + 1) * size), slot * size);
      this.#mark(slot, steps[i]!);
      if (this.#decays.length > 0) this.#decays[slot] = sums[i]!;
      if (pretrained[i] === 1) this.#markPretrained(slot);
    }
    this.#index.restore(state.index);
  }

  /** All rows that have values of their own, now or at a capture, as they are when they are read. */
  rows(id: number | null): RowsAtMoment {
    const then = id === null ? null : this.#captures.of(id);
    const own = this.#used().filter((slot) => !then || this.#changed[slot]! <= then.at.rowStep);
    const kept = [...(then?.rows ?? [])].flatMap(([key, row]) => (row ? key : []));
    const all = new Set([...own.map((slot) => this.#index.keyOf(slot)), ...kept]);
    const keys = Uint32Array.from(all).sort();
    const values = new Float32Array(keys.length * this.width);
    this.read(keys, id, values);
    const now = { rowStep: 0, decay: this.#decay, seed: this.#seed };
    const slots = Array.from(keys, (key) => this.#index.find(key));
    return { keys, values, at: then?.at ?? now, pretrained: this.#flagsOf(slots) };
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
    this.#keys = Uint32Array.from(keys);
    this.#gradients = values;
    this.begin(rowStep, false);
    for (const [i, key] of keys.entries()) {
      if (pretrained[i] === 1) this.#markPretrained(this.#index.find(key));
    }
    this.#gradients = new Float32Array();
  }

  momentOf(id: number): CaptureMoment {
    return this.#captures.of(id).at;
  }

  /** Rows that have changed since a capture, as they were then. */
  captured(id: number): RowTensorsOfCapture {
    return this.#captures.tensors(id);
  }

  /** The same, of a table that is being restored. */
  restoreCapture(id: number, at: CaptureMoment, kept: RowTensorsOfCapture): void {
    const initial = createInitialRow(this.#config.initializer, at.seed, this.name);
    this.#captures.restore(id, at, initial, kept);
  }
}

/** By elements: two views cost more than the copy of a row. */
function copyRow(
  from: Float32Array,
  fromAt: number,
  to: Float32Array,
  toAt: number,
  count: number,
): void {
  for (let i = 0; i < count; i++) to[toAt + i] = from[fromAt + i]!;
}

/** All rows of a table that have values of their own. */
export interface RowsAtMoment extends TableRows {
  readonly at: CaptureMoment;
  /** As in `RowTensors`. */
  readonly pretrained: Float32Array;
}

const full = (name: string, capacity: number) =>
  new DownpourError(
    'DP_LAYOUT_INVALID',
    `table '${name}' has room for ${capacity} rows, and more are given: set tables.${name}.rowsMax higher`,
  );

const gib = (bytes: number) => `${(bytes / 2 ** 30).toFixed(1)} GiB`;

const tooLarge = (name: string, bytes: number, { count }: RowShare) =>
  new DownpourError(
    'DP_LAYOUT_INVALID',
    `table '${name}' with the state of its optimizer takes ${gib(bytes)}${count > 1 ? ` on each of ${count} shards` : ''}; one server or shard holds ${gib(MEMORY_BYTES_MAX)} of a table: start the server with --shards ${Math.ceil((bytes * count) / (0.95 * MEMORY_BYTES_MAX))}, use fewer or narrower rows, or the optimizer adagrad or sgd`,
  );
