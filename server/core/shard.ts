import { bytesOf, floatsOf } from '../../shared/codec.ts';
import type { Encoding } from '../../shared/compression.ts';
import type { RunConfig } from '../../shared/config.ts';
import { DownpourError, errorText } from '../../shared/errors.ts';
import { createLayout, type Layout } from '../../shared/layout.ts';
import { LIMITS } from '../../shared/limits.ts';
import { fragmentsOf, type PushKind } from '../../shared/local-steps.ts';
import { type Range, rangeLayout, rangesOfRun } from '../../shared/partition.ts';
import type { RowTableFacts } from '../../shared/rest.ts';
import { type TableFields, tablesOf } from '../../shared/tables.ts';
import type { LandingRoom, StagedPush } from './landing-rooms.ts';
import { clipOf } from './outer.ts';
import { Parameters } from './parameters.ts';
import type { RowsLanded } from './run/calls.ts';
import type { SaveKind, ShardCommand } from './shard-command.ts';
import { densePart, type PartOfRows, ShardRows } from './shard-rows.ts';
import { fragmentBytes, Snapshot } from './snapshot.ts';
import { createRunTables, PUSHED_ROWS_BYTES_MAX } from './tables/run-tables.ts';
import type { TablesCopy } from './tables/tables-copy.ts';
import {
  type CopyVector,
  notFiniteIn,
  payloadLimits,
  slice,
  VECTOR,
  vectorPlaces,
} from './vectors.ts';

/**
 * A shard: it holds a range of the vector of each run, and does with it what the coordinator has decided,
 * in the order of its decisions. So "step n" means the same on all shards, a pull is never torn between
 * them, and a checkpoint is a cut through all of them at one step. See docs/decisions/0009-shards.md.
 */

/**
 * Pushes of one worker that wait for their parts, or parts for their push: one for each minibatch that it may hold,
 * and as many that were given away.
 */
export function partsMax({ consistency: { depth } }: Pick<RunConfig, 'consistency'>): number {
  return 2 * (depth + 1);
}

/** The best parameters among saved vectors and in a checkpoint. */
export const BEST = '@best';

/** Where a run's ranges lie and what tells their shards. The first range is the coordinator's own. */
export interface RunShards {
  readonly count: number;
  /** To shards 1 … parts − 1, in this order. */
  tell(parts: number, command: ShardCommand): void;
  /** To one of them. @param values that come with it, as the bits of f32; not changed until they have left. */
  tellOne(index: number, command: ShardCommand, values?: Float32Array): void;
}

/**
 * @param config that says whether the run has tables.
 * @throws DownpourError DP_LAYOUT_INVALID: a range is larger than a frame, or its memory.
 */
export function rangesOf(layout: Layout, shards: number, config: TableFields): Range[] {
  const ranges = rangesOfRun(layout, shards, tablesOf(config) !== null);
  const largest = Math.max(...ranges.map(({ start, end }) => 4 * (end - start)));
  if (largest <= LIMITS.frameBytesMax) return ranges;
  const needed = Math.ceil((4 * layout.size) / (0.9 * LIMITS.frameBytesMax));
  throw new DownpourError(
    'DP_LAYOUT_INVALID',
    `the model has ${layout.size} parameters, ${4 * layout.size} bytes; one shard holds at most ${LIMITS.frameBytesMax} of them: start the server with --shards ${needed}`,
  );
}

/** Initial parameters of a worker. */
interface InitialName {
  readonly run: string;
  readonly session: string;
  readonly grant: number;
}

export interface ShardEvents {
  /** A part of a push is here. @param squares without those of rows; NaN: not finite. @param problem with the part itself. */
  landed(of: PushPartName, squares: number, problem: string | null, rows: RowsLanded | null): void;
  /** A part of initial parameters is here, of the worker that is asked for them. @param problem why it cannot be used. */
  initialLanded(of: InitialName, problem: string | null): void;
  /** An update made parameters overflow; they are as before. */
  overflowed(run: string, generation: number): void;
  /** A worker is to get this. @param parts of the payload that are sent. */
  send(
    session: string,
    header: { run: string; pull: number; fragment?: number },
    payload: Snapshot,
    parts: readonly Uint8Array[],
  ): void;
  /** A worker is to get these rows. */
  sendRows(
    session: string,
    header: { run: string; pull: number; encoding: 'f32' | 'bf16' },
    bytes: Uint8Array,
  ): void;
  /** The shard has other rows than it had when this was told last, by table. */
  rowFacts(run: string, tables: RowTableFacts[]): void;
}

