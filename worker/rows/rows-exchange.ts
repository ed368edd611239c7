import type { RunConfig } from '../../shared/config.ts';
import { DownpourError } from '../../shared/errors.ts';
import { LIMITS } from '../../shared/limits.ts';
import type { Push, Work } from '../../shared/protocol.ts';
import type { PullRows } from '../../shared/row-messages.ts';
import { cutKeys, cutRows, mergeRows } from '../../shared/row-shards.ts';
import {
  decodeRows,
  encodeKeys,
  encodeRows,
  keyBytes,
  type RowEncoding,
  type RowShape,
  rowBytes,
  type TableRows,
  writeKeys,
} from '../../shared/rows.ts';
import { rowPushEncoding } from '../../shared/tables.ts';
import { findKeys } from './find-keys.ts';
import { type FrozenRows, KeptRoom, KeptRows } from './kept-rows.ts';
import type { RowSource } from './model-rows.ts';
import { type RowsAnswer, RowsLost } from './requests.ts';

/** What is needed of the connection. */
export interface RowPuller {
  /** @param keys as `encodeKeys` has them. @throws RowsLost; DownpourError DP_ROWS_INVALID. */
  pullRows(message: Omit<PullRows, 'type' | 'request'>, keys: Uint8Array): Promise<RowsAnswer>;
}

/** Rows as the server had them. */
interface HeldRows {
  readonly rows: readonly TableRows[];
  /** Row step: the smallest of all answers that brought them. */
  readonly step: number;
  readonly generation: number;
}

/** What a push, or the part of it for one shard, says of rows, and what its payload ends with. */
export interface RowsOfPush {
  readonly rows: NonNullable<Push['rows']>;
  readonly tail: Uint8Array;
}

/**
 * The rows of a worker's minibatches. The answer to a push brings those of the next minibatch; what no answer has brought is
 * pulled. Rows of another generation are of no use. Frozen rows are asked for once in a generation.
 */
export class RowsExchange {
  readonly #run: string;
  readonly #shapes: readonly RowShape[];
  readonly #encoding: ReturnType<typeof rowPushEncoding>;
  readonly #puller: RowPuller;
  readonly #shards: number;
  /** Rows of each table that are never changed; null: it has none. */
  readonly #frozen: readonly (FrozenRows | null)[];
  readonly #kept: readonly (KeptRows | null)[];
  /** The generation of the rows that are kept. */
  #generation = -1;
  #held: HeldRows | null = null;

