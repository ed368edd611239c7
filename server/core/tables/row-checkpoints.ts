import { MomentCopy, type MomentOfRows } from './moment-copy.ts';
import type { PretrainedRows } from './pretrained-rows.ts';
import type { RowCaptures } from './row-captures.ts';
import { type CaptureCopy, freshRoom, type RoomFor, RowCopy } from './row-copy.ts';
import type { RowIndex } from './row-index.ts';
import type { RowMemory } from './row-memory.ts';
import type { RowsNow } from './row-reader.ts';
import type { RowTensors } from './row-tensors.ts';
import { RowsOnDisk } from './rows-on-disk.ts';

/** How the rows of a table come to checkpoints: copies of one moment, whole or of what has changed since the one on disk. */
export class RowCheckpoints {
  readonly #table: string;
  readonly #memory: RowMemory;
  readonly #index: RowIndex;
  readonly #captures: RowCaptures;
  readonly #pretrained: PretrainedRows;
  readonly #now: Readonly<RowsNow>;
  /** The table notes there what becomes of its rows. */
  readonly onDisk: RowsOnDisk;
  /** The copy that a checkpoint is written from; null: it is complete, or there is none. */
  #copying: RowCopy | MomentCopy | null = null;

  /** @param table its name. */
  constructor(
    table: string,
    of: {
      readonly memory: RowMemory;
      readonly index: RowIndex;
      readonly captures: RowCaptures;
      readonly pretrained: PretrainedRows;
      readonly now: Readonly<RowsNow>;
    },
  ) {
    this.#table = table;
    this.#memory = of.memory;
    this.#index = of.index;
    this.#captures = of.captures;
    this.#pretrained = of.pretrained;
    this.#now = of.now;
    this.onDisk = new RowsOnDisk(of.index.capacity);
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
      this.#pretrained.count > 0 ? (slot: number) => this.#pretrained.has(slot) : null;
    const rows =
      since === null
        ? { since: 0, until, count: this.#now.count, gone: [], isPretrained }
        : { since, until, count: this.onDisk.changed, gone: this.onDisk.gone, isPretrained };
    return new RowCopy(this.#memory, this.#index, rows, room);
  }

  /**
   * Begins to copy the rows of this moment for a checkpoint; see `RowCopy`.
   * @param rowStep of now. @param changes those alone that the checkpoint on disk does not have.
   */
  beginCopy(rowStep: number, changes: boolean, room: RoomFor): RowCopy {
    this.#copying?.finish();
    const { step } = this.onDisk;
    if (changes && step === null) throw new Error(`table ${this.#table} has no rows on disk`);
    this.#copying = this.#copyOf(changes ? step : null, rowStep, room);
    this.onDisk.begin(rowStep);
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
    const at = { rowStep, decay: this.#now.decay, seed: this.#now.seed };
    const then =
      id === null
        ? { at, rows: new Map(), kept: { rows: 0, initial: 0 }, pretrained: null }
        : this.#captures.of(id);
    const of: MomentOfRows = {
      then,
      count: this.#now.count,
      isPretrained:
        (then.pretrained?.size ?? this.#pretrained.count) === 0
          ? null
          : (key) => then.pretrained?.has(key) ?? this.#pretrained.has(this.#index.find(key)),
    };
    return new MomentCopy(this.#memory, this.#index, of, room);
  }

  /** The row of a slot is about to change. */
  before(slot: number): void {
    this.#copying?.before(slot);
  }

  /** All rows are about to begin afresh. */
  reset(): void {
    this.#copying?.finish();
    this.#copying = null;
    this.onDisk.reset();
    this.#captures.endWriting(false);
  }

  /** The rows are copied. */
  copied(): void {
    this.#copying = null;
  }

  /** @param isWritten the checkpoint is on disk. */
  endCopy(isWritten: boolean): void {
    this.#copying = null;
    // The checkpoint was of another kind, or all rows have begun afresh since.
    if (!this.onDisk.isWriting) return;
    this.onDisk.end(isWritten);
    this.#captures.endWriting(isWritten);
  }

  /** Bytes of a checkpoint's rows: of all, and of those alone that have changed since the one on disk; null: all have to be written. */
  copyBytes(): { readonly all: number; readonly changed: number | null } {
    const { width, stateSize, decays } = this.#memory;
    const rowBytes = 4 * (width + stateSize + 5 + (decays.length > 0 ? 3 : 0));
    const { step, changed } = this.onDisk;
    return { all: rowBytes * this.#now.count, changed: step === null ? null : rowBytes * changed };
  }

  /** All rows that have values of their own, now or at a capture, as they are when they are read. @param rowStep of now. */
  rows(rowStep: number, id: number | null): MomentCopy {
    const copy = this.#copyOfMoment(rowStep, id, freshRoom);
    copy.finish();
    return copy;
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
}