type CommandOfRows = Extract<
  ShardCommand,
  {
    kind: 'resetRows' | 'beginRows' | 'sendRows' | 'readRows' | 'restoreRows' | 'writeRows';
  }
>;

/** The part of a push that one shard gets. */
export interface PushPartName {
  readonly run: string;
  readonly session: string;
  readonly sequence: number;
}

interface LandedPushPart extends PartOfRows {
  readonly encoding: Encoding;
  /** Absent: a gradient. */
  readonly kind?: PushKind | undefined;
  /** That the worker says it holds; absent: all of the range. */
  readonly fragment?: number | undefined;
  /** That it came into; null or absent: into other memory. */
  readonly room?: LandingRoom | null;
  readonly release: () => void;
}

interface HeldRun {
  readonly layout: Layout;
  readonly config: RunConfig;
  readonly parameters: Parameters;
  /** Null: the run has no tables. */
  readonly rows: ShardRows | null;
  readonly captures: Map<number, Float32Array>;
  readonly saved: Map<number, Map<string, Float32Array>>;
  /** Rows that are being copied for one of these; null: all are copied. */
  copying: { readonly id: number; readonly rows: TablesCopy } | null;
  /** Parts of pushes that wait for a decision, by session and sequence. */
  readonly landed: Map<string, Map<number, LandedPushPart>>;
  /** The worker that is asked for initial parameters; null: nobody is. */
  granted: { readonly session: string; readonly grant: number; part: LandedPushPart | null } | null;
  /** Initial parameters that came before it was told who is asked for them; and how often that was looked at. */
  early: {
    readonly session: string;
    readonly grant: number;
    part: LandedPushPart;
    looks: number;
  } | null;
  /** Last sequence of each worker: none is applied twice, whatever the coordinator says. */
  readonly applied: Map<string, number>;
  best: Float32Array | null;
}

export class Shard {
  readonly #index: number;
  readonly #count: number;
  readonly #events: ShardEvents;
  readonly #runs = new Map<string, HeldRun>();

  /** @param index from 1: 0 is the coordinator. @param count of all shards. */
  constructor(index: number, count: number, events: ShardEvents) {
    this.#index = index;
    this.#count = count;
    this.#events = events;
  }

  get runs(): number {
    return this.#runs.size;
  }

  /** What it holds of a run, for those who look; null: nothing. */
  heldOf(run: string): Pick<HeldRun, 'layout' | 'parameters' | 'rows'> | null {
    return this.#runs.get(run) ?? null;
  }

