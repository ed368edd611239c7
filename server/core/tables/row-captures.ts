import { wholeKeys } from '../../../shared/row-groups.ts';
import type { InitialRow } from './initial-rows.ts';
import { CaptureCopy, type CapturedCounts, type RoomFor } from './row-copy.ts';
import type { RowTensors } from './row-tensors.ts';

/**
 * Moments of a table that are looked at later: an evaluation, the best parameters. A capture is a row step. A row that
 * changes for the first time after it is kept first, as it was; all others still are as they were then.
 */

/** When a capture was made. */
export interface CaptureMoment {
  readonly rowStep: number;
  readonly decay: number;
  readonly seed: number;
  /** In a checkpoint: all rows have gone since, so which of them were those of a file is kept with the capture. */
  readonly hasFlags?: boolean;
}

export interface RowCapture {
  readonly at: CaptureMoment;
  readonly initial: InitialRow;
  /** Rows that have changed since, by key, as they were. Null: the row had its initial values. Never changed, only added to. */
  readonly rows: Map<number, Float32Array | null>;
  /** Keys of the rows that began with the values of a file, kept when all rows went; null: those that the table says now. */
  pretrained: ReadonlySet<number> | null;
  /** Counts of `rows`. */
  readonly kept: { rows: number; initial: number };
  /** The first ones, which the checkpoint on disk has, and which the one has that is being written; null: it has no such capture. */
  onDisk: CapturedCounts | null;
  writing: CapturedCounts | null;
}

/** What a capture has kept, in a checkpoint. */
export interface RowTensorsOfCapture extends Pick<RowTensors, 'keys' | 'values'> {
  /** Keys of rows that had their initial values, shape [n, 2]. */
  readonly initial: Float32Array;
  /** Keys of the rows that were those of a file, if its moment has flags, shape [n, 2]. */
  readonly fromFile: Float32Array;
}

/** Writes a row that has not changed since a capture, as it was then. @param out shape [width]. */
export type ReadCaptured = (key: number, then: RowCapture, out: Float32Array) => void;

export class RowCaptures {
  readonly #table: string;
  readonly #width: number;
  readonly #read: ReadCaptured;
  readonly #captures = new Map<number, RowCapture>();

  constructor(table: string, width: number, read: ReadCaptured) {
    this.#table = table;
    this.#width = width;
    this.#read = read;
  }

  get isEmpty(): boolean {
    return this.#captures.size === 0;
  }

  has(id: number): boolean {
    return this.#captures.has(id);
  }

  make(id: number, at: CaptureMoment, initial: InitialRow): void {
    const none = { pretrained: null, onDisk: null, writing: null };
    this.#captures.set(id, {
      at,
      initial,
      rows: new Map(),
      kept: { rows: 0, initial: 0 },
      ...none,
    });
  }

  forget(id: number): void {
    this.#captures.delete(id);
  }

  of(id: number): RowCapture {
    const capture = this.#captures.get(id);
    if (!capture) throw new Error(`table ${this.#table} has no capture ${id}`);
    return capture;
  }

  /** The row of a key is about to change. @param last row step of its last change; 0: it has its initial values. */
  keep(key: number, last: number): void {
    for (const capture of this.#captures.values()) {
      const { at, rows } = capture;
      // It was kept before, or the capture is older than its last change, before which it was kept.
      if (last > at.rowStep || rows.has(key)) continue;
      if (last === 0) {
        add(capture, key, null);
        continue;
      }
      const row = new Float32Array(this.#width);
      this.#read(key, capture, row);
      add(capture, key, row);
    }
  }

  /** All rows go. @param keys of those that began with the values of a file. */
  keepPretrained(keys: ReadonlySet<number>): void {
    for (const capture of this.#captures.values()) capture.pretrained ??= keys;
  }

  /**
   * Copies what was kept up to now.
   * @param changes without what the checkpoint on disk has, if it has the capture.
   */
  copy(id: number, changes: boolean, room: RoomFor): CaptureCopy {
    const capture = this.of(id);
    const { onDisk } = capture;
    return new CaptureCopy(capture, this.#width, (changes && onDisk) || NOTHING, room);
  }

  /** A checkpoint of this moment is being written. */
  beginWriting(id: number): void {
    const capture = this.of(id);
    capture.writing = { ...capture.kept };
  }

  endWriting(isWritten: boolean): void {
    for (const capture of this.#captures.values()) {
      // Others are not in the checkpoint that is the newest now.
      if (isWritten) capture.onDisk = capture.writing;
      capture.writing = null;
    }
  }

  /** As a checkpoint has it. */
  momentOf(id: number): CaptureMoment {
    const { at, pretrained } = this.of(id);
    return pretrained ? { ...at, hasFlags: true } : at;
  }

  /** Adds what was kept of a capture. */
  restore(
    id: number,
    { hasFlags = false, ...at }: CaptureMoment,
    initial: InitialRow,
    kept: RowTensorsOfCapture,
  ): void {
    if (!this.#captures.has(id)) this.make(id, at, initial);
    const capture = this.of(id);
    if (hasFlags) {
      capture.pretrained = new Set([...(capture.pretrained ?? []), ...wholeKeys(kept.fromFile)]);
    }
    for (const key of wholeKeys(kept.initial)) add(capture, key, null);
    for (const [i, key] of wholeKeys(kept.keys).entries()) {
      add(capture, key, kept.values.slice(i * this.#width, (i + 1) * this.#width));
    }
  }
}

function add({ rows, kept }: RowCapture, key: number, row: Float32Array | null): void {
  if (rows.has(key)) return;
  rows.set(key, row);
  kept.rows++;
  if (!row) kept.initial++;
}

const NOTHING: CapturedCounts = { rows: 0, initial: 0 };
