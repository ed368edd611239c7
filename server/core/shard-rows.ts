import type { RunConfig } from '../../shared/config.ts';
import { DownpourError, errorText } from '../../shared/errors.ts';
import type { RowTableFacts } from '../../shared/rest.ts';
import { scaleOf } from './consistency.ts';
import type { RowsLanded } from './run/calls.ts';
import type { RowsUpdate } from './shard-command.ts';
import type { PushedRows, RunTables } from './tables/run-tables.ts';

/**
 * The rows that a shard has of a run's tables. What it does with them is what the coordinator has decided, as with its
 * range of the vector; so it has the same row step after each command.
 */

/** What of a part of a push is rows. */
export interface PartOfRows {
  readonly payload: Uint8Array;
  /** Absent: none. */
  readonly rows?: PushedRows | undefined;
}

/** A part without rows and keys. @throws DownpourError DP_ROWS_INVALID: the part is shorter than it says. */
export function densePart({ payload, rows }: PartOfRows): Uint8Array {
  if (!rows) return payload;
  const { bytes, wanted } = rows;
  const dense = payload.length - bytes - wanted;
  if (dense >= 0) return payload.subarray(0, dense);
  throw new DownpourError(
    'DP_ROWS_INVALID',
    `a part says ${bytes} bytes of rows and ${wanted} of keys; its payload has ${payload.length}`,
  );
}

export class ShardRows {
  readonly tables: RunTables;
  readonly #config: RunConfig;
  /** Keys of the rows that pushes wanted, by session and sequence, the newest last. */
  readonly #wanted = new Map<string, Map<number, readonly Uint32Array[]>>();
  /** What was told of its rows last. */
  #told = '';

  constructor(tables: RunTables, config: RunConfig) {
    this.tables = tables;
    this.#config = config;
  }

  /**
   * Measures the rows of a part that has landed, and notes the keys that it wants.
   * @param most pushes of a session whose keys are kept.
   * @returns what the coordinator is told.
   */
  landed(
    { session, sequence }: { readonly session: string; readonly sequence: number },
    part: PartOfRows,
    limit: number,
    most: number,
  ): RowsLanded {
    const { tables } = this;
    const { step = 0 } = part.rows ?? {};
    const at = { step, rowStep: tables.rowStep };
    try {
      tables.stage(part.payload, part.rows);
      const wanted = tables.takeWanted();
      if (wanted) this.#want(session, sequence, wanted, most);
      const staleness = tables.staleness();
      return { ...at, staleness, squares: tables.squares(limit), problem: null };
    } catch (error) {
      return { ...at, staleness: 0, squares: 0, problem: errorText(error) };
    }
  }

  #want(session: string, sequence: number, keys: readonly Uint32Array[], most: number): void {
    let ofSession = this.#wanted.get(session);
    if (!ofSession) {
      ofSession = new Map();
      this.#wanted.set(session, ofSession);
    }
    ofSession.set(sequence, keys);
    if (ofSession.size > most) ofSession.delete(ofSession.keys().next().value!);
  }

  /** The worker is gone. */
  leave(session: string): void {
    this.#wanted.delete(session);
  }

  /** Updates the rows of a part. @returns false: one overflowed, and all are as before. */
  apply({ payload, rows }: PartOfRows, { rate, clip, workers }: RowsUpdate): boolean {
    const { tables } = this;
    const { consistency } = this.#config;
    // Its keys were taken when it landed.
    const wanted = rows?.wanted ?? 0;
    const own = payload.subarray(0, payload.length - wanted);
    tables.stage(own, rows && { ...rows, wanted: 0 });
    const isWell = tables.apply(rate, clip, (staleness) =>
      scaleOf(consistency, staleness, workers),
    );
    if (!isWell) tables.pass();
    return isWell;
  }

  /** Takes the last `apply` back. Its row step stays, since the other shards have made it. */
  undo(): void {
    this.tables.undo();
    this.tables.pass();
  }

  /** The rows that a push wanted. Where its keys are not known, there are none, and the worker pulls. */
  wanted(session: string, sequence: number): { bytes: Uint8Array; encoding: 'f32' | 'bf16' } {
    const ofSession = this.#wanted.get(session);
    const keys = ofSession?.get(sequence) ?? this.tables.shapes.map(() => new Uint32Array());
    for (const earlier of ofSession?.keys() ?? []) {
      if (earlier <= sequence) ofSession!.delete(earlier);
    }
    const encoding = this.tables.pullEncoding;
    return { bytes: this.tables.read(keys, encoding, null), encoding };
  }

  /** @param keys as `encodeKeys` has them. @param capture null, or forgotten meanwhile: the present rows. */
  read(keys: Uint8Array, encoding: 'f32' | 'bf16', capture: number | null): Uint8Array {
    const { tables } = this;
    const isThere = capture !== null && tables.hasCapture(capture);
    return tables.read(tables.readOwnKeys(keys), encoding, isThere ? capture : null);
  }

  /** What is told of its rows; null: nothing new. */
  news(): RowTableFacts[] | null {
    const facts = this.tables.facts();
    const text = JSON.stringify(facts);
    if (text === this.#told) return null;
    this.#told = text;
    return facts;
  }
}