  /** The longest that a worker of any run may be silent. */
  get leaseMs(): number {
    const seconds = [...this.#runs.values()].map(({ config }) => config.leaseSeconds);
    return 1000 * Math.max(0, ...seconds);
  }

  // What workers send.

  /** Room for a part; see `Parameters.land`. */
  land(run: string, byteLength: number, encoding: Encoding | null): LandingRoom | null {
    return this.#runs.get(run)?.parameters.land(byteLength, encoding) ?? null;
  }

  /** Limits of the parts of a run, and of its initial parameters; null: there is no such run here. */
  partLimits(
    run: string,
  ): (ReturnType<typeof payloadLimits> & { initialBytes: number; rowBytes: number }) | null {
    const held = this.#runs.get(run);
    if (!held) return null;
    const { layout, rows } = held;
    const rowBytes = rows ? PUSHED_ROWS_BYTES_MAX : 0;
    return { ...payloadLimits(layout), initialBytes: 4 * layout.size, rowBytes };
  }

  /**
   * @param part that stays as it is until its `release`, which is called exactly once.
   * @throws DownpourError DP_LIMIT: too many of this worker are here already; the part stays the caller's.
   */
  part(of: PushPartName, part: LandedPushPart): void {
    const held = this.#runs.get(of.run);
    if (!held) {
      part.release();
      return;
    }
    const ofSession = held.landed.get(of.session) ?? new Map<number, LandedPushPart>();
    held.landed.set(of.session, ofSession);
    if (ofSession.has(of.sequence)) {
      // Sent again over the same connection: the first one counts.
      part.release();
      return;
    }
    const most = partsMax(held.config);
    if (ofSession.size >= most) {
      throw new DownpourError(
        'DP_LIMIT',
        `${ofSession.size} parts of this worker's pushes wait for their others; at most ${most} may: send each push to all shards, and wait for its answer`,
      );
    }
    ofSession.set(of.sequence, part);
    let squares = Number.NaN;
    let problem: string | null = null;
    let rows: RowsLanded | null = null;
    const limit = limitOf(held.config, part.kind);
    try {
      const dense = densePart(part);
      rows = held.rows?.landed(of, part, limit, most) ?? null;
      const staged = held.parameters.stage(dense, part.encoding, part.room, part.fragment);
      // Parameters are measured by how far off they are now: what moves until they are used is little beside that.
      squares =
        part.kind === 'elastic'
          ? held.parameters.elasticSquares(staged)
          : held.parameters.squares(staged, limit);
    } catch (error) {
      problem = errorText(error);
    }
    this.#events.landed(of, squares, problem, rows);
  }

  /** @param part in f32, as in `part`. */
  initialPart(run: string, session: string, grant: number, part: LandedPushPart): void {
    const held = this.#runs.get(run);
    const fits = part.payload.length === 4 * (held?.layout.size ?? 0);
    if (!held || !fits) part.release();
    else if (held.granted?.session === session && held.granted.grant === grant) {
      held.granted.part?.release();
      held.granted.part = part;
    } else {
      // One of a run is enough: it waits for what is on its way from the coordinator. Another worker's may take its place,
      // so it has not landed yet.
      held.early?.part.release();
      held.early = { session, grant, part, looks: 0 };
      return;
    }
    if (held) this.#initialLanded(held, { run, session, grant }, part);
  }

  #initialLanded({ layout }: HeldRun, of: InitialName, { payload }: LandedPushPart): void {
    const { size } = layout;
    const problem =
      payload.length === 4 * size
        ? notFiniteIn(layout, floatsOf(payload))
        : `have ${payload.length / 4} elements for shard ${this.#index}, whose part of the layout needs ${size}`;
    this.#events.initialLanded(of, problem);
  }

  /** A worker's connection to the coordinator is lost: what nobody has decided about will be sent again. */
  leave(session: string): void {
    for (const held of this.#runs.values()) {
      for (const part of held.landed.get(session)?.values() ?? []) part.release();
      held.landed.delete(session);
      held.rows?.leave(session);
      if (held.early?.session === session) dropEarly(held);
      revoke(held, session);
    }
  }

  /**
   * Drops initial parameters that nobody has asked for, and tells how many rows there are. Call about once a second.
   * @param looksMax after so many of these calls.
   */
  look(looksMax: number): void {
    for (const held of this.#runs.values()) {
      if (held.early && ++held.early.looks > looksMax) dropEarly(held);
    }
    for (const [run, { rows }] of this.#runs) {
      const news = rows?.news();
      if (news) this.#events.rowFacts(run, news);
    }
  }

  // What the coordinator tells.

