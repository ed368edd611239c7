import type { Assignment, PushPartsLanded } from '../../server/core/run/calls.ts';
import type { RunState } from '../../server/core/run/state.ts';
import { Run } from '../../server/core/run.ts';
import { type RunShards, Shard } from '../../server/core/shard.ts';
import type { ShardCommand } from '../../server/core/shard-command.ts';
import type { NamedTensor } from '../../server/core/vectors.ts';
import { bytesOf, floatsOf } from '../../shared/codec.ts';
import { type PartialConfig, resolveConfig } from '../../shared/config.ts';
import { createLayout, type Layout } from '../../shared/layout.ts';
import { fragmentsOf, type PushKind } from '../../shared/local-steps.ts';
import { partition, type Range } from '../../shared/partition.ts';
import type { Acknowledgement, Join } from '../../shared/protocol.ts';
import { random } from '../../shared/random.ts';
import { createCompressor, type Settle } from '../../worker/compressor.ts';

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

interface Sent {
  readonly session: string;
  readonly pull: number;
  readonly values: Float32Array;
}

/** A run with its shards and one worker, without sockets. */
export class ShardedRun {
  readonly ranges: readonly Range[];
  readonly shards: Shard[];
  readonly run: Run;
  readonly told: ShardCommand[] = [];
  readonly #compressor: ReturnType<typeof createCompressor>;
  #landed = { squares: 0, problem: null as string | null, finite: true };
  #sent: Sent[] = [];
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
    from?: { state: RunState; file: NamedTensor[] },
    /** They take turns, from this one on. */
    workers = 1,
    turn = 0,
  ) {
    this.ranges = partition(LAYOUT, count);
    const options = optionsOf(config);
    this.shards = Array.from(
      { length: count },
      (_, index) =>
        new Shard(index, count, {
          landed: (_, squares, problem) => {
            this.#landed.squares += squares;
            this.#landed.problem ??= problem;
          },
          initialLanded: (_, finite) => {
            this.#landed.finite &&= finite;
          },
          overflowed: (_, generation) => void this.#overflows.push(generation),
          send: (session, { pull }, payload) => {
            this.#sent.push({ session, pull, values: this.#decode(index, payload) });
          },
        }),
    );
    const link = {
      count,
      tell: (parts: number, command: ShardCommand) => {
        this.told.push(command);
        for (let k = 1; k < parts; k++) this.shards[k]!.execute(command, new Float32Array());
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
  #restore({ state, file }: { state: RunState; file: NamedTensor[] }, link: RunShards): Run {
    const vectors = new Map<string, Float32Array>();
    const whole = new Float32Array(LAYOUT.size);
    for (const { name, offset } of LAYOUT.tensors) {
      whole.set(file.find((tensor) => tensor.name === name)!.values, offset);
    }
    vectors.set('@parameters', whole);
    for (const { name, values } of file) if (name.startsWith('@')) vectors.set(name, values);
    const cut = (values: Float32Array, { start, end }: Range) =>
      values.subarray(Math.min(start, values.length), Math.min(end, values.length));
    for (const [k, range] of this.ranges.entries()) {
      if (k === 0) continue;
      const shard = this.shards[k]!;
      const { config } = state.options;
      const none = new Float32Array();
      shard.execute({ kind: 'create', run: 'r', tensors: TENSORS, config }, none);
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
    return Run.restore(state, own, link);
  }

  /** What a checkpoint keeps, put together as the file is. */
  save(): { state: RunState; file: NamedTensor[] } {
    const own = this.run.save(7, 'last');
    const file: NamedTensor[] = [];
    const vector = (name: string): Float32Array => {
      const parts = this.ranges.map(({ start, end }, k) =>
        k === 0 ? own.get(name)! : floatsOf(this.shards[k]!.read('r', 7, name, 0, end - start)!),
      );
      return concat(parts);
    };
    const whole = vector('@parameters');
    for (const { name, shape, offset, size } of LAYOUT.tensors) {
      file.push({ name, shape, values: whole.slice(offset, offset + size) });
    }
    for (const name of own.keys()) {
      if (name !== '@parameters') file.push({ name, shape: [], values: vector(name) });
    }
    const state = JSON.parse(JSON.stringify(this.run.state(0)));
    this.run.vector.forgetSaved(7);
    return { state, file };
  }

  /** All parameters of all shards. */
  get parameters(): Float32Array {
    return concat(
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
      this.#landed.finite = true;
      for (const [k, { start, end }] of this.ranges.entries()) {
        const part = values.subarray(start, end);
        const initial = { payload: bytesOf(part), encoding: 'f32' as const, release() {} };
        if (k > 0) this.shards[k]!.initialPart('r', session, assignment.grant, initial);
      }
      const first = values.subarray(0, this.ranges[0]!.end);
      const others = { session, finite: this.#landed.finite };
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
      const loss = values.subarray(0, 45_100).reduce((sum, x) => sum + x * x, 0) / 45_100;
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
    return this.push(gradient, assignment.leases[0]!.id, undefined, cut);
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
    this.#landed = { squares: 0, problem: null, finite: true };
    for (let k = 1; k < this.ranges.length; k++) {
      const room = this.shards[k]!.land('r', outs[k]!.length, 'f32');
      room?.bytes.set(outs[k]!);
      const release = () => room?.release();
      const part = {
        payload: cut(room?.bytes ?? outs[k]!),
        encoding,
        room,
        release,
        kind: this.#kind,
        fragment,
      };
      this.shards[k]!.part({ run: 'r', session: 's', sequence }, part);
    }
    const { squares, problem } = this.#landed;
    const others: PushPartsLanded = { session: 's', squares, problem };
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
        },
        now: 0,
        others: this.parts(others),
      },
      outs[0]!,
    );
    this.#settle(acknowledgement.outcome);
    for (const generation of this.#overflows.splice(0))
      this.run.call({ call: 'overflowed', generation });
    return acknowledgement;
  }

  #pull(assignment: Extract<Assignment, { kind: 'work' }>): Float32Array {
    if (assignment.pull !== null) this.#pulls = assignment.pull;
    const { bytes, encoding } = assignment.payload!;
    const parts = [this.#decode(0, { bytes, encoding }), ...this.#sent.map(({ values }) => values)];
    return concat(parts);
  }

  train(until: () => boolean = () => false): void {
    for (let i = 0; i < 10_000 && !this.run.over && !until(); i++) this.act();
  }
}

function concat(parts: readonly Float32Array[]): Float32Array {
  const whole = new Float32Array(parts.reduce((sum, { length }) => sum + length, 0));
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}
