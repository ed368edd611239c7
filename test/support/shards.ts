import type { Assignment, PushPartsLanded, RowsLanded } from '../../server/core/run/calls.ts';
import type { RunOptions, RunState } from '../../server/core/run/state.ts';
import { Run } from '../../server/core/run.ts';
import { type RunShards, Shard } from '../../server/core/shard.ts';
import {
  checkShardCommand,
  type SaveKind,
  type ShardCommand,
} from '../../server/core/shard-command.ts';
import { isOfRows } from '../../server/core/tables/run-tables.ts';
import type { NamedTensor } from '../../server/core/vectors.ts';
import { restoreRows } from '../../server/shards/restore-rows.ts';
import { bytesOf, concatFloats, floatsOf } from '../../shared/codec.ts';
import { type PartialConfig, resolveConfig } from '../../shared/config.ts';
import { createLayout, type Layout } from '../../shared/layout.ts';
import { fragmentsOf, type PushKind } from '../../shared/local-steps.ts';
import { type Range, rangesOfRun } from '../../shared/partition.ts';
import type { Acknowledgement, Join, Lease } from '../../shared/protocol.ts';
import { random } from '../../shared/random.ts';
import { mergeRows } from '../../shared/row-shards.ts';
import { decodeRows, type RowEncoding, type TableRows } from '../../shared/rows.ts';
import { tablesOf } from '../../shared/tables.ts';
import { createCompressor, type Settle } from '../../worker/compressor.ts';
import { RowsExchange, type RowsOfPush } from '../../worker/rows/rows-exchange.ts';
import { aimOf, keysOf } from './table-worker.ts';

/** Large enough for several shards, with a tensor that is split, and frozen ones beyond all pushes. */
export const TENSORS: Join['tensors'] = [
  { name: 'a', shape: [300, 100], role: 'trainable' },
  { name: 'b', shape: [100], role: 'trainable' },
  { name: 'c', shape: [100, 150], role: 'trainable' },
  { name: 'm', shape: [1_001], role: 'statistics', momentum: 0.9 },
  { name: 'f', shape: [20_000], role: 'frozen' },
];
export const LAYOUT: Layout = createLayout(TENSORS);
const DATA = {
  ...{ trainCount: 64, validationCount: 10, testCount: 10, fingerprint: 'f', source: 's' },
};

function optionsOf(config: PartialConfig) {
  return {
    id: 'r',
    experiment: 'e',
    experimentHash: 'h',
    config: resolveConfig({ minibatchSize: 4, learningRate: 0.1, epochsMax: 3 }, config),
    createdAt: '2026-01-01T00:00:00.000Z',
  };
}

/** Keys of rows that are trained. */
const ROW_KEYS = 40;

interface Sent {
  readonly session: string;
  readonly pull: number;
  readonly values: Float32Array;
}

export interface SavedRun {
  readonly state: RunState;
  readonly file: NamedTensor[];
  /** Its rows, cut for another number of shards: see `cutForShards`. */
  readonly rows?: {
    readonly own: NamedTensor[];
    readonly told: readonly { index: number; command: ShardCommand; values: Float32Array }[];
  };
}

/** Cuts the rows of a checkpoint over shards, as a server does that continues from it. */
export async function cutForShards(saved: SavedRun, count: number): Promise<SavedRun> {
  if (count === 1) return saved;
  const { state, file } = saved;
  const told: NonNullable<SavedRun['rows']>['told'][number][] = [];
  const tensorOf = (name: string) =>
    file.find((tensor) => tensor.name === name)?.values ?? new Float32Array();
  const pool = {
    count,
    tell(parts: number, command: ShardCommand) {
      for (let index = 1; index < parts; index++) this.tellOne(index, command);
    },
    tellOne(index: number, command: ShardCommand, values = new Float32Array()) {
      told.push({ index, command: checkShardCommand(structuredClone(command)), values });
    },
    drained: async () => {},
  };
  const tensors = {
    size: (name: string) => tensorOf(name).length,
    read: async (name: string, start: number, n: number) => tensorOf(name).slice(start, start + n),
    close: async () => {},
  };
  const own = await restoreRows(pool, tensors, state);
  return { state, file, rows: { own, told } };
}