  /** @param payload of `write`. @throws DownpourError: the run cannot be held here. */
  execute(command: ShardCommand, payload: Float32Array): void {
    if (command.kind === 'create') {
      this.#create(command);
      return;
    }
    const held = this.#runs.get(command.run);
    if (command.kind === 'remove') {
      // Another shard may have taken the place of the one that had it.
      if (held) dropParts(held);
      this.#runs.delete(command.run);
      return;
    }
    if (!held) throw new Error(`command '${command.kind}' for a run that was never created`);
    const { parameters, captures, rows } = held;
    switch (command.kind) {
      case 'grant': {
        const { run, session, grant } = command;
        const part = granted(held, command);
        if (part) this.#initialLanded(held, { run, session, grant }, part);
        break;
      }
      case 'revoke':
        revoke(held, command.session);
        break;
      case 'initialise': {
        const { session = null, part = null } = held.granted ?? {};
        if (!part || session !== command.session) {
          throw new Error('initial parameters were used that never came');
        }
        parameters.initialise(floatsOf(part.payload));
        revoke(held, command.session);
        break;
      }
      case 'apply':
        this.#apply(held, command);
        break;
      case 'collect':
        this.#collect(held, command);
        break;
      case 'combine': {
        const { shares, faulty, clip, options } = command;
        const staged = parameters.combine(shares, faulty, options.fragment);
        if (!parameters.update(staged, clip, options)) {
          this.#events.overflowed(command.run, command.generation);
        }
        break;
      }
      case 'discard':
        parameters.discard();
        break;
      case 'remember':
        parameters.remember(command.slot, command.fresh);
        break;
      case 'drop':
        take(held, command)?.release();
        break;
      case 'send':
        this.#send(held, command);
        break;
      case 'capture':
        captures.set(command.id, parameters[command.what]());
        rows?.tables.capture(command.id);
        break;
      case 'forget':
        captures.delete(command.id);
        rows?.tables.forget(command.id);
        break;
      case 'replace':
        if (command.by !== 'evaluated') rows?.tables.replace(command.by);
        parameters.replace(
          command.by === 'evaluated' ? parameters.evaluated() : captured(held, command.by),
        );
        break;
      case 'resetOptimizer':
        parameters.resetOptimizer();
        rows?.tables.resetOptimizer();
        break;
      case 'save':
        save(held, command);
        break;
      case 'saved':
        held.saved.delete(command.id);
        if (held.copying?.id === command.id) held.copying = null;
        rows?.tables.endCopy(command.isWritten);
        break;
      case 'write':
        if (command.name === BEST) {
          held.best ??= new Float32Array(held.layout.exchangedSize);
          held.best.set(payload, command.start);
        } else parameters.kept.write(command.name, command.start, payload);
        break;
      case 'restore':
        parameters.kept.restoreState(command.state);
        // Nothing was written of a range without such elements.
        if (held.layout.exchangedSize === 0) held.best = new Float32Array();
        if (command.best !== null && held.best) captures.set(command.best, held.best);
        held.best = null;
        for (const [worker, sequence] of command.workers) held.applied.set(worker, sequence);
        break;
      default:
        this.#executeRows(held, command, payload);
    }
  }

