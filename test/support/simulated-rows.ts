import { capturesInUse } from '../../server/core/run/evaluations.ts';
import type { RunFields } from '../../server/core/run/state.ts';
import type { Run } from '../../server/core/run.ts';
import type { RunTables } from '../../server/core/tables/run-tables.ts';
import type { PartialConfig, RunConfig } from '../../shared/config.ts';
import type { Lease, Push } from '../../shared/protocol.ts';
import { type Random, random } from '../../shared/random.ts';
import { cutKeys, cutRows, mergeRows, shardOfRow } from '../../shared/row-shards.ts';
import {
  decodeKeys,
  decodeRows,
  encodeKeys,
  encodeRows,
  ROW_ENCODINGS,
  type RowEncoding,
  type RowShape,
  type TableRows,
} from '../../shared/rows.ts';
import { rowShapes } from '../../shared/tables.ts';
import type { RowsOfPush } from '../../worker/rows/rows-exchange.ts';
import { RowModel } from './row-model.ts';
import { denseParts, type RowsWatch, type SentParts } from './simulated-shards.ts';
import { aimOf, keysOf } from './table-worker.ts';
import { areSameBytes, joinedBytes } from './virtual-network.ts';

/** Rows of tables in the simulator of clusters: what workers do with them, and what is looked at. */

/** With the learning rate of the simulator, the largest gradient there is makes such a row or group overflow. */
export const OVERFLOWING = 40;

/**
 * Clusters with tables have one of these. Growing tables have fewer rows than there are ids, and forget some. Tables with a
 * rate for pretrained rows have some of these.
 */
export const TABLES: readonly NonNullable<PartialConfig['tables']>[] = [
  { word: { rows: 24, width: 2, pretrainedRate: 0.5 } },
  {
    word: {
      ...{ rows: 24, width: 3, optimizer: { kind: 'sgd' }, learningRate: OVERFLOWING },
      ...{ maxNorm: 1, weightDecay: 0.3 },
    },
  },
  {
    word: { rows: 24, width: 2, optimizer: { kind: 'adam' }, weightDecay: 0.5 },
    more: {
      ...{ rows: 'hash', width: 3, rowsMax: 14, admitAfter: 2, expireAfter: 8 },
      pretrainedRate: 0,
    },
  },
  {
    more: {
      ...{ rows: 'hash', width: 2, rowsMax: 10, expireAfter: 4, weightDecay: 0.1 },
      ...{ optimizer: { kind: 'adam' }, maxNorm: 0.8 },
    },
  },
];
/** What ought to be as it was is looked at in one of so many looks. */
export const LOOKS = 25;
/** Ids are below it. */
export const KEYS = 24;
const ALL = Uint32Array.from({ length: KEYS }, (_, key) => key);
/** Rows of a file of word vectors: every second one, in two messages. */
const PRETRAINED = [
  [0, 4, 8],
  [2, 6],
];
/** A gradient of it is finite. */
export const LARGEST = 3.4e38;

/** What a worker sends before its initial parameters. Tables with a rate for pretrained rows have some. */
export function initialRows(config: RunConfig): Uint8Array[] {
  const shapes = rowShapes(config);
  const isGiven = ({ name }: RowShape) => config.tables![name]!.pretrainedRate !== 1;
  if (!shapes.some(isGiven)) return [];
  return PRETRAINED.map((given) => {
    const rows = shapes.map((shape): TableRows => {
      const keys = Uint32Array.from(isGiven(shape) ? given : []);
      const size = keys.length * shape.width;
      return { keys, values: Float32Array.from({ length: size }, (_, i) => i / 8 - 0.5) };
    });
    return encodeRows(shapes, rows, 'f32');
  });
}

/** A push of a worker with its whole payload. */
interface ComingPush {
  readonly push: Push;
  readonly payload: Uint8Array;
}

/** Where what is wrong is told. */
type Violate = (invariant: number, what: string) => never;

type ModelMoment = ReturnType<RowModel['state']>;
/** What a checkpoint would hold of the rows. */
export interface SavedRows {
  readonly moment: ModelMoment;
  readonly best: number | null;
}