/** A run with its shards and one worker, without sockets. */
export class ShardedRun {
  readonly ranges: readonly Range[];
  readonly shards: Shard[];
  readonly run: Run;
  readonly told: ShardCommand[] = [];
  readonly #compressor: ReturnType<typeof createCompressor>;
  #landed = { squares: 0, problem: null as string | null, initial: null as string | null };
  #sent: Sent[] = [];
  /** Rows that other shards have sent. */
  #rowsSent: Uint8Array[] = [];
  #readRows: { keys: Uint32Array[]; rows: readonly TableRows[]; step: number } | null = null;
  /** What is told of the rows in parts. */
  #rowsLanded: RowsLanded[] = [];
  readonly #options: RunOptions;
  /** They come over the wire, after the push has been dealt with. */
  #overflows: number[] = [];
  #pulls = 0;
  #sequence = 0;
  readonly #keys: readonly string[];
  turn: number;
  #settle: Settle | null = null;
  /** What its next push holds; absent: a gradient. */
  #kind: PushKind | undefined;
  /** Fragment of it; absent: all parameters. */
  #fragment: number | undefined;
  #read: { values: Float32Array; step: number; generation: number } | null = null;

  constructor(
    count: number,
    config: PartialConfig,
    from?: SavedRun,
    /** They take turns, from this one on. */
    workers = 1,
    turn = 0,
  ) {
    const options = optionsOf(config);
    this.#options = options;
    this.ranges = rangesOfRun(LAYOUT, count, tablesOf(options.config) !== null);
    this.shards = Array.from(
      { length: count },
      (_, index) =>
        new Shard(index, count, {
          landed: (_, squares, problem, rows) => {
            if (rows) this.#rowsLanded.push(rows);
            this.#landed.squares += squares;
            this.#landed.problem ??= problem;
          },
          initialLanded: (_, problem) => {
            this.#landed.initial ??= problem;
          },
          overflowed: (_, generation) => void this.#overflows.push(generation),
          send: (session, { pull }, payload) => {
            this.#sent.push({ session, pull, values: this.#decode(index, payload) });
          },
          sendRows: (_, __, bytes) => void this.#rowsSent.push(bytes),
          rowFacts: (_, facts) => this.run.rowParts!.note(index, facts),
        }),
    );
    const link = {
      count,
      tell: (parts: number, command: ShardCommand) => {
        this.told.push(command);
        for (let k = 1; k < parts; k++) this.shards[k]!.execute(command, new Float32Array());
      },
      tellOne: (index: number, command: ShardCommand, values = new Float32Array()) => {
        this.told.push(command);
        this.shards[index]!.execute(command, values);
      },
    };
    this.run = from ? this.#restore(from, link) : new Run(options, link);
    this.#compressor = createCompressor(
      options.config.compression,
      LAYOUT,
      this.ranges,
      fragmentsOf(options.config),
    );
    this.turn = turn;
    this.#keys = Array.from({ length: workers }, (_, i) => `w/${i + 1}`);
    for (const key of this.#keys) {
      this.run.call({
        call: 'join',
        worker: key,
        join: { experimentHash: 'h', tensors: TENSORS, data: DATA },
        now: 0,
      });
    }
  }

  #decode(index: number, payload: { bytes: Uint8Array; encoding: 'f32' | 'bf16' }): Float32Array {
    if (payload.encoding === 'f32') return floatsOf(payload.bytes).slice();
    const { start, end } = this.ranges[index]!;
    const n = Math.max(0, Math.min(end, LAYOUT.exchangedSize) - start);
    const halves = new Uint16Array(payload.bytes.slice(0, 2 * n).buffer);
    return new Float32Array(Uint32Array.from(halves, (x) => x << 16).buffer);
  }

  /** As `restoreShards` does it with files. */
  #restore({ state, file, rows }: SavedRun, link: RunShards): Run {
    const vectors = new Map<string, Float32Array>();
    const whole = new Float32Array(LAYOUT.size);
    for (const { name, offset } of LAYOUT.tensors) {
      whole.set(file.find((tensor) => tensor.name === name)!.values, offset);
    }
    vectors.set('@parameters', whole);
    for (const { name, values } of file) {
      if (name.startsWith('@') && !isOfRows(name)) vectors.set(name, values);
    }
    const cut = (values: Float32Array, { start, end }: Range) =>
      values.subarray(Math.min(start, values.length), Math.min(end, values.length));
    for (const [k, range] of this.ranges.entries()) {
      if (k === 0) continue;
      const shard = this.shards[k]!;
      const { config } = state.options;
      const none = new Float32Array();
      shard.execute({ kind: 'create', run: 'r', tensors: TENSORS, config }, none);
      for (const { index, command, values } of rows?.told ?? []) {
        if (index === k) shard.execute(command, values);
      }
      for (const [name, values] of vectors) {
        shard.execute({ kind: 'write', run: 'r', name, start: 0 }, cut(values, range));
      }
      const best = state.best ? 1 : null;
      const workers = state.workers.map(([key, sequence]) => [key, sequence] as const);
      const parameters = state.parameters!;
      const restore = { kind: 'restore', run: 'r', state: parameters, best, workers } as const;
      shard.execute(restore, none);
    }
    const first = this.ranges[0]!;
    const own: NamedTensor[] = LAYOUT.tensors
      .filter(({ offset }) => offset < first.end)
      .map(({ name, shape, offset, size }) => ({
        name,
        shape,
        values: whole.subarray(offset, Math.min(offset + size, first.end)),
      }));
    for (const [name, values] of vectors) {
      if (name !== '@parameters') own.push({ name, shape: [], values: cut(values, first) });
    }
    own.push(...(rows?.own ?? file.filter(({ name }) => isOfRows(name))));
    return Run.restore(state, own, link);
  }

  /** What a checkpoint keeps, put together as the file is. */
  save(kind: SaveKind = 'last'): SavedRun {
    const own = this.run.save(7, kind);
    const rows = this.run.copyRows(kind, { changes: false, room: (n) => new Float32Array(n) });
    for (const { name, values } of rows?.tensors() ?? []) own.set(name, values);
    const file: NamedTensor[] = [];
    const vector = (name: string): Float32Array => {
      const parts = this.ranges.map(({ start, end }, k) =>
        k === 0 ? own.get(name)! : floatsOf(this.shards[k]!.read('r', 7, name, 0, end - start)!),
      );
      return concatFloats(parts);
    };
    const whole = vector('@parameters');
    for (const { name, shape, offset, size } of LAYOUT.tensors) {
      file.push({ name, shape, values: whole.slice(offset, offset + size) });
    }
    for (const name of own.keys()) {
      if (name === '@parameters' || isOfRows(name)) continue;
      file.push({ name, shape: [], values: vector(name) });
    }
    const others = this.shards.slice(1).flatMap((shard) => shard.list('r', 7) ?? []);
    const names = new Set([...own.keys(), ...others.map(({ name }) => name)]);
    for (const name of [...names].filter(isOfRows)) {
      const parts = this.shards.map((shard, k) =>
        k === 0
          ? (own.get(name) ?? new Float32Array())
          : floatsOf(shard.read('r', 7, name, 0, 2 ** 30) ?? new Uint8Array()),
      );
      file.push({ name, shape: [], values: concatFloats(parts) });
    }
    const state = JSON.parse(JSON.stringify(this.run.state(0)));
    this.run.vector.forgetSaved(7, false);
    return { state, file };
  }

  /** All parameters of all shards. */
  get parameters(): Float32Array {
    return concatFloats(
      this.save()
        .file.filter(({ name }) => !name.startsWith('@'))
        .map(({ values }) => values),
    );
  }

  /** One thing that the worker has to do. @param cut changes what reaches other shards. @returns what became of a push. */
  act(
    change: (gradient: Float32Array) => void = () => {},
    cut?: (part: Uint8Array) => Uint8Array,
  ): Acknowledgement | null {
    this.turn = (this.turn + 1) % this.#keys.length;
    const session = 's';
    this.#sent = [];
    const to = { session, generation: -1, step: -1, base: -1, pulls: this.#pulls };
    const asked = { call: 'assign', worker: this.#key, ahead: 2, now: 0, to } as const;
    const assignment = this.run.call(asked);
    if (assignment.kind === 'initialise') {
      this.run.vector.grantParts(session, assignment.grant);
      const draw = random(assignment.seed, 1);
      const values = Float32Array.from({ length: LAYOUT.size }, () => draw.normal());
      this.#landed.initial = null;
      for (const [k, { start, end }] of this.ranges.entries()) {
        const part = values.subarray(start, end);
        const initial = { payload: bytesOf(part), encoding: 'f32' as const, release() {} };
        if (k > 0) this.shards[k]!.initialPart('r', session, assignment.grant, initial);
      }
      const first = values.subarray(0, this.ranges[0]!.end);
      const others = { session, problem: this.#landed.initial };
      this.run.call(
        {
          call: 'initialised',
          worker: this.#key,
          grant: assignment.grant,
          now: 0,
          others: this.parts(others),
        },
        bytesOf(first),
      );
      return null;
    }
    if (assignment.kind !== 'work') return null;
    const values = this.#pull(assignment);
    if (assignment.evaluation) {
      const { id, part } = assignment.evaluation;
      let loss = values.subarray(0, 45_100).reduce((sum, x) => sum + x * x, 0) / 45_100;
      if (this.run.tables) {
        const capture = this.run.evaluatedCapture(this.#key, id);
        for (const { values } of this.rows(capture))
          for (const x of values) loss += (x * x) / 1_000;
      }
      // Validation gets worse after a while, so that training stops early.
      const told = part === 'validation' ? loss + 0.02 * this.run.step : loss;
      const examples = part === 'train' ? 64 : 10;
      const result = { loss: told, error: told, examples, metrics: {} };
      this.run.call({
        call: 'evaluated',
        worker: this.#key,
        result: { type: 'evaluated', run: 'r', evaluation: id, ...result },
        now: 0,
      });
      return null;
    }
    const { generation } = this.run;
    this.#read = { values, step: assignment.step, generation };
    const gradient = values.slice(0, LAYOUT.exchangedSize);
    change(gradient);
    const { local } = assignment;
    this.#kind = local?.push;
    this.#fragment = local?.fragment;
    for (let i = 0; local && i < LAYOUT.trainableSize; i++) {
      // One step of plain SGD.
      const step = local.learningRate * gradient[i]!;
      gradient[i] = local.push === 'delta' ? step : values[i]! - step;
    }
    const lease = assignment.leases[0]!;
    this.#readRows = this.run.tables && this.#rowsFor(lease);
    return this.push(gradient, lease.id, undefined, cut);
  }

  #rowsFor(lease: Lease) {
    const { shapes, rowStep } = this.run.tables!;
    const keys = shapes.map(() => keysOf(lease, ROW_KEYS));
    return { keys, rows: this.readRows(keys), step: rowStep };
  }

  /** All rows of the tables. @param capture null: as they are. */
  rows(capture: number | null = null): readonly TableRows[] {
    const all = Uint32Array.from({ length: ROW_KEYS }, (_, key) => key);
    return this.readRows(
      this.run.tables!.shapes.map(() => all),
      capture,
    );
  }

  readRows(keys: readonly Uint32Array[], capture: number | null = null): readonly TableRows[] {
    const tables = this.run.tables!;
    const encoding = capture === null ? tables.pullEncoding : 'f32';
    this.#rowsSent = [];
    const to = { session: 's', pull: 0, encoding, capture };
    const own = this.run.rowParts?.send(keys, to) ?? keys;
    return this.#rowsOf([tables.read(own, encoding, capture), ...this.#rowsSent], encoding);
  }

  #rowsOf(parts: readonly Uint8Array[], encoding: RowEncoding): readonly TableRows[] {
    const { shapes } = this.run.tables!;
    const all = parts.map((bytes) => decodeRows(shapes, bytes, encoding));
    return shapes.map(({ width }, t) =>
      mergeRows(
        all.map((rows) => rows[t]!),
        width,
      ),
    );
  }

  /** Gradients of the rows that were read, and their keys as those that are wanted next. */
  #pushedRows(): readonly RowsOfPush[] | null {
    if (!this.#readRows) return null;
    const { shapes } = this.run.tables!;
    const { keys, rows, step } = this.#readRows;
    const gradients = rows.map(({ keys, values }, t) => {
      const { width } = shapes[t]!;
      const own = values.map((x, i) => x - aimOf(keys[Math.floor(i / width)]!, i % width));
      return { keys, values: own };
    });
    const none = { pullRows: () => Promise.reject(new Error('nothing is pulled')) };
    const { length } = this.ranges;
    const exchange = new RowsExchange('r', shapes, this.#options.config, none, length);
    return exchange.pushed(gradients, step, keys);
  }

  /** The rows that a push has wanted are the present ones. */
  #mustBring(sequence: number): void {
    const tables = this.run.tables!;
    const encoding = tables.pullEncoding;
    const expected = this.readRows(this.#readRows!.keys);
    this.#rowsSent = [];
    this.run.rowParts?.sendWanted('s', sequence, 0);
    const own = tables.takeWanted();
    if (!own) throw new Error('the push wanted no rows');
    const brought = this.#rowsOf([tables.read(own, encoding, null), ...this.#rowsSent], encoding);
    if (JSON.stringify(brought) !== JSON.stringify(expected)) throw new Error('other rows came');
  }

  get #key(): string {
    return this.#keys[this.turn]!;
  }

  parts<T>(others: T): T | null {
    return this.ranges.length > 1 ? others : null;
  }

  push(
    gradient: Float32Array,
    lease: number,
    sequence = ++this.#sequence,
    cut = (part: Uint8Array) => part,
  ): Acknowledgement {
    const epoch = 0;
    const fragment = this.#fragment;
    const bytes = this.#compressor.payloadBytes(epoch, fragment);
    const outs = bytes.map((length) => new Uint8Array(length));
    this.#settle = this.#compressor.write(gradient, epoch, outs, fragment);
    const { encoding } = this.#compressor;
    this.#landed = { squares: 0, problem: null, initial: null };
    this.#rowsLanded = [];
    const rows = this.#pushedRows();
    const payloads = outs.map((out, k) => {
      const tail = rows?.[k]?.tail ?? new Uint8Array();
      const joined = new Uint8Array(out.length + tail.length);
      joined.set(out);
      joined.set(tail, out.length);
      return joined;
    });
    for (let k = 1; k < this.ranges.length; k++) {
      const room = this.shards[k]!.land('r', payloads[k]!.length, 'f32');
      room?.bytes.set(payloads[k]!);
      const release = () => room?.release();
      const part = {
        payload: cut(room?.bytes ?? payloads[k]!),
        rows: rows?.[k]?.rows,
        encoding,
        room,
        release,
        kind: this.#kind,
        fragment,
      };
      this.shards[k]!.part({ run: 'r', session: 's', sequence }, part);
    }
    const { squares, problem } = this.#landed;
    // All commands have been carried out.
    const rowStep = this.run.tables?.rowStep;
    if (this.#rowsLanded.some((of) => of.rowStep !== rowStep)) {
      throw new Error(`row step ${rowStep} is not that of all shards`);
    }
    const others: PushPartsLanded = {
      ...{ session: 's', squares, problem },
      ...(rows && { rows: this.#rowsLanded }),
    };
    const { step, generation } = this.#read!;
    const acknowledgement = this.run.call(
      {
        call: 'push',
        worker: this.#key,
        push: {
          ...{ type: 'push', run: 'r', sequence, lease, step, generation },
          ...{ loss: 1, computeMs: 1, encoding },
          ...(this.#kind && { kind: this.#kind }),
          ...(fragment !== undefined && { fragment }),
          ...(rows && { rows: rows[0]!.rows }),
        },
        now: 0,
        others: this.parts(others),
      },
      payloads[0]!,
    );
    const { outcome } = acknowledgement;
    if (rows && (outcome === 'applied' || outcome === 'damped')) this.#mustBring(sequence);
    this.#settle(acknowledgement.outcome);
    for (const generation of this.#overflows.splice(0))
      this.run.call({ call: 'overflowed', generation });
    return acknowledgement;
  }

  #pull(assignment: Extract<Assignment, { kind: 'work' }>): Float32Array {
    if (assignment.pull !== null) this.#pulls = assignment.pull;
    const { bytes, encoding } = assignment.payload!;
    const parts = [this.#decode(0, { bytes, encoding }), ...this.#sent.map(({ values }) => values)];
    return concatFloats(parts);
  }

  train(until: () => boolean = () => false): void {
    for (let i = 0; i < 10_000 && !this.run.over && !until(); i++) this.act();
  }
}