  #executeRows(held: HeldRun, command: CommandOfRows, payload: Float32Array): void {
    const { run } = command;
    const { rows } = held;
    if (!rows) throw new Error(`command '${command.kind}' for a run without tables`);
    const { tables } = rows;
    switch (command.kind) {
      case 'resetRows':
        tables.reset(command.seed);
        break;
      case 'beginRows':
        tables.begin(bytesOf(payload));
        break;
      case 'sendRows': {
        const { session, pull, sequence } = command;
        const { bytes, encoding } = rows.wanted(session, sequence);
        this.#events.sendRows(session, { run, pull, encoding }, bytes);
        break;
      }
      case 'readRows': {
        const { session, pull, encoding, capture } = command;
        const bytes = rows.read(bytesOf(payload), encoding, capture);
        this.#events.sendRows(session, { run, pull, encoding }, bytes);
        break;
      }
      case 'restoreRows':
        tables.restoreState(command.state);
        break;
      case 'writeRows': {
        const fields: Float32Array[] = [];
        let at = 0;
        for (const size of command.sizes) {
          fields.push(payload.subarray(at, at + size));
          at += size;
        }
        tables.write(command.table, command.capture, fields);
        break;
      }
    }
  }

  /** Copies a piece of the rows that checkpoints are waiting for. @returns false: there is nothing to be copied. */
  copySome(): boolean {
    for (const held of this.#runs.values()) {
      if (!held.copying) continue;
      if (!held.copying.rows.more()) keepCopied(held);
      return true;
    }
    return false;
  }

  /** A `save` has kept all that it is to keep. */
  isCopied(run: string, id: number): boolean {
    return this.#runs.get(run)?.copying?.id !== id;
  }

  /** Names and elements of what a `save` has kept. Rows that are not copied yet are copied at once. */
  list(run: string, id: number): { name: string; size: number }[] | null {
    const held = this.#runs.get(run);
    if (held?.copying?.id === id) keepCopied(held);
    const saved = held?.saved.get(id);
    return saved ? [...saved].map(([name, { length: size }]) => ({ name, size })) : null;
  }

  /** A piece of what a `save` has kept, as bytes. */
  read(run: string, id: number, name: string, start: number, count: number): Uint8Array | null {
    const vector = this.#runs.get(run)?.saved.get(id)?.get(name);
    return vector ? bytesOf(vector.subarray(start, start + count)) : null;
  }

  #create({ run, tensors, config }: Extract<ShardCommand, { kind: 'create' }>): void {
    const whole = createLayout(tensors);
    const share = { index: this.#index, count: this.#count };
    const layout = rangeLayout(whole, rangesOf(whole, this.#count, config)[this.#index]!);
    const tables = createRunTables(config, share);
    this.#runs.set(run, {
      layout,
      config,
      parameters: new Parameters(layout, config, vectorPlaces(config, whole)),
      rows: tables && new ShardRows(tables, config),
      captures: new Map(),
      ...{ saved: new Map(), copying: null },
      landed: new Map(),
      ...{ granted: null, early: null },
      applied: new Map(),
      best: null,
    });
  }

  #send(held: HeldRun, command: Extract<ShardCommand, { kind: 'send' }>): void {
    const { run, pull, session, fragment } = command;
    const payload = payloadOf(held, command);
    if (fragment === undefined) {
      this.#events.send(session, { run, pull }, payload, [payload.bytes]);
      return;
    }
    const of = { index: fragment, count: fragmentsOf(held.config) };
    const parts = fragmentBytes(payload, held.layout, of);
    this.#events.send(session, { run, pull, fragment }, payload, parts);
  }

  #apply(held: HeldRun, command: Extract<ShardCommand, { kind: 'apply' }>): void {
    const part = takeOnce(held, command);
    try {
      const rows = command.rows ? held.rows : null;
      // They go first: the update makes the next vector where the part has landed.
      if (rows && !rows.apply(part, command.rows!)) {
        this.#events.overflowed(command.run, command.generation);
        return;
      }
      const staged = stagedOf(held, part, command);
      if (!held.parameters.update(staged, command.clip, command.options)) {
        rows?.undo();
        this.#events.overflowed(command.run, command.generation);
      }
    } finally {
      part.release();
    }
  }

  #collect(held: HeldRun, command: Extract<ShardCommand, { kind: 'collect' }>): void {
    const part = takeOnce(held, command);
    try {
      if (command.rows && held.rows && !held.rows.apply(part, command.rows)) {
        this.#events.overflowed(command.run, command.rows.generation);
        return;
      }
      const staged = stagedOf(held, part, command);
      held.parameters.collect(staged, command.weight, command.compensation);
    } finally {
      part.release();
    }
  }
}

/** A command without a kind is of a gradient. */
const limitOf = (config: RunConfig, kind: PushKind = 'gradient') =>
  clipOf(config, kind).value ?? Infinity;

function stagedOf(
  { parameters }: HeldRun,
  part: LandedPushPart,
  { kindOfPush }: { readonly kindOfPush?: PushKind },
): StagedPush {
  const { encoding, room, fragment } = part;
  const staged = parameters.stage(densePart(part), encoding, room, fragment);
  return kindOfPush === 'elastic' ? parameters.elastic(staged) : staged;
}