/** Watches the tables of one life of a run: a model beside them does what they do, and they must be equal to the bit. */
export class WatchedRows implements RowsWatch {
  readonly #tables: RunTables;
  readonly #config: RunConfig;
  readonly #readTables: RunTables['read'];
  readonly #model: RowModel;
  readonly #violate: Violate;
  /** The push that is being dealt with, and how often its rows were applied. */
  #coming: ComingPush | null = null;
  #applied = 0;
  #isApplying = false;
  readonly #follows: boolean;
  readonly #shards: number;
  /** The model after each of its changes, by row step: a standby is some changes behind. */
  readonly #moments = new Map<number, ModelMoment[]>();
  #changes = 0;
  #checked = -1;
  #looks = 0;
  /** Row step of the newest rows in an answer to each worker. */
  readonly #answered = new Map<string, number>();
  /** The same of the worker whose push is being dealt with, before it. */
  #answeredBefore = 0;
  /** Answers with rows as they are, and how often the run has noted one. */
  #answers = 0;
  #noted = 0;
  /** Rows of all answers, with their row step and encoding. An answer may wait for the standby before it leaves. */
  readonly #made = new Set<string>();
  /** Captures that were read for answers to the message that is being dealt with; null: rows as they are. */
  #reads: (number | null)[] = [];

  /**
   * @param run that has tables.
   * @param from what they hold; null: nothing yet. @param fields of the run, with the captures that it has.
   * @param follows there may be a standby. @param shards that have the rows together.
   */
  constructor(
    run: Run,
    violate: Violate,
    from: SavedRows | null,
    fields: RunFields,
    follows: boolean,
    shards = 1,
  ) {
    const { best, evaluated } = capturesInUse(fields);
    this.#tables = run.tables!;
    this.#config = run.config;
    this.#violate = violate;
    this.#follows = follows;
    this.#shards = shards;
    this.#readTables = this.#tables.read.bind(this.#tables);
    this.#model = new RowModel(run.config, from?.moment ?? null, shards);
    if (from) this.#model.keepCapture(from.best, best ?? 0);
    // An evaluation that was under way begins anew.
    if (evaluated !== null && evaluated !== best) this.#model.capture(evaluated);
    this.#noteMoment();
    this.#spy();
    this.#spyAnswers(run);
    this.#spyPulls(run);
    this.check(fields);
  }