  constructor(
    run: string,
    shapes: readonly RowShape[],
    config: Pick<RunConfig, 'compression'> & Partial<Pick<RunConfig, 'tables'>>,
    puller: RowPuller,
    /** That have the rows together. */
    shards = 1,
    frozenOf: (table: string) => FrozenRows | null = () => null,
    room = new KeptRoom(),
  ) {
    this.#shards = shards;
    this.#run = run;
    this.#shapes = shapes;
    this.#encoding = rowPushEncoding(config.compression.push);
    this.#puller = puller;
    this.#frozen = shapes.map(({ name }) =>
      config.tables?.[name]?.learningRate === 0 ? ALL_FROZEN : frozenOf(name),
    );
    this.#kept = this.#frozen.map(
      (frozen, t) => frozen && new KeptRows(shapes[t]!.width, frozen, room),
    );
  }

  /** Takes the rows of a `work`. @param parts that came with it, from each shard. */
  receive({ rows, generation }: Work, parts: readonly Uint8Array[] | undefined): void {
    if (!rows || !parts) return;
    this.#hold({ rows: this.#decode(parts, rows.encoding), step: rows.step, generation });
  }

  #hold(held: HeldRows): void {
    this.#held = held;
    if (held.generation !== this.#generation) {
      for (const kept of this.#kept) kept?.clear();
      this.#generation = held.generation;
    }
    for (const [t, kept] of this.#kept.entries()) kept?.keep(held.rows[t]!);
  }

  /** @returns the keys of rows that are not kept. */
  #unknown(keys: readonly Uint32Array[]): readonly Uint32Array[] {
    return keys.map((own, t) => this.#kept[t]?.unknown(own) ?? own);
  }

  /** The rows at hand, with those that are kept. @returns null: some are missing, or of another generation. */
  #atHand(keys: readonly Uint32Array[], generation: number): HeldRows | null {
    const held = this.#held;
    if (held?.generation !== generation) return null;
    const rows: TableRows[] = [];
    for (const [t, own] of keys.entries()) {
      const kept = this.#kept[t];
      const others = held.rows[t]!;
      const all = kept ? kept.together(own, others) : findKeys(own, others.keys) ? others : null;
      if (!all) return null;
      rows.push(all);
    }
    return { ...held, rows };
  }

  #decode(parts: readonly Uint8Array[], encoding: RowEncoding): readonly TableRows[] {
    const all = parts.map((bytes) => decodeRows(this.#shapes, bytes, encoding));
    return this.#shapes.map(({ width }, t) =>
      mergeRows(
        all.map((rows) => rows[t]!),
        width,
      ),
    );
  }

  /** The rows at hand are too old, or a push that was computed from them was rejected: others are pulled. */
  reset(): void {
    this.#held = null;
  }

  /**
   * Rows for a training step. @param generation of the parameters that it is computed at.
   * @throws RowsLost: there are none for these parameters any more.
   */
  async rowsFor(keys: readonly Uint32Array[], generation: number): Promise<HeldRows> {
    const held = this.#atHand(keys, generation);
    if (held) return held;
    const isOlder = this.#generation !== generation;
    const pulled = await this.#pull(isOlder ? keys : this.#unknown(keys), null);
    if (pulled.generation !== generation) {
      throw new RowsLost('the parameters have gone back meanwhile');
    }
    this.#hold(pulled);
    const all = this.#atHand(keys, generation);
    if (!all)
      throw new DownpourError('DP_ROWS_INVALID', 'the server gave other rows than asked for');
    return all;
  }

  /** @param evaluation its rows as they were when it began; null: the rows as they are now. */
  sourceOf(evaluation: number | null): RowSource {
    return async (keys) => (await this.#pull(keys, evaluation)).rows;
  }

  /**
   * @param gradients of the rows of a step. @param step of these rows. @param wanted keys of the next minibatch; null: unknown.
   * @returns one for each shard.
   */
  pushed(
    gradients: readonly TableRows[],
    step: number,
    wanted: readonly Uint32Array[] | null,
  ): readonly RowsOfPush[] {
    const count = this.#shards;
    const moving = gradients.map((rows, t) => withoutFrozen(rows, this.#frozen[t]!));
    const unknown = wanted && this.#unknown(wanted);
    if (count === 1) return [this.#pushed(moving, step, unknown)];
    const cut = moving.map((rows, t) => cutRows(rows, this.#shapes[t]!.width, count));
    const keys = unknown?.map((each) => cutKeys(each, count)) ?? null;
    return Array.from({ length: count }, (_, shard) =>
      this.#pushed(
        cut.map((parts) => parts[shard]!),
        step,
        keys?.map((parts) => parts[shard]!) ?? null,
      ),
    );
  }

  #pushed(
    gradients: readonly TableRows[],
    step: number,
    wanted: readonly Uint32Array[] | null,
  ): RowsOfPush {
    const room = wanted ? keyBytes(wanted) : 0;
    const tail = encodeRows(this.#shapes, gradients, this.#encoding, room);
    const bytes = tail.length - room;
    let at = bytes;
    for (const keys of wanted ?? []) at = writeKeys(keys, tail, at);
    const rows = { step, encoding: this.#encoding, bytes, wanted: room };
    return { rows, tail };
  }

  /** More rows than a message may have come in several. */
  async #pull(keys: readonly Uint32Array[], evaluation: number | null): Promise<HeldRows> {
    const answers: HeldRows[] = [];
    for (const some of piecesOf(this.#shapes, keys)) {
      const message = { run: this.#run, evaluation };
      const { step, generation, encoding, parts } = await this.#puller.pullRows(
        message,
        encodeKeys(some),
      );
      answers.push({ rows: this.#decode(parts, encoding), step, generation });
    }
    const [first] = answers;
    if (answers.length === 1) return first!;
    if (answers.some(({ generation }) => generation !== first!.generation)) {
      throw new RowsLost('the parameters have gone back meanwhile');
    }
    return {
      rows: this.#shapes.map(({ width }, t) =>
        mergeRows(
          answers.map(({ rows }) => rows[t]!),
          width,
        ),
      ),
      step: Math.min(...answers.map(({ step }) => step)),
      generation: first!.generation,
    };
  }
}

const ALL_FROZEN: FrozenRows = { has: () => true };

/** @param rows their values are moved together where some are left out. */
function withoutFrozen(rows: TableRows, frozen: FrozenRows | null): TableRows {
  if (frozen === null || rows.keys.length === 0) return rows;
  const width = rows.values.length / rows.keys.length;
  const keys = rows.keys.filter((key) => !frozen.has(key));
  let to = 0;
  for (const [i, key] of rows.keys.entries()) {
    if (frozen.has(key)) continue;
    rows.values.copyWithin(to, i * width, (i + 1) * width);
    to += width;
  }
  return { keys, values: rows.values.subarray(0, to) };
}

/** Keys in pieces whose rows fit into a message. */
function* piecesOf(
  shapes: readonly RowShape[],
  keys: readonly Uint32Array[],
): Generator<readonly Uint32Array[]> {
  const counts = keys.map(({ length }) => length);
  const total = counts.reduce((sum, count) => sum + count, 0);
  if (total <= LIMITS.rowsPerMessageMax && rowBytes(shapes, counts, 'f32') <= LIMITS.rowBytesMax) {
    yield keys;
    return;
  }
  const halves = keys.map((own) => [
    own.subarray(0, own.length >> 1),
    own.subarray(own.length >> 1),
  ]);
  yield* piecesOf(
    shapes,
    halves.map(([half]) => half!),
  );
  yield* piecesOf(
    shapes,
    halves.map(([, half]) => half!),
  );
}

/** @throws DownpourError DP_ROWS_INVALID: the exchange knows no rows. */
export function mustPull(exchange: Partial<RowPuller>): RowPuller {
  if (exchange.pullRows) return exchange as RowPuller;
  throw new DownpourError('DP_USAGE', 'the model has tables, and this connection knows no rows');
}