/** A part that counts. Its release is the caller's. */
function takeOnce(held: HeldRun, of: PushPartName & { readonly worker: string }): LandedPushPart {
  const part = take(held, of);
  if (!part) throw new Error(`push ${of.sequence} was applied without its part`);
  const last = held.applied.get(of.worker) ?? 0;
  if (of.sequence <= last) {
    part.release();
    throw new Error(`push ${of.sequence} was applied twice`);
  }
  held.applied.delete(of.worker);
  held.applied.set(of.worker, of.sequence);
  if (held.applied.size > 2 * LIMITS.workerCountMax) {
    held.applied.delete(held.applied.keys().next().value!);
  }
  return part;
}

/** @returns the part that has come before its worker was known to be asked; null: none has. */
function granted(
  held: HeldRun,
  { session, grant }: { session: string; grant: number },
): LandedPushPart | null {
  const { granted, early } = held;
  // Asked once more, it may have answered already.
  if (granted?.session === session && granted.grant === grant) return null;
  if (granted) revoke(held, granted.session);
  held.granted = { session, grant, part: null };
  if (early?.session !== session || early.grant !== grant) return null;
  held.granted.part = early.part;
  held.early = null;
  return early.part;
}

/** Nobody asks it for initial parameters any more. */
function revoke(held: HeldRun, session: string): void {
  if (held.granted?.session !== session) return;
  held.granted.part?.release();
  held.granted = null;
}

/** Its workers send them again where there is somebody to take them. */
function dropParts(held: HeldRun): void {
  for (const ofSession of held.landed.values())
    for (const part of ofSession.values()) part.release();
  held.landed.clear();
  if (held.granted) revoke(held, held.granted.session);
  dropEarly(held);
}

function dropEarly(held: HeldRun): void {
  held.early?.part.release();
  held.early = null;
}

function take(held: HeldRun, { session, sequence }: PushPartName): LandedPushPart | undefined {
  const ofSession = held.landed.get(session);
  const part = ofSession?.get(sequence);
  ofSession?.delete(sequence);
  return part;
}

function captured(held: HeldRun, id: number): Float32Array {
  const values = held.captures.get(id);
  if (!values) throw new Error(`capture ${id} is not there`);
  return values;
}

/** Keeps copies of this moment for a checkpoint. Rows follow, piece by piece. */
function save(held: HeldRun, command: Extract<ShardCommand, { kind: 'save' }>): void {
  const { id, what, best, changes } = command;
  if (held.copying) keepCopied(held);
  // It has lost count of the rows that went, which the server cannot know: it keeps nothing, and all rows are written next.
  if (changes && held.rows?.tables.copyBytes().changed === null) return;
  const values = best === null ? null : captured(held, best);
  held.saved.set(id, saveVectors(held.parameters, what, values));
  const rows = held.rows?.tables.beginCopy(what, best, { changes });
  held.copying = rows ? { id, rows } : null;
}

function keepCopied(held: HeldRun): void {
  const { id, rows } = held.copying!;
  held.copying = null;
  for (const { name, values } of rows.tensors()) held.saved.get(id)?.set(name, values);
}

function payloadOf(held: HeldRun, command: Extract<ShardCommand, { kind: 'send' }>): Snapshot {
  const { parameters, config } = held;
  const values = command.capture === null ? undefined : captured(held, command.capture);
  if (command.whole) return new Snapshot(bytesOf(parameters.whole(values)), 'f32');
  if (values) return new Snapshot(bytesOf(values), 'f32');
  return parameters.snapshot(config.compression.pull);
}

/**
 * Private copies of what a checkpoint keeps of one range, by the names of `Parameters.vectors` and `BEST`.
 * @param best captured, shape [exchangedSize].
 */
export function saveVectors(
  parameters: Parameters,
  what: SaveKind,
  best: Float32Array | null,
  copy: CopyVector = slice,
): Map<string, Float32Array> {
  if (what !== 'last') {
    const instead = what === 'best' ? (best ?? undefined) : undefined;
    return new Map([[VECTOR, parameters.whole(instead, copy)]]);
  }
  const saved = new Map<string, Float32Array>();
  for (const [name, values] of parameters.kept.vectors()) saved.set(name, copy(values));
  if (best) saved.set(BEST, best);
  return saved;
}