  get #shapes(): readonly RowShape[] {
    return this.#tables.shapes;
  }

  #spy(): void {
    const tables = this.#tables;
    const model = this.#model;
    const { apply, undo, begin, reset, resetOptimizer, capture, forget, replace } = tables;
    tables.apply = (rate, clip, scaleOf) => {
      this.#admit();
      const { push, payload } = this.#coming!;
      const { bytes, wanted, encoding, step: readStep } = push.rows!;
      const end = payload.length - wanted;
      const rows =
        bytes === 0
          ? this.#shapes.map(() => ({ keys: new Uint32Array(), values: new Float32Array() }))
          : decodeRows(this.#shapes, payload.subarray(end - bytes, end), encoding);
      this.#mustBeFresh(readStep, rows);
      this.#isApplying = true;
      const isFine = apply.call(tables, rate, clip, scaleOf);
      this.#isApplying = false;
      const mayBeFine = model.apply({ rows, readStep, rate, clip, scaleOf });
      if (isFine !== mayBeFine) this.#violate(7, 'an update of rows overflowed, or did not');
      if (!isFine) this.#takeBack();
      this.#noteMoment();
      return isFine;
    };
    const follow =
      <A extends readonly unknown[]>(real: (...all: A) => void, mirror: (...all: A) => void) =>
      (...all: A) => {
        real.apply(tables, all as never);
        mirror(...all);
        this.#noteMoment();
      };
    tables.undo = () => {
      undo.call(tables);
      // Else it is part of `apply`.
      if (this.#isApplying) return;
      this.#takeBack();
      this.#noteMoment();
    };
    tables.begin = follow(begin, (payload) => {
      // Each of several shards is given its own.
      if (this.#shards === 1) model.begin(decodeRows(this.#shapes, payload, 'f32'));
    });
    tables.reset = follow(reset, (seed) => model.reset(seed));
    tables.resetOptimizer = follow(resetOptimizer, () => model.resetOptimizer());
    tables.capture = follow(capture, (id) => model.capture(id));
    tables.replace = follow(replace, (id) => model.replace(id));
    tables.forget = follow(forget, (id) => {
      model.forget(id);
      if (tables.hasCapture(id))
        this.#violate(3, `capture ${id} of rows is kept, and nobody needs it`);
    });
  }

  /** Rows are looked at when they are read, and workers are believed from then on what they say they have. */
  #spyAnswers(run: Run): void {
    const { sendsRows } = run;
    run.sendsRows = (worker) => {
      sendsRows.call(run, worker);
      this.#noted++;
      this.#answered.set(worker, this.#model.rowStep);
    };
    this.#tables.read = (keys, encoding, capture, take) => {
      const bytes = this.#readTables(keys, encoding, capture, take);
      this.#mustBeAtStep();
      const ought = encodeRows(this.#shapes, this.#model.read(keys, capture), encoding);
      if (!areSameBytes(bytes, ought)) this.#tellRows(keys, encoding, capture, bytes);
      if (capture === null) this.#answers++;
      this.#reads.push(capture);
      this.#made.add(rowsText(this.#model.rowStep, encoding, bytes));
      return bytes;
    };
  }

  #admit(): void {
    if (!this.#coming) this.#violate(1, 'rows were updated without a push');
    this.#applied++;
    if (this.#applied === 1) return;
    const { sequence } = this.#coming!.push;
    this.#violate(1, `the rows of push ${sequence} were applied twice`);
  }

  #takeBack(): void {
    this.#model.undo();
    this.#applied--;
  }

  #mustBeFresh(readStep: number, rows: readonly TableRows[]): void {
    const { stalenessMax } = this.#config.consistency;
    for (const [t, { keys }] of rows.entries()) {
      for (const key of keys) {
        const staleness = this.#model.changedAt(t, key) - readStep;
        if (stalenessMax === null || staleness <= stalenessMax) continue;
        this.#violate(
          4,
          `row ${key} of table ${t} was updated with a staleness of ${staleness}; ${stalenessMax} may be`,
        );
      }
    }
  }

  #noteMoment(): void {
    this.#changes++;
    if (!this.#follows) return;
    const moments = this.#moments.get(this.#model.rowStep) ?? [];
    moments.push(this.#model.state());
    this.#moments.set(this.#model.rowStep, moments);
  }

  /** A push arrives. Its answer has newer rows than it can have read. @param key of its worker. */
  begin(key: string, coming: ComingPush): void {
    this.#coming = coming;
    this.#answeredBefore = this.#answered.get(key) ?? 0;
    this.#applied = 0;
  }

  /** It was dealt with. @param counts the run says that it was applied. */
  end(key: string, { push }: ComingPush, counts: boolean): void {
    this.#coming = null;
    const wanted = counts && push.rows ? 1 : 0;
    if (this.#applied !== wanted) {
      this.#violate(
        1,
        `push ${push.sequence} was ${counts ? '' : 'not '}applied, and its rows ${this.#applied} times`,
      );
    }
    const last = this.#answeredBefore;
    if (!wanted || push.rows!.step <= last) return;
    this.#violate(
      4,
      `push ${push.sequence} of ${key} claimed rows of row step ${push.rows!.step}, and no answer to it had rows after ${last}`,
    );
  }

  #mustBeAtStep(): void {
    const { rowStep } = this.#tables;
    if (rowStep === this.#model.rowStep) return;
    this.#violate(3, `rows are at row step ${rowStep}, and ought to be at ${this.#model.rowStep}`);
  }

  /** @param fields of the run, with the captures that it has. */
  check(fields: RunFields): void {
    this.#mustBeAtStep();
    if (this.#answers !== this.#noted) {
      this.#violate(
        4,
        `rows were sent ${this.#answers} times, and the run believes ${this.#noted} times`,
      );
    }
    if (this.#checked === this.#changes && ++this.#looks % LOOKS > 0) return;
    this.#mustEqual(null);
    this.#checked = this.#changes;
    const facts = factsOf(this.#tables, this.#shards);
    const known = this.#model.facts(this.#shards);
    if (JSON.stringify(facts) !== JSON.stringify(known)) {
      this.#violate(
        3,
        `tables hold ${JSON.stringify(facts)}, and ought to ${JSON.stringify(known)}`,
      );
    }
    const { best, evaluated } = capturesInUse(fields);
    for (const id of this.#model.captures) {
      if (id !== best && id !== evaluated)
        this.#violate(3, `capture ${id} of rows is kept, and not in use`);
      this.#mustEqual(id);
    }
  }

  #mustEqual(capture: number | null): void {
    const keys = this.#keysOf(0);
    const bytes = this.#readTables(keys, 'f32', capture);
    const ought = encodeRows(this.#shapes, this.#model.read(keys, capture), 'f32');
    if (!areSameBytes(bytes, ought)) this.#tellRows(keys, 'f32', capture, bytes);
  }

  #tellRows(
    keys: readonly Uint32Array[],
    encoding: 'f32' | 'bf16',
    capture: number | null,
    bytes: Uint8Array,
  ): never {
    const now = decodeRows(this.#shapes, bytes, encoding);
    const ought = this.#model.read(keys, capture);
    const at = now.flatMap(({ values }, t) =>
      [...values].flatMap((x, i) => {
        const other = ought[t]!.values[i]!;
        const key = keys[t]![Math.floor(i / this.#shapes[t]!.width)];
        return Object.is(x, other) ? [] : [`${this.#shapes[t]!.name} ${key}: ${x}, not ${other}`];
      }),
    );
    const of = capture === null ? '' : ` of capture ${capture}`;
    return this.#violate(
      3,
      `rows${of} at row step ${this.#model.rowStep} are ${at.slice(0, 3).join('; ')}`,
    );
  }

  // Rows on several shards.

  /** Keys of all tables. @param shard that has them. */
  #keysOf(shard: number): Uint32Array[] {
    const count = this.#shards;
    const own = count === 1 ? ALL : ALL.filter((key) => shardOfRow(key, count) === shard);
    return this.#shapes.map(() => own);
  }

  begins(payload: Uint8Array): void {
    this.#model.begin(decodeRows(this.#shapes, payload, 'f32'));
    this.#changes++;
  }

  /** What the rows are from a command on. */
  readonly #commands: { readonly command: number; readonly moment: ModelMoment }[] = [];
  #commanded = -1;

  told(command: number): void {
    if (this.#commanded === this.#changes) return;
    this.#commanded = this.#changes;
    this.#commands.push({ command, moment: this.#model.state() });
  }

  /** The command of the moment that each shard was compared with last. */
  readonly #compared = new Map<number, number>();

  obeyed(shard: number, tables: RunTables, command: number): void {
    const found = this.#commands.findLast((each) => each.command <= command);
    if (!found) return;
    const { moment } = found;
    if (tables.rowStep !== moment.rowStep) {
      this.#violate(
        3,
        `the rows of shard ${shard} are at row step ${tables.rowStep}, and ought to be at ${moment.rowStep}`,
      );
    }
    if (this.#compared.get(shard) === found.command && ++this.#looks % LOOKS > 0) return;
    this.#compared.set(shard, found.command);
    const keys = this.#keysOf(shard);
    const model = new RowModel(this.#config, moment, this.#shards);
    const ought = encodeRows(this.#shapes, model.read(keys), 'f32');
    if (areSameBytes(tables.read(keys, 'f32', null), ought)) return;
    this.#violate(3, `the rows of shard ${shard} at row step ${moment.rowStep} are others`);
  }

  /** What workers are sent by all shards, by session and number. */
  readonly #pulls = new Map<string, readonly TableRows[]>();
  /** Keys that pushes want with their answers, by session and sequence. */
  readonly #wants = new Map<string, readonly Uint32Array[]>();

  /** A push whose parts are given, as there is one without shards. */
  wholeOf(
    push: Push,
    { rows, payloads }: SentParts,
  ): ComingPush & { keys: readonly Uint32Array[] } {
    const tails = payloads.map((payload, k) => {
      const { bytes, wanted } = rows[k]!;
      const end = payload.length - wanted;
      return { own: payload.subarray(end - bytes, end), wanted: payload.subarray(end) };
    });
    const { step, encoding } = push.rows!;
    const own = mergedRows(
      this.#shapes,
      tails.map(({ own }) => own),
      encoding,
    );
    const parts = tails.flatMap(({ wanted }) =>
      wanted.length > 0 ? [decodeKeys(this.#shapes, wanted)] : [],
    );
    const keys = this.#shapes.map((_, t) =>
      Uint32Array.from(parts.flatMap((each) => [...each[t]!])).sort(),
    );
    const tail = encodeRows(this.#shapes, own, encoding);
    const wanted = parts.length > 0 ? encodeKeys(keys) : new Uint8Array();
    const payload = joinedBytes([denseParts({ rows, payloads }), tail, wanted]);
    const told = { step, encoding, bytes: tail.length, wanted: wanted.length };
    return { push: { ...push, rows: told }, payload, keys };
  }

  /** A push is decided on. */
  wants(session: string, sequence: number, keys: readonly Uint32Array[]): void {
    this.#wants.set(`${session} ${sequence}`, keys);
  }

  #spyPulls({ rowParts: parts }: Run): void {
    if (!parts) return;
    const { send, sendWanted } = parts;
    parts.sendWanted = (session, sequence, pull) => {
      const keys = this.#wants.get(`${session} ${sequence}`);
      // The keys of a push that is no good may be none either.
      if (keys) this.#pulls.set(`${session} ${pull}`, this.#model.read(keys));
      sendWanted.call(parts, session, sequence, pull);
    };
    parts.send = (keys, to) => {
      this.#pulls.set(`${to.session} ${to.pull}`, this.#model.read(keys, to.capture));
      return send.call(parts, keys, to);
    };
  }

  /** A worker has the rows of all shards. Where keys were not known, some may be missing. */
  pulled(session: string, pull: number, rows: readonly TableRows[]): void {
    const ought = this.#pulls.get(`${session} ${pull}`);
    this.#pulls.delete(`${session} ${pull}`);
    // It was sent before all began anew.
    if (!ought) return;
    for (const [t, { keys, values }] of rows.entries()) {
      const { width } = this.#shapes[t]!;
      for (const [i, key] of keys.entries()) {
        const at = ought[t]!.keys.indexOf(key);
        const known = ought[t]!.values.subarray(at * width, (at + 1) * width);
        const got = values.subarray(i * width, (i + 1) * width);
        if (at >= 0 && got.every((x, k) => Object.is(x, known[k]))) continue;
        this.#violate(3, `row ${key} of pull ${pull} is ${got}, and ought to be ${known}`);
      }
    }
  }

  // What workers are sent.

  /** A message of a worker is about to be dealt with. */
  beginAnswers(): void {
    this.#reads = [];
  }

  /** It has asked for rows, and been answered or not. @param capture whose rows it ought to have; null: as they are. */
  mustHaveRead(capture: number | null): void {
    const reads = this.#reads;
    const others = reads.filter((each) => each !== null && each !== capture);
    if (others.length === 0 && (reads.length === 0 || reads.includes(capture))) return;
    this.#violate(
      3,
      `rows of ${reads[0] === null ? 'now' : `capture ${reads[0]}`} were sent instead of those of ${capture === null ? 'now' : `capture ${capture}`}`,
    );
  }

  /** Rows leave for a worker, perhaps long after they were read. */
  leaves(
    { step, encoding }: { readonly step: number; readonly encoding: RowEncoding },
    bytes: Uint8Array,
  ): void {
    if (this.#made.has(rowsText(step, encoding, bytes))) return;
    this.#violate(
      3,
      `the rows that leave as of row step ${step} are not those that were read then`,
    );
  }

  // Checkpoints and standbys.

  save(best: number | null): SavedRows {
    return { moment: this.#model.state(), best };
  }

  /** What a standby holds: its rows must be those of some moment. @param best its capture there. */
  momentOf(replica: RunTables, best: number | null): SavedRows {
    const keys = this.#shapes.map(() => ALL);
    const bytes = replica.read(keys, 'f32', null);
    const moment = (this.#moments.get(replica.rowStep) ?? []).findLast((candidate) => {
      const model = new RowModel(this.#config, candidate);
      const rows = encodeRows(this.#shapes, model.read(keys), 'f32');
      const hasBest = best === null || model.captures.includes(best);
      const isSame = JSON.stringify(model.facts()) === JSON.stringify(factsOf(replica));
      return areSameBytes(bytes, rows) && hasBest && isSame;
    });
    if (moment) return { moment, best };
    return this.#violate(
      9,
      `the rows of the standby at row step ${replica.rowStep} are not those of the server then`,
    );
  }
}

const rowsText = (rowStep: number, encoding: RowEncoding, bytes: Uint8Array) =>
  `${rowStep} ${encoding} ${Buffer.from(bytes).toString('latin1')}`;

/** Rows as a worker was sent them. */
interface HeldRows {
  readonly rows: readonly TableRows[];
  readonly step: number;
  readonly generation: number;
}

/** What `rows` of a push says. */
type PushedRows = NonNullable<Push['rows']>;

/** Rows of each table from all shards. */
export function mergedRows(
  shapes: readonly RowShape[],
  parts: readonly Uint8Array[],
  encoding: RowEncoding,
): readonly TableRows[] {
  const all = parts.map((bytes) => decodeRows(shapes, bytes, encoding));
  return shapes.map(({ width }, t) =>
    mergeRows(
      all.map((rows) => rows[t]!),
      width,
    ),
  );
}

/** Keys of minibatches, which are the same in each cluster. */
const keysKnown = new Map<string, Uint32Array>();

function knownKeysOf(lease: Lease, keysMax: number): Uint32Array {
  const name = `${lease.epoch} ${lease.start} ${keysMax}`;
  const known = keysKnown.get(name) ?? keysOf(lease, keysMax);
  keysKnown.set(name, known);
  return known;
}

/** The rows of one worker: those that it was sent, and what it pushes of them. */
export class WorkerRows {
  readonly #shapes: readonly RowShape[];
  readonly #draw: Random;
  #held: HeldRows | null = null;

  constructor(shapes: readonly RowShape[], seed: number, worker: number) {
    this.#shapes = shapes;
    this.#draw = random(seed, 1_000 + worker);
  }

  keysOf(lease: Lease): readonly Uint32Array[] {
    return this.#shapes.map(({ keysMax }) => knownKeysOf(lease, Math.min(KEYS, keysMax)));
  }

  /** Keys of all rows, for an evaluation. */
  get all(): readonly Uint32Array[] {
    return this.#shapes.map(() => ALL);
  }

  /** @param parts of all shards. */
  receive(
    { step, encoding }: { readonly step: number; readonly encoding: RowEncoding },
    parts: readonly Uint8Array[],
    generation: number,
  ): void {
    this.#held = { rows: mergedRows(this.#shapes, parts, encoding), step, generation };
  }

  /** A push was rejected, or the process is another one. */
  reset(): void {
    this.#held = null;
  }

  /** Those of a minibatch, if they are at hand. */
  heldFor(lease: Lease, generation: number): HeldRows | null {
    const held = this.#held;
    if (held?.generation !== generation) return null;
    const keys = this.keysOf(lease);
    return keys.every((own, t) => own.every((key) => held.rows[t]!.keys.includes(key)))
      ? held
      : null;
  }

  /** What a push has behind its gradient: one for each shard. @param next whose rows come with the answer; null: none. */
  pushed(
    lease: Lease,
    { rows, step }: HeldRows,
    next: Lease | null,
    shards = 1,
  ): readonly RowsOfPush[] {
    const gradients = this.keysOf(lease).map((keys, t): TableRows => {
      const { width } = this.#shapes[t]!;
      const values = Float32Array.from({ length: keys.length * width }, (_, i) => {
        const key = keys[Math.floor(i / width)]!;
        const at = rows[t]!.keys.indexOf(key) * width;
        return rows[t]!.values[at + (i % width)]! - aimOf(key, i % width);
      });
      return { keys, values };
    });
    const encoding = ROW_ENCODINGS[this.#draw.below(ROW_ENCODINGS.length)]!;
    const cut = gradients.map((each, t) => cutRows(each, this.#shapes[t]!.width, shards));
    const keys = next && this.keysOf(next).map((each) => cutKeys(each, shards));
    return Array.from({ length: shards }, (_, shard) => {
      const own = encodeRows(
        this.#shapes,
        cut.map((parts) => parts[shard]!),
        encoding,
      );
      const wanted = keys ? encodeKeys(keys.map((parts) => parts[shard]!)) : new Uint8Array();
      const tail = joinedBytes([own, wanted]);
      return { rows: { step, encoding, bytes: own.length, wanted: wanted.length }, tail };
    });
  }

  /** A push whose rows have the largest gradients that there are. */
  #overflowing(push: Push, payload: Uint8Array): ComingPush {
    const { rows } = push;
    const { bytes, wanted, encoding } = rows!;
    const end = payload.length - wanted;
    const given = decodeRows(this.#shapes, payload.subarray(end - bytes, end), encoding);
    const sign = this.#draw.below(2) === 0 ? 1 : -1;
    const large = given.map(({ keys, values }) => ({ keys, values: values.fill(sign * LARGEST) }));
    const own = encodeRows(this.#shapes, large, 'f32');
    const before = payload.subarray(0, end - bytes);
    const bad = new Uint8Array(Buffer.concat([before, own, payload.subarray(end)]));
    const { length } = own;
    return { push: { ...push, rows: { ...rows!, encoding: 'f32', bytes: length } }, payload: bad };
  }

  /** A push as no honest worker makes one. @param rowStep of the server, which a liar may have from another worker. */
  lie(push: Push, payload: Uint8Array, rowStep: number): ComingPush {
    const { rows } = push;
    if (!rows) return { push, payload };
    if (this.#draw.below(8) === 0) return this.#overflowing(push, payload);
    const bad = payload.slice();
    const start = payload.length - rows.wanted - rows.bytes;
    const words = new DataView(bad.buffer, bad.byteOffset);
    const newer = (step: number) => () => ({ step: Math.max(rows.step + 1, step) });
    const lies: (() => Partial<PushedRows>)[] = [
      ...[newer(rowStep), newer(rowStep), newer(rowStep), newer(rowStep + 1_000)],
      () => ({ bytes: rows.bytes + 4 * (1 + this.#draw.below(9)) }),
      () => ({ wanted: rows.wanted + 4 * (1 + this.#draw.below(9)) }),
      () => ({ bytes: 0, wanted: 0 }),
      () => {
        // A count, a key or a value.
        const at = start + 4 * this.#draw.below(rows.bytes / 4);
        words.setUint32(at, this.#draw.below(2 ** 31), true);
        return {};
      },
      () => {
        words.setUint32(start + 4, 23, true);
        return {};
      },
      () => {
        words.setFloat32(start + rows.bytes - 4, Number.NaN, true);
        return { encoding: 'f32' };
      },
    ];
    const change = lies[this.#draw.below(lies.length)]!();
    return { push: { ...push, rows: { ...rows, ...change } }, payload: bad };
  }
}

/** What the model of tables knows too. */
const factsOf = (tables: RunTables, shards = 1) =>
  tables.facts().map(({ name, rows, pretrained, dropped }) => ({
    ...{ name, rows, pretrained },
    // Each of several shards counts its own.
    dropped: shards === 1 ? dropped : 0,
  }));
