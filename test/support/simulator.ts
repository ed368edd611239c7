import { Budget } from '../../server/access/budget.ts';
import type { RunCall } from '../../server/core/run/calls.ts';
import type { RunInternals, RunState } from '../../server/core/run/state.ts';
import { RESTORED_BEST } from '../../server/core/run/vector.ts';
import { Run } from '../../server/core/run.ts';
import type { NamedTensor } from '../../server/core/vectors.ts';
import { codeVersion } from '../../server/fleet/code-version.ts';
import { Coordinator } from '../../server/fleet/coordinator.ts';
import { WorkerSession } from '../../server/fleet/session.ts';
import { giveShards, saveShards } from '../../server/shards/checkpoint.ts';
import { ShardPool } from '../../server/shards/pool.ts';
import { checkToStandby, type ToStandby } from '../../server/standby/protocol.ts';
import { Replication } from '../../server/standby/replication.ts';
import { Replicas } from '../../server/standby/standby.ts';
import { bytesOf, concatFloats, floatsOf } from '../../shared/codec.ts';
import { type PartialConfig, type RunConfig, resolveConfig } from '../../shared/config.ts';
import { collects, isInRounds, shardsProblem } from '../../shared/consistency.ts';
import { type DownpourError, errorCode } from '../../shared/errors.ts';
import { fragmentPieces } from '../../shared/fragments.ts';
import { GROUPS_HEADER, groupsOf, mayFreeze } from '../../shared/groups.ts';
import { createLayout, type Layout } from '../../shared/layout.ts';
import { FRAGMENTS_HEADER, fragmentsOf, LOCAL_STEPS_HEADER } from '../../shared/local-steps.ts';
import { type Range, rangesOfRun } from '../../shared/partition.ts';
import type {
  Acknowledgement,
  Assign,
  Join,
  Lease,
  LocalWork,
  Push,
  ServerMessage,
  Work,
} from '../../shared/protocol.ts';
import { type Random, random } from '../../shared/random.ts';
import type { PullRows } from '../../shared/row-messages.ts';
import { encodeKeys, type RowEncoding } from '../../shared/rows.ts';
import type { PartMessage } from '../../shared/shard-messages.ts';
import { ROW_SHARDS_HEADER, rowShapes, TABLES_HEADER } from '../../shared/tables.ts';
import type {
  Connection,
  ConnectionEvents,
  FrameHeader,
  Landing,
  PayloadPlace,
} from '../../wire/connection.ts';
import { FragmentedParameters } from '../../worker/fragments.ts';
import type { RowsOfPush } from '../../worker/rows/rows-exchange.ts';
import { type Pull, type RowPull, rangesFor, ShardLinks } from '../../worker/shard-links.ts';
import { PlacedTensors } from './placed-tensors.ts';
import {
  createProblem,
  EXCHANGED,
  examplesOf,
  FACTS,
  FEATURES,
  gradientOf,
  lossOf,
  TENSORS,
} from './regression.ts';
import {
  initialRows,
  LARGEST,
  LOOKS,
  mergedRows,
  OVERFLOWING,
  type SavedRows,
  TABLES,
  WatchedRows,
  WorkerRows,
} from './simulated-rows.ts';
import {
  fileOf,
  liveValues,
  type SentParts,
  SimulatedShard,
  virtualSource,
  virtualTimers,
  WholeShard,
} from './simulated-shards.ts';
import {
  areSameBytes,
  copyOfFields,
  joinedBytes,
  type VirtualEnd,
  virtualDial,
} from './virtual-network.ts';

/**
 * A deterministic simulation of a cluster: the server's own coordinator, sessions and runs, virtual
 * workers, a virtual network and a virtual clock, all from one seed. Messages are delayed, connections cut
 * in the middle of a payload or noticed late by one end, workers and the server are halted, killed and
 * started again, some workers lie, some never end a minibatch. In every third cluster a standby follows the server, is lost and comes back, and
 * takes over when the server is killed. After each event the invariants are checked; the first that is broken ends
 * the simulation with a `Violation`.
 */

/** What is broken, and how to see it again. */
export class Violation extends Error {
  /** Number in the contract of docs/reliability.md. */
  readonly invariant: number;
  constructor(invariant: number, seed: number, what: string) {
    super(
      `invariant ${invariant} is broken: ${what}\nsee it again: npm run soak -- --seed ${seed} --seeds 1`,
    );
    this.invariant = invariant;
  }
}

export interface SimulationOptions {
  /** Virtual seconds with faults; then it must come to an end by itself. */
  readonly faultSeconds?: number;
  /** Changes what the server does, to see that it is noticed. */
  readonly sabotage?: Sabotage;
}

/** Places at which a test may make the server a broken one. */
export interface Sabotage {
  /** Whether a message of the server is sent. */
  readonly outgoing?: (message: ServerMessage) => boolean;
  /** What is read from a checkpoint. */
  readonly restored?: (checkpoint: Saved, all: readonly Saved[]) => Saved;
  readonly config?: PartialConfig;
}

export interface Saved {
  readonly state: RunState;
  readonly tensors: ReturnType<Run['tensors']>;
  readonly step: number;
  /** Null: the run has no tables. */
  readonly rows: SavedRows | null;
}

function copyOfSaved({ state, tensors, step, rows }: Saved): Saved {
  const copied = tensors.map((tensor) => ({ ...tensor, values: tensor.values.slice() }));
  return { state: copyOfFields(state), tensors: copied, step, rows };
}

export interface Summary {
  readonly seed: number;
  readonly events: number;
  readonly phase: string;
  readonly steps: number;
  readonly applied: number;
  readonly crashes: number;
  readonly failovers: number;
  readonly cuts: number;
  /** Pushes whose rows were applied, in the last life. */
  readonly rowSteps: number;
  /** That the parameters lie on. */
  readonly shards: number;
  /** How often one was killed. */
  readonly shardsKilled: number;
}

const problem = createProblem();
/** Fragments are of 256 elements at least: one more tensor, whose elements go where their index says. */
const WIDE = 256;
const tensorsWith = (wide: number): Join['tensors'] => [
  ...TENSORS.slice(0, 2),
  { name: 'wide', shape: [wide], role: 'trainable' },
  ...TENSORS.slice(2),
];
const WIDE_TENSORS = tensorsWith(WIDE);
/** A shard has so many at least: see shared/partition.ts. */
const SHARD_ELEMENTS = 2 ** 14;
const [SMALL, LARGE] = [TENSORS, WIDE_TENSORS].map((tensors) => createLayout(tensors));
/** Elements of the problem itself, before those of `wide`. */
const OWN = EXCHANGED - 1;
/** What clusters are of besides asynchronous ones, as many of which there are. */
const MODES: readonly NonNullable<PartialConfig['consistency']>[] = [
  { mode: 'bounded', aheadMax: 0 },
  { mode: 'bounded', aheadMax: 2, correction: 'lookahead' },
  { mode: 'synchronous' },
  { mode: 'synchronous', aggregate: 'trimmedMean' },
  { mode: 'backup' },
  { mode: 'backup', quorum: 2, graceMs: 400, aggregate: 'median' },
  { mode: 'buffered', bufferSize: 3, damping: 'root', correction: 'compensated' },
  { mode: 'buffered', bufferSize: 2, stalenessMax: 0 },
  { mode: 'async', correction: 'delay' },
  { mode: 'async', correction: 'compensated' },
  { mode: 'async', correction: 'lookahead', velocity: 'worker' },
];
const IN_ROUNDS = { stalenessMax: null, damping: 'none', correction: 'none', depth: 1 } as const;
/** Workers take local steps in a third of the simulations. */
const LOCAL: readonly PartialConfig[] = [
  { local: { steps: 3 }, outer: { momentum: 0.5 } },
  { local: { steps: 2, after: 4 } },
  { local: { steps: 2, push: 'elastic' } },
  { local: { steps: 2, fragments: 2 }, outer: { momentum: 0.5 } },
];
/** An elastic exchange moves both sides at once: the modes that it works in. */
const ELASTIC_MODES: readonly (string | undefined)[] = [
  undefined,
  'async',
  'bounded',
  'synchronous',
  'backup',
];

/** Parameters are in groups in a third of the simulations without local steps. */
const GROUPS: readonly NonNullable<PartialConfig['groups']>[] = [
  { weights: { pattern: 'weights', learningRate: 0.5, optimizer: { kind: 'adam' } } },
  {
    bias: { pattern: 'bias', everySteps: 3 },
    weights: { pattern: 'weights', weightDecay: { rate: 0.01 } },
  },
  {
    bias: {
      pattern: 'bias',
      optimizer: { kind: 'momentum' },
      schedule: { kind: 'cosine', steps: 40 },
    },
  },
  { weights: { pattern: 'weights', frozen: { untilStep: 6 } } },
  {
    bias: { pattern: 'bias', frozen: { untilStep: 9 }, optimizer: { kind: 'adam' } },
    weights: { pattern: 'weights', everySteps: 2, learningRate: 0.5 },
  },
  {
    bias: { pattern: 'bias', frozen: true },
    weights: { pattern: 'weights', optimizer: { kind: 'momentum' }, everySteps: 2 },
  },
];

const OVERFLOWING_GROUPS: NonNullable<PartialConfig['groups']> = {
  bias: { pattern: 'bias', learningRate: OVERFLOWING, optimizer: { kind: 'sgd' } },
};

const NO_PAYLOAD = new Float32Array();
const NO_BYTES = new Uint8Array();
const CREATED_AT = '2026-01-01T00:00:00.000Z';
/** Nothing takes longer when nobody disturbs. */
const PATIENCE_SECONDS = 7_200;

/** The numbers of a run themselves. What it tells is a copy of all of them, which takes most of the time of a cluster. */
const insideOf = (run: Run) => (run as unknown as { readonly inside: RunInternals }).inside;

/** Trainable tensors and statistics as they are, in the order of the model. */
function partsOf(run: Run, tensors: Join['tensors']): Float32Array[] {
  const all = run.withoutRows('final', (live) => live);
  return tensors
    .filter(({ role }) => role !== 'frozen')
    .map((spec) => all.find(({ name }) => name === spec.name)!.values);
}

const areEqual = (some: Float32Array, others: Float32Array) =>
  some.length === others.length && some.every((x, i) => x === others[i]);

/** Whether a vector is these parts, one after the other. */
function isJoined(all: Float32Array, parts: readonly Float32Array[]): boolean {
  const [first] = parts;
  if (parts.length === 1 && areSameBytes(bytesOf(all), bytesOf(first!))) return true;
  let at = 0;
  for (const part of parts) {
    for (let i = 0; i < part.length; i++) if (part[i] !== all[at++]) return false;
  }
  return at === all.length;
}

/** With local steps a lease is of several. */
function minibatchesOf({ part, epoch, start, count }: Lease): string[] {
  return Array.from(
    { length: Math.ceil(count / 4) },
    (_, i) => `${part} ${epoch} ${start + 4 * i}`,
  );
}

interface Applied {
  readonly key: string;
  readonly sequence: number;
  /** That it is part of; where several pushes make a step, it may be the next one. */
  readonly step: number;
  readonly lease: number;
  readonly minibatches: readonly string[];
  /** A worker was told. */
  acknowledged?: boolean;
}

const nameOf = ({ key, sequence }: Pick<Applied, 'key' | 'sequence'>) => `${key} ${sequence}`;

/** What a standby follows with; a lag that a test of seconds reaches. */
type Follow = { readonly mode: 'sync' | 'async'; readonly lagMax: number };

export async function simulate(seed: number, options: SimulationOptions = {}): Promise<Summary> {
  const simulation = new Simulation(seed, options);
  return simulation.run();
}

class Simulation {
  readonly seed: number;
  readonly draw: Random;
  readonly options: SimulationOptions;
  readonly config: PartialConfig;
  readonly resolved: RunConfig;
  readonly consistency: RunConfig['consistency'];
  /** The largest gradients that there are make the parameters overflow. */
  readonly overflows: boolean;
  /** Parts that the parameters are exchanged in. */
  readonly fragments: number;
  readonly tensors: Join['tensors'];
  readonly layout: Layout;
  /** Elements of the tensor that is there for fragments and shards; 0: there is none. */
  readonly wide: number;
  /** The processes of shards, one of them to spare now and then; empty: the server has all of it. */
  readonly shards: SimulatedShard[] = [];
  /** Shards that a run lies on, the server among them. */
  readonly shardCount: number;
  /** Where the parameters lie on them. */
  readonly ranges: readonly Range[];
  shardsKilled = 0;
  /** Null: there is no standby. */
  readonly follow: Follow | null;
  /** Whether another push may follow one at once. */
  readonly together: Random;
  /** Whether a worker hangs, and in which minibatch. */
  readonly hanging: Random;
  readonly server: SimulatedServer;
  readonly workers: SimulatedWorker[] = [];
  /** That work. */
  readonly connections = new Set<SimulatedConnection>();
  /** The server holds its end of each, also of one that is cut. */
  readonly sockets = new Set<SimulatedConnection>();
  now = 0;
  /** No more faults come, and nobody need stand by. */
  calm = false;
  events = 0;
  cuts = 0;
  #queue: { at: number; order: number; act: () => void }[] = [];
  #order = 0;

  constructor(seed: number, options: SimulationOptions) {
    this.seed = seed;
    this.options = options;
    this.draw = random(seed, 1);
    const stalenessMax = this.pick([null, null, 0, 2, 5]);
    const modes = random(seed, 6);
    const mode = MODES[modes.below(2 * MODES.length)] ?? null;
    const inRounds = mode?.mode === 'synchronous' || mode?.mode === 'backup';
    const local = LOCAL[random(seed, 7).below(3 * LOCAL.length)];
    // What is kept of gradients has no meaning for the results of local steps.
    const isElastic = local?.local?.push === 'elastic';
    const isMean = mode?.aggregate === undefined;
    const isByFragments = local?.local?.fragments !== undefined;
    const fits =
      (!isElastic || (ELASTIC_MODES.includes(mode?.mode) && isMean)) &&
      (!isByFragments || mode?.mode !== 'buffered');
    const isLocal =
      local !== undefined &&
      fits &&
      !['lookahead', 'compensated', 'gap'].includes(mode?.correction ?? '');
    const groups = GROUPS[random(seed, 9).below(3 * GROUPS.length)];
    const given = TABLES[random(seed, 10).below(2 * TABLES.length)];
    // Rows have no average, and no other push can outvote theirs.
    const tables = isLocal || mode?.velocity !== undefined || !isMean ? undefined : given;
    // A push may make the parameters overflow when its rows are updated already.
    this.overflows = tables !== undefined && mode === null && random(seed, 11).below(3) === 0;
    const config: PartialConfig = {
      minibatchSize: 4,
      ...(isLocal && local),
      ...(!isLocal && mode?.velocity === undefined && groups && { groups }),
      ...(this.overflows && { groups: OVERFLOWING_GROUPS }),
      // Such a push takes the run back as often as there is one, and it learns as before.
      ...(tables && { divergence: { rollbacksMax: 100, factor: 1 } }),
      learningRate: 0.03,
      epochsMax: this.pick([2, 6, 20]),
      leaseSeconds: this.pick([3, 10, 60]),
      evaluateEverySteps: this.pick([3, 5, 11]),
      optimizer: { kind: this.pick(['sgd', 'momentum', 'adam'] as const) },
      ...(mode?.velocity && { optimizer: { kind: 'momentum' } }),
      averaging: this.pick([{ kind: 'none' }, { kind: 'ema', decay: 0.9 }] as const),
      ...(tables && { tables, averaging: { kind: 'none' } }),
      consistency: {
        stalenessMax,
        damping: this.pick(['none', 'inverse']),
        correction: random(seed, 5).below(2) === 0 ? 'auto' : 'none',
        depth: random(seed, 4).below(3) === 0 ? 2 : 1,
        ...(mode && { damping: 'none', depth: 1 }),
        ...(inRounds && IN_ROUNDS),
        ...mode,
        ...(isLocal && (isElastic || isByFragments) && { depth: 1 }),
        ...(this.overflows && { damping: 'none', correction: 'none' }),
      },
      nonFiniteMax: 1_000,
      earlyStopping: {
        patience: this.pick([1, 3, 100]),
        afterStop: this.pick(['restore', 'retrain', 'continue'] as const),
        continueStepsMax: 20,
      },
    };
    this.config = config;
    const resolved = resolveConfig(config);
    this.resolved = resolved;
    this.consistency = resolved.consistency;
    this.fragments = fragmentsOf(resolved);
    const sharding = random(seed, 12);
    const mayShard = this.fragments === 1 && !this.overflows && shardsProblem(resolved) === null;
    const count = sharding.below(4) === 0 ? 2 + sharding.below(2) : 1;
    this.shardCount = mayShard && !mayFreeze(groupsOf(resolved)) ? count : 1;
    const isCut = this.shardCount > 1 && (tables === undefined || sharding.below(2) === 0);
    if (isCut) {
      this.wide = SHARD_ELEMENTS * this.shardCount;
      this.tensors = tensorsWith(this.wide);
      this.layout = createLayout(this.tensors);
    } else {
      this.wide = this.fragments > 1 ? WIDE : 0;
      this.tensors = this.fragments > 1 ? WIDE_TENSORS : TENSORS;
      this.layout = this.fragments > 1 ? LARGE! : SMALL!;
    }
    // They have streams of their own, so that a cluster's other faults are what they were without them.
    this.together = random(seed, 3);
    this.hanging = random(seed, 8);
    const follows = [{ mode: 'sync', lagMax: 0 } as const, { mode: 'async', lagMax: 2 } as const];
    this.ranges = rangesOfRun(this.layout, this.shardCount, tables !== undefined);
    // A server with shards has no standby.
    this.follow = this.shardCount > 1 ? null : (follows[random(seed, 2).below(6)] ?? null);
    const violate = (invariant: number, what: string) => this.violate(invariant, what);
    const spare = this.shardCount > 1 ? sharding.below(2) : -this.shardCount;
    for (let i = 1; i < this.shardCount + spare; i++) {
      this.shards.push(new SimulatedShard(this, violate, i));
    }
    this.server = new SimulatedServer(this);
  }

  /** The first one: what is thrown within the server is told once more, as a defect of it. */
  #violation: Violation | null = null;

  violate(invariant: number, what: string): never {
    this.#violation ??= this.violation(invariant, what);
    throw this.#violation;
  }

  violation(invariant: number, what: string): Violation {
    return new Violation(invariant, this.seed, `${what} (at ${(this.now / 1000).toFixed(3)} s)`);
  }

  pick<T>(values: readonly T[]): T {
    return values[this.draw.below(values.length)]!;
  }

  chance(share: number): boolean {
    return this.draw.uniform() < share;
  }

  /** Mostly short, now and then very long. */
  delayMs(usual: number): number {
    const long = this.chance(0.03) ? 100 : 1;
    return usual * long * this.draw.uniform();
  }

  at(delayMs: number, act: () => void): void {
    const item = { at: this.now + delayMs, order: this.#order++, act };
    let i = this.#queue.push(item) - 1;
    while (i > 0) {
      const parent = (i - 1) >> 1;
      if (!before(item, this.#queue[parent]!)) break;
      this.#queue[i] = this.#queue[parent]!;
      i = parent;
    }
    this.#queue[i] = item;
  }

  #next() {
    const first = this.#queue[0];
    const last = this.#queue.pop();
    if (!first || !last || this.#queue.length === 0) return first;
    let i = 0;
    for (;;) {
      let child = 2 * i + 1;
      if (child >= this.#queue.length) break;
      if (child + 1 < this.#queue.length && before(this.#queue[child + 1]!, this.#queue[child]!))
        child++;
      if (!before(this.#queue[child]!, last)) break;
      this.#queue[i] = this.#queue[child]!;
      i = child;
    }
    this.#queue[i] = last;
    return first;
  }

  async run(): Promise<Summary> {
    await this.server.begin();
    const count = 1 + this.draw.below(5);
    // The last one, where others can do its work.
    const hangs = count > 1 && this.hanging.below(3) === 0;
    for (let i = 0; i < count; i++) {
      const liar = this.chance(0.25);
      const isStuck = hangs && i === count - 1 && !liar;
      const worker = new SimulatedWorker(this, i, liar, isStuck);
      this.workers.push(worker);
      this.at(this.delayMs(2_000), () => worker.start());
    }
    const { faultSeconds = 60 } = this.options;
    this.#disturb(faultSeconds * 1000);
    while (!this.server.over) {
      const item = this.#next();
      if (!item) this.violate(8, `nothing happens any more in phase ${this.server.phase}`);
      if (item.at > (faultSeconds + PATIENCE_SECONDS) * 1000) {
        this.violate(8, `the run does not end; phase ${this.server.phase}`);
      }
      this.now = item.at;
      this.events++;
      item.act();
      // What the server does in microtasks belongs to the event.
      if (this.shards.length > 0) await new Promise((resolve) => setImmediate(resolve));
      else await null;
      if (this.#violation) throw this.#violation;
      this.server.check();
    }
    this.server.checkEnd();
    const { phase, step, log, crashes, failovers, rowSteps } = this.server;
    const { seed, events, cuts, shardCount: shards, shardsKilled } = this;
    return {
      ...{ seed, events, phase, steps: step, applied: log.length, crashes, failovers, cuts },
      ...{ rowSteps, shards, shardsKilled },
    };
  }

  #disturb(untilMs: number): void {
    const faults: (() => void)[] = [
      () => this.pick(this.workers).die(this.delayMs(5_000)),
      () => this.pick(this.workers).halt(this.delayMs(8_000)),
      () => this.server.crash(this.delayMs(3_000)),
      () => this.server.halt(this.delayMs(4_000)),
      () => this.#cut(),
      () => this.#cut(),
      () => this.#cut(),
    ];
    if (this.follow) faults.push(() => this.server.standby?.die(this.delayMs(500)));
    if (this.shards.length > 0) {
      faults.push(
        () => {
          this.shardsKilled++;
          this.pick(this.shards).kill(this.delayMs(3_000));
        },
        () => this.pick(this.shards).halt(this.delayMs(4_000)),
        () =>
          this.pick(this.shards)
            .someEnd((count) => this.draw.below(count))
            ?.link.cut(),
        () =>
          this.pick(this.shards)
            .someEnd((count) => this.draw.below(count))
            ?.link.cut(),
      );
    }
    this.at(untilMs, () => {
      this.calm = true;
      this.server.standby?.die(0);
    });
    // How bad a time it is, by seed.
    const everyMs = this.pick([300, 2_000, 10_000]);
    const next = () => {
      this.at(this.draw.uniform() * 2 * everyMs, () => {
        if (this.now > untilMs) return;
        this.pick(faults)();
        next();
      });
    };
    next();
  }

  #cut(): void {
    const open = [...this.connections];
    if (open.length === 0) return;
    this.cuts++;
    this.pick(open).cut();
  }
}

function before(a: { at: number; order: number }, b: { at: number; order: number }): boolean {
  return a.at < b.at || (a.at === b.at && a.order < b.order);
}

// The network.

interface Sent {
  readonly header: FrameHeader;
  payload: Uint8Array;
}

/** A connection of a worker to the server. Each direction keeps its order. */
class SimulatedConnection {
  readonly #simulation: Simulation;
  readonly #worker: SimulatedWorker;
  readonly session: WorkerSession;
  #serverOpen = true;
  #workerOpen = true;
  #lost = false;
  #toServerAt = 0;
  #leavesAt = 0;
  #toWorkerAt = 0;
  /** Messages for the server in their order: one that waits for room holds up all behind it. */
  readonly #arriving: Sent[] = [];
  #landing: { sent: Sent; landing: Landing | null; done: boolean } | null = null;
  /** What the server has sent while it dealt with a message. */
  answers: ServerMessage[] = [];

  constructor(simulation: Simulation, worker: SimulatedWorker) {
    this.#simulation = simulation;
    this.#worker = worker;
    const { coordinator } = simulation.server;
    // Its clock jumps from event to event: nothing takes time.
    const budget = new Budget({ share: 1, burstMs: Number.POSITIVE_INFINITY }, () => 0);
    const end = this.serverEnd as unknown as Connection;
    this.session = new WorkerSession(end, coordinator!, '', null, budget, {
      [GROUPS_HEADER]: 'yes',
      [LOCAL_STEPS_HEADER]: 'yes',
      [FRAGMENTS_HEADER]: 'yes',
      [TABLES_HEADER]: 'yes',
      [ROW_SHARDS_HEADER]: 'yes',
    });
    try {
      coordinator!.workers.opened(this.session);
    } catch (error) {
      this.session.fail(error);
    }
    simulation.connections.add(this);
    simulation.sockets.add(this);
  }

  get #events(): ConnectionEvents {
    return this.session.events;
  }

  // The server's end, as wire/connection.ts has it.

  readonly serverEnd = {
    transport: 'tcp' as const,
    bytes: { received: 0, sent: 0 },
    ...{ bufferedBytes: 0, leftBytes: 0, coming: null, waiting: false },
    isOpen: () => this.#serverOpen,
    get open(): boolean {
      return (this as { isOpen(): boolean }).isOpen();
    },
    send: (message: ServerMessage, parts: readonly Uint8Array[] = [], gone?: () => void) => {
      const simulation = this.#simulation;
      if (simulation.options.sabotage?.outgoing?.(message) === false) {
        gone?.();
        return;
      }
      this.answers.push(message);
      simulation.server.told(this.session.key, message);
      if (message.type === 'work') simulation.server.given(message.leases);
      simulation.server.rowsLeave(message, parts);
      const header = copyOfFields(message) as unknown as FrameHeader;
      // The bytes are read when they leave, not when they are given: nobody may write to them until then.
      this.#leavesAt = Math.max(this.#leavesAt, simulation.now + simulation.delayMs(3));
      simulation.at(this.#leavesAt - simulation.now, () => {
        const payload = joinedBytes(parts);
        gone?.();
        this.#toWorkerAt = Math.max(this.#toWorkerAt, simulation.now + simulation.delayMs(20));
        simulation.at(this.#toWorkerAt - simulation.now, () => {
          if (this.#workerOpen && !this.#lost) this.#worker.receive(this, { header, payload });
        });
      });
    },
    ping: () => {
      const simulation = this.#simulation;
      simulation.at(simulation.delayMs(20), () => {
        if (!this.#workerOpen || this.#lost || !this.#worker.responds) return;
        simulation.at(simulation.delayMs(20), () =>
          simulation.server.enter(() => this.#serverOpen && this.#events.alive()),
        );
      });
    },
    retry: () => this.#arrive(),
    hold: () => {},
    move: () => false,
    close: () => this.#endServer(5),
    terminate: () => this.#endServer(0),
  };

  #endServer(delayMs: number): void {
    if (!this.#serverOpen) return;
    this.#serverOpen = false;
    const simulation = this.#simulation;
    simulation.at(simulation.delayMs(delayMs), () => simulation.server.enter(() => this.#closed()));
    simulation.at(simulation.delayMs(50), () => this.#closeWorker());
  }

  #closedOnce = false;
  /** The server's end is gone: what was landing is given back, as the receiver does. */
  #closed(): void {
    if (this.#closedOnce) return;
    this.#closedOnce = true;
    this.#serverOpen = false;
    this.#simulation.connections.delete(this);
    this.#simulation.sockets.delete(this);
    const landing = this.#landing;
    this.#landing = null;
    this.#arriving.length = 0;
    if (landing && !landing.done) landing.landing?.release();
    this.#events.closed(1006, 'connection lost');
  }

  #closeWorker(): void {
    if (!this.#workerOpen) return;
    this.#workerOpen = false;
    this.#worker.disconnected(this);
  }

  /** Nothing passes any more; each end notices by itself, one of them perhaps much later. */
  cut(): void {
    this.#lost = true;
    const simulation = this.#simulation;
    simulation.connections.delete(this);
    simulation.at(simulation.delayMs(500), () => simulation.server.enter(() => this.#closed()));
    simulation.at(simulation.delayMs(500), () => this.#closeWorker());
  }

  /** The server's process is gone. */
  serverDied(): void {
    this.#serverOpen = false;
    this.#closedOnce = true;
    this.#lost = true;
    this.#simulation.connections.delete(this);
    this.#simulation.sockets.delete(this);
    this.#simulation.at(this.#simulation.delayMs(100), () => this.#closeWorker());
  }

  // The worker's end.

  send(header: object, payload: Uint8Array = NO_BYTES): void {
    if (!this.#workerOpen) return;
    const simulation = this.#simulation;
    const sent = { header: copyOfFields(header) as FrameHeader, payload: payload.slice() };
    this.#toServerAt = Math.max(this.#toServerAt, simulation.now + simulation.delayMs(20));
    simulation.at(this.#toServerAt - simulation.now, () =>
      simulation.server.enter(() => {
        if (!this.#serverOpen || this.#lost) return;
        this.#events.alive();
        this.#arriving.push(sent);
        this.#arrive();
      }),
    );
  }

  /** By the worker. */
  hangUp(): void {
    this.#workerOpen = false;
    const simulation = this.#simulation;
    simulation.at(simulation.delayMs(100), () => simulation.server.enter(() => this.#closed()));
  }

  /** Begins to read the next message, when there is a place for its payload. */
  #arrive(): void {
    if (this.#landing || !this.#serverOpen) return;
    const sent = this.#arriving[0];
    if (!sent) return;
    let place: PayloadPlace = null;
    try {
      if (sent.payload.length > 0) place = this.#events.land(sent.header, sent.payload.length);
    } catch (error) {
      this.#arriving.shift();
      this.#events.malformed(error as DownpourError);
      this.#arrive();
      return;
    }
    if (place === 'wait') return;
    this.#arriving.shift();
    const landing = place === 'nowhere' ? null : place;
    if (place === 'nowhere') sent.payload = NO_BYTES;
    const reading = { sent, landing, done: false };
    this.#landing = reading;
    const simulation = this.#simulation;
    // A payload takes its time, and the connection may be lost in the middle of it.
    simulation.at(sent.payload.length > 0 ? simulation.delayMs(2) : 0, () =>
      simulation.server.enter(() => {
        if (this.#landing !== reading || !this.#serverOpen) return;
        reading.done = true;
        this.#landing = null;
        this.#deliver(sent, landing as Landing | null);
        this.#arrive();
      }),
    );
  }

  #deliver({ header, payload }: Sent, landing: Landing | null): void {
    const { server } = this.#simulation;
    // What it has none for goes to memory of the receiver's.
    const isThere = landing !== null && landing.bytes.length >= payload.length;
    if (isThere) landing.bytes.set(payload);
    const place = isThere ? landing.bytes.subarray(0, payload.length) : payload.slice();
    this.answers = [];
    const before = server.step;
    const { key } = this.session;
    const counted = server.sequenceOf(key);
    const coming = { push: header as unknown as Push, payload: payload.slice() };
    const isWhole = header.type === 'push' && this.#simulation.shards.length === 0;
    if (isWhole) server.lookUp(coming.push);
    if (isWhole) server.rows?.begin(key, coming);
    const { rows } = server;
    rows?.beginAnswers();
    const pulled = header.type === 'pullRows' ? (header as unknown as PullRows) : null;
    const capture = server.captureFor(key, pulled?.evaluation ?? null);
    // Another may follow at once; then this one is answered with it, or when there is none after all.
    const more = this.#simulation.together.uniform() < 0.3;
    this.#events.message(header, place, landing, more);
    if (pulled) rows?.mustHaveRead(capture);
    if (more) this.#events.drained?.();
    if (header.type !== 'push') return;
    const push = header as unknown as Push;
    if (this.#simulation.shards.length > 0) return;
    const counts = counted < push.sequence && server.sequenceOf(key) >= push.sequence;
    server.rows?.end(key, coming, counts);
    server.judge(this, push, { before, after: server.step, counts });
  }
}

// The server.

class SimulatedServer {
  readonly #simulation: Simulation;
  coordinator: Coordinator | null = null;
  #run: Run | null = null;
  #haltedUntil = 0;
  #life = 0;
  crashes = 0;
  failovers = 0;
  standby: SimulatedStandby | null = null;
  /** Null: the run has no tables, or there is no server. */
  rows: WatchedRows | null = null;
  #replication: Replication | null = null;
  /** Checkpoints that are safe, oldest first. */
  readonly #saved: Saved[] = [];
  #savedAt = 0;
  /** Applied pushes of this line of history: a crash takes away what came after the checkpoint. And what they have used. */
  #log: Applied[] = [];
  #newestStep = 0;
  readonly #used = new Set<string>();
  readonly #leases = new Map<number, Lease>();
  #stepSeen = 0;
  #bestSeen = Infinity;
  /** The shared payload of each step, as it was when the step was made. */
  readonly #vectors = new Map<string, Float32Array>();

  constructor(simulation: Simulation) {
    this.#simulation = simulation;
  }

  get log(): readonly Applied[] {
    return this.#log;
  }

  set log(entries: Applied[]) {
    this.#log = [];
    this.#newestStep = 0;
    this.#used.clear();
    for (const entry of entries) this.#enter(entry);
  }

  #enter(entry: Applied): void {
    this.#log.push(entry);
    this.#newestStep = Math.max(this.#newestStep, entry.step);
    this.#used.add(nameOf(entry));
    for (const minibatch of entry.minibatches) this.#used.add(minibatch);
  }

  get step(): number {
    return this.#run?.step ?? 0;
  }

  get phase(): string {
    return this.#run?.phase ?? 'down';
  }

  get rowSteps(): number {
    return this.#run?.tables?.rowStep ?? 0;
  }

  get over(): boolean {
    return this.#run?.over === true && this.coordinator !== null;
  }

  async begin(): Promise<void> {
    if (this.#simulation.shards.length > 0) {
      this.#beginOnShards();
      return;
    }
    this.#open(null);
    const config = { ...this.#simulation.config, ...this.#simulation.options.sabotage?.config };
    const life = this.#life;
    const run = await this.coordinator!.create({
      ...{ id: 'r', experiment: 'regression', experimentHash: 'hash', config },
    });
    // It may have been killed meanwhile.
    if (life !== this.#life) return;
    this.#run = run;
    this.#watchRows(run, null);
    this.#tick(this.#life);
    this.#awaitStandby(500);
  }

  /** What the server would do now, when it stands still after that; never, when it is dead. */
  enter(act: () => unknown): void {
    const { now } = this.#simulation;
    if (this.#haltedUntil > now)
      this.#simulation.at(this.#haltedUntil - now, () => this.enter(act));
    else if (this.coordinator) act();
  }

  halt(ms: number): void {
    this.#haltedUntil = Math.max(this.#haltedUntil, this.#simulation.now + ms);
  }

  #tick(life: number): void {
    this.#simulation.at(1_000, () => {
      if (life !== this.#life) return;
      this.enter(() => life === this.#life && this.coordinator!.tick());
      this.#tick(life);
    });
  }

  #open(saved: Saved | null): void {
    this.#life++;
    const life = this.#life;
    const simulation = this.#simulation;
    this.coordinator = this.#createCoordinator(life, null);
    this.#replicate(life);
    if (!saved) return;
    const copy = copyOfSaved(saved);
    const chosen = simulation.options.sabotage?.restored?.(copy, this.#saved) ?? copy;
    const run = Run.restore(chosen.state, chosen.tensors, null, life);
    this.#restored(run, saved);
    this.#watchRows(run, saved.rows);
    this.#begin(run);
  }

  #createCoordinator(life: number, shards: ShardPool | null): Coordinator {
    const simulation = this.#simulation;
    // The part of the keeper that decides what is safe; files have tests of their own.
    const write = (run: Run) => {
      if (!run.hasParameters) return;
      this.#savedAt = simulation.now;
      if (shards) {
        this.#saveShards(shards, run);
        return;
      }
      const state = JSON.parse(JSON.stringify(run.state(simulation.now))) as RunState;
      const rows = this.rows?.save(insideOf(run).fields.best?.capture ?? null) ?? null;
      const copy = { state, tensors: run.tensors(), step: run.step, rows };
      simulation.at(simulation.delayMs(50), () => {
        if (life === this.#life) this.#saved.push(copy);
      });
    };
    const keeper = {
      life,
      register: async () => {},
      onPhase: write,
      onBest: write,
      onLost: write,
      onRollback: write,
      onEvaluation: () => {},
      onStep: (run: Run) => {
        if (simulation.now - this.#savedAt > 1_500) write(run);
      },
      tick: () => {},
      saveNow: async () => {},
      mustKeep: async () => {},
      close: async () => {},
      latest: () => null,
      isBeingRemoved: () => false,
      checkpoints: async () => [],
      publishedStep: () => 0,
      problem: () => null,
      spoilt: () => null,
      leftOut: () => [],
    };
    return new Coordinator({
      shards,
      keeper: keeper as unknown as ConstructorParameters<typeof Coordinator>[0]['keeper'],
      now: () => simulation.now,
      log: (line) => {
        if (line.startsWith('defect')) simulation.violate(6, line);
      },
      later: (ms, act) => simulation.at(ms, () => this.enter(() => life === this.#life && act())),
    });
  }

  /** @param from what its tables hold; null: nothing yet. */
  #watchRows(run: Run, from: SavedRows | null): void {
    const violate = (invariant: number, what: string) => this.#simulation.violate(invariant, what);
    const { fields } = insideOf(run);
    const follows = this.#simulation.follow !== null;
    const { shardCount } = this.#simulation;
    this.rows = run.tables
      ? new WatchedRows(run, violate, from, fields, follows, shardCount)
      : null;
  }

  // Shards.

  /** Acts in this process: at all times when it does not stand still, also before it listens. */
  #enterOf(life: number): (act: () => unknown) => void {
    const enter = (act: () => unknown): void => {
      const { now } = this.#simulation;
      if (life !== this.#life) return;
      if (this.#haltedUntil > now) this.#simulation.at(this.#haltedUntil - now, () => enter(act));
      else act();
    };
    return enter;
  }

  /** As server/main.ts does it. The server listens when it has its shards and has read the run. */
  #beginOnShards(): void {
    const simulation = this.#simulation;
    const life = ++this.#life;
    const isAlive = () => life === this.#life;
    const enter = this.#enterOf(life);
    const { shards } = simulation;
    for (const shard of shards) shard.obeyed = () => this.whole?.obeyed(shard);
    const ends: VirtualEnd[] = [];
    this.#ends = ends;
    const pool = new ShardPool({
      ...{ count: simulation.shardCount, token: life, access: () => null, tls: () => null },
      source: virtualSource(simulation, shards, isAlive),
      now: () => simulation.now,
      log: () => {},
      dial: virtualDial(simulation, shards, enter, ({ near }) => void ends.push(near)),
      timers: virtualTimers(simulation, enter),
    });
    const coordinator = this.#createCoordinator(life, pool);
    const opening = pool.open().then(() => this.#readOnShards(coordinator, pool, isAlive));
    let beginning: Promise<void> | null = null;
    const beginAnew = async () => {
      await opening.catch(() => {});
      while (isAlive()) {
        try {
          await pool.open();
          if (!pool.whole) continue;
          coordinator.goOn();
          beginning = null;
          await this.#readOnShards(coordinator, pool, isAlive);
          return;
        } catch (error) {
          this.#mustBeLoss(error);
          if (pool.whole || beginning) {
            await new Promise<void>((resolve) => simulation.at(1_000, resolve));
          } else return;
        }
      }
    };
    pool.lost = (why) => {
      this.#run = null;
      this.rows = null;
      this.whole = null;
      coordinator.interrupt(why);
      beginning ??= beginAnew();
    };
    opening.then(
      () => {
        if (!isAlive()) return;
        this.coordinator = coordinator;
        this.#tick(life);
      },
      (error: unknown) => {
        this.#mustBeLoss(error);
        // The process ends, and is started again.
        if (isAlive() && !beginning) {
          this.#die();
          simulation.at(1_000, () => this.#beginOnShards());
        } else if (isAlive()) {
          this.coordinator = coordinator;
          this.#tick(life);
        }
      },
    );
  }

  #mustBeLoss(error: unknown): void {
    if (errorCode(error) === 'DP_SHARD_LOST') return;
    const text = error instanceof Error ? error.stack : String(error);
    this.#tell(() => this.#simulation.violate(6, `a server on shards: ${text}`));
  }

  /** A violation that is found where nobody waits. */
  #tell(act: () => void): void {
    try {
      act();
    } catch {
      // It is told at the end of the event.
    }
  }

  /** Lives of the run: each loss of a shard is the end of one. */
  #lives = 0;

  async #readOnShards(
    coordinator: Coordinator,
    pool: ShardPool,
    isAlive: () => boolean,
  ): Promise<void> {
    const simulation = this.#simulation;
    const lives = ++this.#lives;
    const isMine = () => isAlive() && lives === this.#lives;
    if (!isMine()) return;
    const violate = (invariant: number, what: string) => simulation.violate(invariant, what);
    const whole = new WholeShard(violate, pool, this.#config, this.#pulls);
    this.whole = whole;
    this.#saving = null;
    const saved = this.#saved.at(-1);
    let run: Run;
    if (!saved) {
      const more = { experiment: 'regression', experimentHash: 'hash', createdAt: CREATED_AT };
      run = new Run({ id: 'r', config: this.#config, ...more }, pool, { life: lives, since: 1 });
      this.#forgetAll();
      this.#watchRows(run, null);
    } else {
      const copy = copyOfSaved(saved);
      const { state, tensors } = simulation.options.sabotage?.restored?.(copy, this.#saved) ?? copy;
      const own = await giveShards(pool, fileOf(tensors), state);
      if (!isMine() || !pool.whole) return;
      whole.restored({ state, tensors }, simulation.layout, RESTORED_BEST);
      run = Run.restore(state, own, pool, lives);
      this.#restored(run, saved);
      this.#watchRows(run, saved.rows);
    }
    whole.rows = this.rows;
    // What the rows are from the first command on.
    this.rows?.told(0);
    this.#watchPushes(run, whole);
    coordinator.adoptLate(run);
    // The server takes none while it waits for its shards.
    if (coordinator.find('r') === run) this.#run = run;
  }

  get #config(): RunConfig {
    const { config, options } = this.#simulation;
    return resolveConfig({ ...config, ...options.sabotage?.config });
  }

  /** Pushes are decided on when their last part has come: then it is looked at what becomes of them. */
  #watchPushes(run: Run, whole: WholeShard): void {
    const call = run.call.bind(run) as (of: RunCall, payload?: Uint8Array) => unknown;
    const watched = (of: RunCall, payload?: Uint8Array): unknown => {
      if (of.call === 'initialRows') whole.beginsRows(payload!);
      if (of.call !== 'push' || !of.others) return call(of, payload);
      const { push, worker } = of;
      const { session } = of.others;
      const sent = whole.comes({ session, sequence: push.sequence }, payload!);
      const connection = [...this.#simulation.sockets].find((each) => each.session.id === session)!;
      if (!sent)
        this.#simulation.violate(1, `push ${push.sequence} is decided on, and was not sent`);
      connection.answers = [];
      this.lookUp(push);
      const coming = this.#wholePush(push, session, sent!);
      this.rows?.begin(worker, coming);
      const before = run.step;
      const counted = this.sequenceOf(worker);
      const answer = call(of, payload);
      const counts = counted < push.sequence && this.sequenceOf(worker) >= push.sequence;
      this.rows?.end(worker, coming, counts);
      this.#judgements.push({ connection, push, before, after: run.step, counts });
      return answer;
    };
    run.call = watched as never;
  }

  readonly #judgements: {
    readonly connection: SimulatedConnection;
    readonly push: Push;
    readonly before: number;
    readonly after: number;
    readonly counts: boolean;
  }[] = [];

  /** As a server without shards gets it. One that cannot be put together must be rejected. */
  #wholePush(
    push: Push,
    session: string,
    sent: SentParts,
  ): { readonly push: Push; readonly payload: Uint8Array } {
    if (!this.rows || !push.rows) return { push, payload: NO_BYTES };
    try {
      const { keys, ...whole } = this.rows.wholeOf(push, sent);
      this.rows.wants(session, push.sequence, keys);
      return whole;
    } catch {
      return { push, payload: NO_BYTES };
    }
  }

  /** The part of the keeper that puts a checkpoint together; one at a time. */
  #saveShards(pool: ShardPool, run: Run): void {
    if (this.#saving) {
      this.#saving.again = true;
      return;
    }
    const simulation = this.#simulation;
    const saving = { again: false };
    this.#saving = saving;
    const { whole, rows: watched } = this;
    if (run !== this.#run || !whole) return;
    const state = JSON.parse(JSON.stringify(run.state(simulation.now))) as RunState;
    const rows = watched?.save(insideOf(run).fields.best?.capture ?? null) ?? null;
    const { step } = run;
    const ought = whole.values!.slice();
    const copy = (values: Float32Array) => values.slice();
    const parts = saveShards(pool, run, 'last', { changes: false, copy });
    const room = (size: number) => new Float32Array(size);
    const own = run.copyRows('last', { changes: false, room })?.tensors() ?? [];
    const collect = async () => {
      const tensors: NamedTensor[] = [];
      for (const { name, shape, pieces } of [...parts.tensors, ...(await parts.rows(own))]) {
        const all: Uint8Array[] = [];
        for await (const piece of pieces()) all.push(piece.slice());
        tensors.push({ name, shape, values: floatsOf(joinedBytes(all)) });
      }
      if (saving !== this.#saving) return;
      parts.done(true);
      run.tables?.endCopy(true);
      this.#saving = null;
      const dense = tensors.filter(({ name }) => !name.startsWith('@')).map(({ values }) => values);
      if (!isJoined(ought, dense)) {
        simulation.violate(
          3,
          `a checkpoint of step ${step} has other parameters than the shards had`,
        );
      }
      this.#saved.push({ state, tensors, step, rows });
      if (saving.again) this.#saveShards(pool, run);
    };
    collect().catch((error: unknown) => this.#mustBeLoss(error));
  }
  /** A checkpoint that is being written. */
  #saving: { again: boolean } | null = null;
  /** Null: the server has no shards, or is without them. */
  whole: WholeShard | null = null;
  /** See `WholeShard`. */
  readonly #pulls = new Map<string, Uint8Array>();
  /** Its ends of the connections to shards. */
  #ends: VirtualEnd[] = [];

  /** A worker has all parts of what it was sent. */
  pulled(session: string, pull: number, values: Float32Array): void {
    const name = `${session} ${pull}`;
    const ought = this.#pulls.get(name);
    this.#pulls.delete(name);
    if (ought && areSameBytes(ought, bytesOf(values))) return;
    const what = ought
      ? 'others than those of one shard with all of them'
      : 'not those it was sent';
    this.#simulation.violate(3, `the parameters of pull ${pull} are ${what}`);
  }

  #begin(run: Run): void {
    this.coordinator!.adopt(run);
    this.#run = run;
    this.#tick(this.#life);
    this.#awaitStandby(3_000);
  }

  // The standby.

  #replicate(life: number): void {
    const simulation = this.#simulation;
    if (!simulation.follow) return;
    const mine = (act: () => void) => () => this.enter(() => life === this.#life && act());
    const replication = new Replication({
      runs: () => this.coordinator?.runs ?? [],
      ...{ token: life, leaseMs: 2_000, confirm: async () => {}, changed: () => {} },
      now: () => simulation.now,
      log: () => {},
      later: (ms, act) => simulation.at(ms, mine(act)),
    });
    this.coordinator!.replication = replication;
    this.#replication = replication;
    const beat = () => {
      if (life !== this.#life || simulation.calm) return;
      this.enter(() => life === this.#life && replication.tick());
      simulation.at(1_000, beat);
    };
    simulation.at(1_000, beat);
  }

  /** Another one is started, unless it is there. */
  #awaitStandby(usualMs: number): void {
    const simulation = this.#simulation;
    const { follow } = simulation;
    const life = this.#life;
    if (!follow) return;
    simulation.at(simulation.delayMs(usualMs), () =>
      this.enter(() => {
        if (life !== this.#life || simulation.calm) return;
        this.standby = new SimulatedStandby(simulation, this.#replication!, follow);
      }),
    );
  }

  /** It is gone for this server, and another one comes. */
  standbyGone(): void {
    this.standby = null;
    this.#awaitStandby(2_000);
  }

  /** The standby has the lease: the newer of its replica and the checkpoint goes on. @returns false: it has nothing. */
  #takeOver(standby: SimulatedStandby, lastRows: WatchedRows | null): boolean {
    const replica = standby.replicas.runs.get('r');
    if (!replica || !standby.replicas.whole) return false;
    const last = this.#saved.at(-1);
    const { generation, step } = replica;
    if (last && last.state.generation >= generation) {
      const { state } = last;
      if (state.generation > generation || state.step > step) return false;
    }
    this.failovers++;
    const state = JSON.parse(JSON.stringify(replica.state(replica.nowMs))) as RunState;
    const best = insideOf(replica).fields.best?.capture ?? null;
    const moment = replica.tables ? lastRows!.momentOf(replica.tables, best) : null;
    // Rows of a file that came before the parameters are asked for again, with the parameters.
    const rows = state.initialisations > 0 ? moment : null;
    const saved = { state, tensors: replica.tensors(), step, rows };
    this.#open(null);
    const run = Run.restore(copyOfFields(state), replica.tensors(), null, this.#life);
    this.#restored(run, saved);
    this.#watchRows(run, rows);
    this.#begin(run);
    return true;
  }

  /** The standby was told all runs, and lives: no acknowledged push is lost but those that may be. */
  #mustHaveKept(before: readonly Applied[]): void {
    const lost = before.filter((entry) => entry.acknowledged && !this.log.includes(entry));
    const { lagMax, mode } = this.#simulation.follow!;
    if (lost.length <= lagMax) return;
    this.#simulation.violate(
      9,
      `${lost.length} acknowledged pushes are lost, push ${lost[0]!.sequence} of ${lost[0]!.key} the first; replication was ${mode}, ${lagMax} may be`,
    );
  }

  /** The capture that a worker evaluates; null: it does not evaluate this. */
  captureFor(key: string, id: number | null): number | null {
    if (id === null || !this.rows) return null;
    const { evaluation } = insideOf(this.#run!).fields;
    if (evaluation?.id !== id) return null;
    const { worker, late, capture } = evaluation;
    return worker === key || late.includes(key) ? capture : null;
  }

  /** Rows leave for a worker, at the end of the message. */
  rowsLeave(message: ServerMessage, parts: readonly Uint8Array[]): void {
    const rows = message.type === 'work' ? message.rows : message.type === 'rows' ? message : null;
    if (rows) this.rows?.leaves(rows, parts.at(-1)!);
  }

  /** A message leaves for a worker. */
  told(key: string, message: ServerMessage): void {
    if (message.type !== 'work') return;
    for (const { sequence, outcome } of message.acknowledgements) {
      if (outcome !== 'applied' && outcome !== 'damped') continue;
      const entry = this.log.find((each) => each.key === key && each.sequence === sequence);
      if (entry) entry.acknowledged = true;
      // While a push is dealt with, `judge` has not entered it yet.
      else this.#acknowledged = `${key} ${sequence}`;
    }
  }
  #acknowledged = '';

  #restored(run: Run, saved: Saved): void {
    const simulation = this.#simulation;
    if (run.step !== saved.step) {
      simulation.violate(2, `restored at step ${run.step} from the checkpoint of ${saved.step}`);
    }
    for (const { name, values } of simulation.shards.length > 0 ? [] : run.tensors()) {
      const before = saved.tensors.find((tensor) => tensor.name === name)?.values;
      if (before && areSameBytes(bytesOf(before), bytesOf(values))) continue;
      simulation.violate(3, `tensor '${name}' was restored with other values`);
    }
    this.#stepSeen = run.step;
    this.#bestSeen = saved.state.best?.evaluation.loss ?? Infinity;
    const collected = run.state(simulation.now).collected ?? [];
    this.log = this.log.filter(
      (entry) =>
        entry.step <= run.step ||
        collected.some(({ worker, lease }) => worker === entry.key && lease.id === entry.lease),
    );
    this.#vectors.clear();
    this.#leases.clear();
  }

  /** kill -9; it is started again, or its standby takes over. */
  crash(downMs: number): void {
    if (!this.coordinator) return;
    this.crashes++;
    if (this.#simulation.shards.length > 0) {
      this.#die();
      this.#simulation.at(downMs, () => this.#beginOnShards());
      return;
    }
    const { standby, rows } = this;
    this.standby = null;
    this.rows = null;
    this.#replication = null;
    standby?.primaryDied();
    this.coordinator = null;
    this.#run = null;
    this.#life++;
    for (const connection of [...this.#simulation.sockets]) connection.serverDied();
    this.#simulation.at(downMs, () => {
      const before = this.log;
      if (standby?.alive && this.#takeOver(standby, rows)) {
        this.#mustHaveKept(before);
        return;
      }
      const last = this.#saved.at(-1) ?? null;
      if (last) {
        this.#open(last);
        return;
      }
      // Nothing was safe: the run begins anew, as its record says.
      this.#forgetAll();
      void this.begin();
    });
  }

  #forgetAll(): void {
    this.log = [];
    this.#stepSeen = 0;
    this.#bestSeen = Infinity;
    this.#leases.clear();
    this.#vectors.clear();
  }

  /** With all connections. */
  #die(): void {
    this.#life++;
    this.coordinator = null;
    this.#run = null;
    this.rows = null;
    this.whole = null;
    this.#saving = null;
    for (const end of this.#ends) end.died();
    for (const connection of [...this.#simulation.sockets]) connection.serverDied();
  }

  /** Right after a push was dealt with. */
  judge(
    connection: SimulatedConnection,
    push: Push,
    { before, after, counts }: { before: number; after: number; counts: boolean },
  ): void {
    const simulation = this.#simulation;
    const { answers } = connection;
    const told = answers
      .flatMap((answer) => (answer.type === 'work' ? answer.acknowledgements : []))
      .find(({ sequence }) => sequence === push.sequence);
    const outcome: Acknowledgement['outcome'] | null = told?.outcome ?? null;
    const steps = after - before;
    const { consistency } = simulation;
    const several = collects(consistency);
    // The standby has to have it first: what the worker will be told is seen when it is. A connection that is being closed
    // carries no more answers: its worker sends the push again.
    const { open } = connection.serverEnd;
    const later = !told && (this.#replication !== null || !open) && counts;
    const applied = later || outcome === 'applied' || outcome === 'damped';
    // It may be the last of several that make a step, and so may one be for whom there is no more work.
    if (several ? steps > 1 : steps !== (applied ? 1 : 0)) {
      simulation.violate(1, `push ${push.sequence} was ${outcome}, and the step rose by ${steps}`);
    }
    if (!applied) {
      const isTold = told || answers.some(({ type }) => type === 'error' || type === 'end');
      if (!isTold && open && !this.#run?.over && !this.#replication?.holding) {
        simulation.violate(6, `push ${push.sequence} was not applied, and nobody was told`);
      }
      if (outcome === 'rejected' && !told!.code) {
        simulation.violate(6, `push ${push.sequence} was rejected without a reason`);
      }
      return;
    }
    const { stalenessMax } = consistency;
    const staleness = before - push.step;
    if (isInRounds(consistency) && staleness > 0) {
      simulation.violate(4, `a push of staleness ${staleness} is in a step of another round`);
    }
    if (stalenessMax !== null && staleness > stalenessMax) {
      simulation.violate(4, `a push of staleness ${staleness} was applied; ${stalenessMax} may be`);
    }
    const { key } = connection.session;
    if (this.#used.has(nameOf({ key, sequence: push.sequence }))) {
      simulation.violate(1, `push ${push.sequence} of ${key} was applied twice`);
    }
    const lease = this.#leases.get(push.lease);
    if (!lease) {
      throw simulation.violation(8, `a push for lease ${push.lease}, never given, was applied`);
    }
    const minibatches = minibatchesOf(lease);
    for (const minibatch of minibatches) {
      if (this.#used.has(minibatch)) {
        simulation.violate(8, `minibatch ${minibatch} was used twice`);
      }
    }
    const acknowledged = this.#acknowledged === `${key} ${push.sequence}`;
    const step = after + (several && this.#run!.collected > 0 ? 1 : 0);
    if (
      isInRounds(consistency) &&
      this.log.some((each) => each.step === step && each.key === key)
    ) {
      simulation.violate(4, `step ${step} is of two pushes of ${key}`);
    }
    const { sequence } = push;
    this.#enter({ key, sequence, step, lease: push.lease, minibatches, acknowledged });
  }

  /** The last sequence of a worker's that counts. */
  sequenceOf(key: string): number {
    return this.#run ? (insideOf(this.#run).components.roster.find(key)?.lastSequence ?? 0) : 0;
  }

  /** A lease that was granted on a connection that was lost at that moment: the worker was never told. */
  lookUp({ lease: id }: Push): void {
    if (this.#leases.has(id) || !this.#run) return;
    const out = this.#run.state(this.#simulation.now).leases?.returned ?? [];
    this.given(out.map(({ lease }) => lease).filter((lease) => lease.id === id));
  }

  /** A worker is sent these. */
  given(leases: readonly Lease[]): void {
    for (const lease of leases) this.#leases.set(lease.id, lease);
  }

  /** Parameters as a worker has them, in the order of the model: those of that step, and not torn. */
  checkPayload(message: Work, payload: Float32Array): void {
    const { layout, fragments: count } = this.#simulation;
    const { fragment } = message;
    if (message.evaluation || this.#simulation.shards.length > 0) return;
    const all = this.#vectors.get(`${message.generation} ${message.step}`);
    const known =
      fragment === undefined
        ? all
        : all && fragmentOfVector(all, layout, { index: fragment, count });
    if (known !== undefined && !areEqual(known, payload)) {
      this.#simulation.violate(
        3,
        `the parameters sent for step ${message.step} are not those of it`,
      );
    }
  }

  /** An update by fragments moves one of them alone. */
  #checkFragments(run: Run, now: Float32Array): void {
    const { layout, fragments: count } = this.#simulation;
    const before = this.#vectors.get(`${run.generation} ${run.step - 1}`);
    if (count === 1 || before === undefined) return;
    const moved = Array.from({ length: count }, (_, index) => index).filter((index) => {
      const trainable = (all: Float32Array) =>
        fragmentOfVector(all, { ...layout, exchangedSize: layout.trainableSize }, { index, count });
      return !areEqual(trainable(now), trainable(before));
    });
    if (moved.length <= 1) return;
    this.#simulation.violate(3, `step ${run.step} moved the fragments ${moved.join(' and ')}`);
  }

  /** After each event. */
  check(): void {
    for (const { connection, push, ...how } of this.#judgements.splice(0)) {
      if (this.#run) this.judge(connection, push, how);
    }
    const run = this.#run;
    if (!run || !this.coordinator) return;
    const simulation = this.#simulation;
    if (run.step < this.#stepSeen) {
      simulation.violate(2, `the step went back from ${this.#stepSeen} to ${run.step}`);
    }
    this.#stepSeen = run.step;
    const best = run.best?.loss ?? Infinity;
    if (best > this.#bestSeen) {
      simulation.violate(5, `the best went from ${this.#bestSeen} to ${best}`);
    }
    this.#bestSeen = best;
    // Those of a step that was never made are computed again, or needed no more.
    if (run.collected === 0 && this.#newestStep > run.step) {
      this.log = this.log.filter(({ step }) => step <= run.step);
    }
    this.#checkClocks(run);
    this.rows?.check(insideOf(run).fields);
    if (run.hasParameters && this.#mayHaveChanged()) this.#checkVector(run);
  }

  /** Those of shards are large: without a command they are looked at now and then. */
  #mayHaveChanged(): boolean {
    if (!this.whole) return true;
    const { commands } = this.whole;
    if (commands === this.#commandsSeen && ++this.#looks % LOOKS > 0) return false;
    this.#commandsSeen = commands;
    return true;
  }
  #commandsSeen = 0;
  #looks = 0;

  /** Finite, and the same as before in this step. */
  #checkVector(run: Run): void {
    const simulation = this.#simulation;
    const parts = this.whole
      ? this.#partsOfShards(run, this.whole)
      : partsOf(run, simulation.tensors);
    const at = `${run.generation} ${run.step}`;
    const known = this.#vectors.get(at);
    if (known && isJoined(known, parts)) return;
    const vector = concatFloats(parts);
    if (!vector.every(Number.isFinite)) {
      simulation.violate(7, `parameters at step ${run.step} are not finite: ${vector}`);
    }
    if (known) simulation.violate(3, `the parameters changed within step ${run.step}`);
    this.#vectors.set(at, vector);
    this.#checkFragments(run, vector);
  }

  #partsOfShards(run: Run, whole: WholeShard): Float32Array[] {
    whole.mustBe(liveValues(insideOf(run).components.vector.mustParameters));
    return [whole.values!];
  }

  /** No worker has begun a minibatch further ahead of the slowest than it may: clocks count those that ended. */
  #checkClocks(run: Run): void {
    const simulation = this.#simulation;
    const { mode, aheadMax = 3 } = simulation.consistency;
    if (mode !== 'bounded') return;
    const members = insideOf(run).components.mode?.state().members ?? [];
    const clocks = members
      .filter(([, , standing]) => standing === 'ready')
      .map(([, clock]) => clock);
    const apart = Math.max(...clocks) - Math.min(...clocks);
    if (apart <= aheadMax + 1) return;
    simulation.violate(4, `the clocks of workers are ${apart} apart; aheadMax is ${aheadMax}`);
  }

  checkEnd(): void {
    const run = this.#run!;
    if (run.phase !== 'finished' || !run.reason.startsWith('reached epochsMax')) return;
    const { trainCount } = problem.summary;
    const { epochsMax } = this.#simulation.config;
    for (let epoch = 0; epoch < epochsMax!; epoch++) {
      for (let start = 0; start < trainCount; start += 4) {
        const minibatch = `train ${epoch} ${start}`;
        if (this.#used.has(minibatch)) continue;
        this.#simulation.violate(8, `minibatch ${start} of epoch ${epoch} was never used`);
      }
    }
  }
}

/** The server's standby: its replicas, and the way between them. What arrives keeps its order. */
class SimulatedStandby {
  readonly replicas = new Replicas();
  readonly #simulation: Simulation;
  readonly #events: ConnectionEvents;
  alive = true;
  #linked = true;
  #cutOff = false;
  #frames = 0;
  #toStandbyAt = 0;
  #toServerAt = 0;

  constructor(simulation: Simulation, replication: Replication, follow: Follow) {
    this.#simulation = simulation;
    this.#events = replication.accept(
      {
        open: true,
        bufferedBytes: 0,
        send: (message, parts = [], gone) => this.#send(message as ToStandby, parts, gone),
        ping: () => this.#later(() => this.#answer(() => this.#events.alive())),
        close: () => this.#hangUp(),
        terminate: () => this.#hangUp(),
      },
      'standby',
    );
    const address = { host: null, port: 1 };
    const hello = { type: 'follow', version: codeVersion(), ...follow, address };
    this.#answer(() => this.#events.message(hello, new Uint8Array(), null));
  }

  #send(message: ToStandby, parts: readonly Uint8Array[], gone?: () => void): void {
    const header = checkToStandby(copyOfFields(message));
    const bytes = joinedBytes(parts);
    gone?.();
    this.#later(() => {
      if (!this.alive) return;
      this.replicas.take(header, bytes);
      if (message.type === 'leading') return;
      const carried = { type: 'carried', frames: ++this.#frames };
      this.#answer(() => this.#events.message(carried, new Uint8Array(), null));
    });
  }

  /** At the standby, in order. */
  #later(act: () => void): void {
    const simulation = this.#simulation;
    this.#toStandbyAt = Math.max(this.#toStandbyAt, simulation.now + simulation.delayMs(15));
    simulation.at(this.#toStandbyAt - simulation.now, () => this.#cutOff || act());
  }

  /** At the server, if it is the same one. */
  #answer(act: () => void): void {
    const simulation = this.#simulation;
    this.#toServerAt = Math.max(this.#toServerAt, simulation.now + simulation.delayMs(15));
    simulation.at(this.#toServerAt - simulation.now, () =>
      simulation.server.enter(() => this.#linked && this.alive && act()),
    );
  }

  /** kill -9, or its connection is cut: the server notices after a while, and another one comes. */
  die(noticedMs: number): void {
    if (!this.alive) return;
    this.alive = false;
    this.#simulation.at(noticedMs, () => this.#simulation.server.enter(() => this.#lost()));
  }

  #lost(): void {
    if (!this.#linked) return;
    this.#linked = false;
    this.#events.closed(1006, 'connection lost');
    this.#simulation.server.standbyGone();
  }

  /** By the server: it was silent for too long. */
  #hangUp(): void {
    if (!this.#linked) return;
    this.#linked = false;
    this.alive = false;
    this.#simulation.server.standbyGone();
  }

  /** What is under way may arrive all the same. */
  primaryDied(): void {
    this.#linked = false;
    this.#cutOff = this.#simulation.chance(0.7);
  }
}

// Workers.

/** Parameters that gradients are computed at. */
interface Current {
  readonly theta: Float32Array;
  readonly step: number;
  readonly generation: number;
}

interface Kept {
  readonly push: Push;
  readonly payload: Uint8Array;
  /** For shards 1, 2, …; absent: there are none. */
  readonly parts?: readonly { readonly message: PartMessage; readonly payload: Uint8Array }[];
}

/** What the server has sent, of which parts may still be on their way from shards. */
interface Received extends Sent {
  readonly pull?: Pull;
  readonly rowPull?: RowPull;
}

function fragmentOfVector(
  all: Float32Array,
  layout: Pick<Layout, 'trainableSize' | 'exchangedSize'>,
  fragment: { readonly index: number; readonly count: number },
): Float32Array {
  const whole = [{ start: 0, end: layout.exchangedSize }];
  const pieces = fragmentPieces(layout, whole, fragment);
  return concatFloats(
    pieces.flatMap(({ gradient, statistics }) =>
      [gradient, statistics].map(({ start, end }) => all.subarray(start, end)),
    ),
  );
}

/** Does what worker/client.ts and trainer.ts do; a liar also does what they never would. */
class SimulatedWorker {
  readonly #simulation: Simulation;
  readonly #name: string;
  readonly #liar: boolean;
  readonly #hangs: boolean;
  #incarnation = '';
  #sequence = 0;
  #connection: SimulatedConnection | null = null;
  #alive = false;
  #haltedUntil = 0;
  /** It computes: messages wait. */
  #busy = false;
  #inbox: Received[] = [];
  #kept: Kept[] = [];
  #resend = false;
  #current: Current | null = null;
  readonly #placed: PlacedTensors;
  /** Its own parameters, where it pushes them; null: none yet. */
  #own: Float32Array | null = null;
  /** The same by fragments; null: all are exchanged together. */
  readonly #fragments: FragmentedParameters | null;
  /** Null: the run has no tables. */
  readonly #rows: WorkerRows | null;
  /** It waits for rows that it has asked for. */
  #pulled: { readonly request: number; then(): void } | null = null;
  #requests = 0;
  /** To the shards of the run; null: the server has all of it, or they are not opened yet. */
  #links: ShardLinks | null = null;
  #session = '';
  #ends: VirtualEnd[] = [];
  #attempt = 0;
  #life = 0;

  /** @param hangs some of its minibatches never end, while its connection stays. */
  constructor(simulation: Simulation, index: number, liar: boolean, hangs: boolean) {
    this.#simulation = simulation;
    this.#name = `w${index}`;
    this.#liar = liar;
    this.#hangs = hangs;
    const { layout, fragments } = simulation;
    const whole = [{ start: 0, end: layout.exchangedSize }];
    this.#fragments = fragments > 1 ? new FragmentedParameters(layout, whole, fragments) : null;
    this.#placed = new PlacedTensors(simulation.tensors, simulation.resolved);
    const shapes = rowShapes(simulation.resolved);
    this.#rows = shapes.length > 0 ? new WorkerRows(shapes, simulation.seed, index) : null;
  }

  get responds(): boolean {
    return this.#alive && this.#haltedUntil <= this.#simulation.now;
  }

  start(): void {
    const { draw } = this.#simulation;
    this.#alive = true;
    this.#life++;
    this.#incarnation = Array.from({ length: 16 }, () => draw.below(16).toString(16)).join('');
    this.#sequence = 0;
    this.#kept = [];
    this.#current = null;
    this.#own = null;
    this.#fragments?.reset();
    this.#rows?.reset();
    this.#pulled = null;
    this.#busy = false;
    this.#connect();
  }

  die(downMs: number): void {
    if (!this.#alive) return;
    this.#alive = false;
    this.#life++;
    this.#connection?.hangUp();
    this.#connection = null;
    this.#inbox = [];
    for (const end of this.#ends) end.died();
    this.#ends = [];
    this.#links = null;
    this.#simulation.at(downMs, () => this.start());
  }

  halt(ms: number): void {
    this.#haltedUntil = Math.max(this.#haltedUntil, this.#simulation.now + ms);
  }

  /** Acts in this life, when it does not stand still. */
  #later(ms: number, act: () => void): void {
    const life = this.#life;
    const simulation = this.#simulation;
    simulation.at(ms, () => {
      if (life !== this.#life) return;
      const { now } = simulation;
      if (this.#haltedUntil > now) this.#later(this.#haltedUntil - now, act);
      else act();
    });
  }

  #connect(): void {
    const pause = Math.min(5_000, 100 * 2 ** this.#attempt++) * this.#simulation.draw.uniform();
    this.#later(pause, () => {
      if (this.#connection) return;
      const { server } = this.#simulation;
      if (!server.coordinator) {
        this.#connect();
        return;
      }
      const connection = new SimulatedConnection(this.#simulation, this);
      this.#connection = connection;
      connection.send({
        ...{ type: 'hello', worker: this.#name, incarnation: this.#incarnation, run: null },
        ...{ experiments: { regression: 'hash' }, engine: 'none', device: 'none' },
      });
    });
  }

  disconnected(connection: SimulatedConnection): void {
    if (this.#connection !== connection) return;
    this.#connection = null;
    this.#inbox = [];
    this.#pulled = null;
    this.#links?.close();
    this.#links = null;
    if (this.#alive) this.#connect();
  }

  receive(connection: SimulatedConnection, sent: Sent): void {
    if (this.#connection !== connection || !this.#alive) return;
    this.#inbox.push({ ...sent, ...this.#partsOf(sent) });
    this.#read();
  }

  /** Parameters and rows of which shards send the other parts: the first ones are put to them. */
  #partsOf({ header, payload }: Sent): Pick<Received, 'pull' | 'rowPull'> {
    const links = this.#links;
    const message = header as unknown as ServerMessage;
    if (!links || (message.type !== 'work' && message.type !== 'rows')) return {};
    if (message.type === 'rows') {
      const rowPull = links.rows(message.pull!);
      links.takeRows(0, message.pull!, payload);
      return { rowPull };
    }
    const { pull: number, rows, encoding } = message;
    const end = payload.length - (rows?.bytes ?? 0);
    const rowPull = rows && links.rows(rows.pull!);
    if (rows) links.takeRows(0, rows.pull!, payload.subarray(end));
    if (number === null) return { ...(rowPull && { rowPull }) };
    const pull = links.pull(number, null);
    links.take(0, number, payload.subarray(0, end), encoding, null);
    return { pull, ...(rowPull && { rowPull }) };
  }

  /** Acts of its process, when it does not stand still. */
  readonly #enter = (life: number) => (act: () => unknown) => {
    const enter = (): void => {
      if (life !== this.#life || !this.#alive) return;
      const { now } = this.#simulation;
      if (this.#haltedUntil > now) this.#simulation.at(this.#haltedUntil - now, enter);
      else act();
    };
    enter();
  };

  /** Connects to the shards, and then joins. */
  #attach({ session, shards, config }: Assign, join: () => void): void {
    const simulation = this.#simulation;
    const connection = this.#connection!;
    const { layout } = simulation;
    this.#links?.close();
    this.#session = session;
    const opened = ({ near }: { near: VirtualEnd }) => void this.#ends.push(near);
    const links: ShardLinks = new ShardLinks({
      ...{ shards, server: 'ws://server:7000/ws', session, layout, fragments: 1, headers: {} },
      ranges: rangesFor(layout, { shards, config }),
      ...{ localSocket: false, handshakeMs: 10_000, closeMs: 2_000, now: () => simulation.now },
      dial: virtualDial(simulation, simulation.shards, this.#enter(this.#life), opened),
      complete: () => this.#read(),
      lost: () => {
        if (this.#links !== links || this.#connection !== connection) return;
        connection.hangUp();
        this.disconnected(connection);
      },
    });
    this.#links = links;
    const isMine = () => this.#links === links && this.#connection === connection;
    links.open().then(
      () => isMine() && join(),
      () => {},
    );
  }

  #read(): void {
    const [first] = this.#inbox;
    if (this.#busy || !first || first.pull?.missing || first.rowPull?.missing) return;
    const sent = this.#inbox.shift()!;
    const { now } = this.#simulation;
    if (this.#haltedUntil > now) {
      this.#inbox.unshift(sent);
      this.#later(this.#haltedUntil - now, () => this.#read());
      return;
    }
    const message = sent.header as unknown as ServerMessage;
    if (message.type !== 'error') this.#attempt = 0;
    if (message.type === 'assign') {
      this.#resend = true;
      const join = { type: 'join', run: 'r', experimentHash: 'hash' };
      const { tensors } = this.#simulation;
      const told = { ...join, tensors, data: problem.summary, facts: 'json' };
      if (message.shards.length === 0) this.#connection?.send(told, FACTS);
      else this.#attach(message, () => this.#connection?.send(told, FACTS));
    } else if (message.type === 'initialise') {
      const { grant } = message;
      const own = this.#rows ? initialRows(this.#simulation.resolved) : [];
      for (const bytes of own) {
        this.#connection?.send({ type: 'initialRows', run: 'r', grant }, bytes);
      }
      this.#initialise(grant);
    } else if (message.type === 'rows') {
      this.#tookRows(message, sent);
    } else if (message.type === 'work') {
      this.#pulled = null;
      this.#work(message, sent);
    } else if (message.type === 'end') {
      this.#kept = [];
    }
    this.#read();
  }

  #initialise(grant: number): void {
    const values = bytesOf(new Float32Array(this.#simulation.layout.size).fill(0.1));
    const message = { type: 'initialised', run: 'r', grant };
    const links = this.#links;
    if (!links) {
      this.#connection?.send(message, values);
      return;
    }
    const payloads = links.ranges.map(({ start, end }) => values.subarray(4 * start, 4 * end));
    this.#simulation.server.whole?.sends(this.#session, null, { rows: [], payloads });
    this.#connection?.send(message, payloads[0]!);
    for (const [k, payload] of payloads.entries()) {
      if (k > 0) links.send(k, { type: 'initialPart', run: 'r', grant }, [payload]);
    }
  }

  /** Asks for rows, for an evaluation if it has a number. What the server sends instead is dealt with instead. */
  #pullRows(keys: readonly Uint32Array[], evaluation: number | null, then: () => void): void {
    const request = evaluation === null ? 2 * ++this.#requests : 2 * evaluation + 1;
    this.#pulled = { request, then };
    this.#connection?.send({ type: 'pullRows', run: 'r', request, evaluation }, encodeKeys(keys));
  }

  #tookRows(message: Extract<ServerMessage, { type: 'rows' }>, sent: Received): void {
    const parts = this.#rowsOf(message, sent.rowPull, sent.payload);
    const pulled = this.#pulled;
    if (pulled?.request !== message.request) return;
    this.#pulled = null;
    if (message.request % 2 === 0) this.#rows!.receive(message, parts, message.generation);
    pulled.then();
  }

  /** The parts of all shards. */
  #rowsOf(
    { encoding, pull }: { readonly encoding: RowEncoding; readonly pull?: number },
    rowPull: RowPull | undefined,
    own: Uint8Array,
  ): readonly Uint8Array[] {
    if (!rowPull) return [own];
    const shapes = rowShapes(this.#simulation.resolved);
    const rows = mergedRows(shapes, rowPull.parts, encoding);
    this.#simulation.server.rows?.pulled(this.#session, pull!, rows);
    return rowPull.parts;
  }

  /** All parameters that have come, or the part of them. */
  #numbersOf({ pull }: Received, { pull: number }: Work, own: Uint8Array): Float32Array {
    if (!pull) return floatsOf(own);
    const values = pull.values.slice(0, pull.elements);
    pull.release();
    this.#simulation.server.pulled(this.#session, number!, values);
    return values;
  }

  #work(message: Work, sent: Received): void {
    const simulation = this.#simulation;
    const bytes = sent.payload;
    const end = bytes.length - (message.rows?.bytes ?? 0);
    const payload = this.#numbersOf(sent, message, bytes.subarray(0, end));
    this.#placed.place(message.frozen ?? []);
    const theta = this.#placed.took(message.fragment === undefined ? payload : NO_PAYLOAD);
    if (payload.length > 0) {
      const isPart = message.fragment !== undefined;
      simulation.server.checkPayload(message, isPart ? payload : theta);
    }
    const { acknowledgements, leases, evaluation, step, generation } = message;
    for (const acknowledgement of acknowledgements) {
      this.#kept = this.#kept.filter(({ push }) => push.sequence > acknowledgement.sequence);
      this.#fragments?.settled(acknowledgement.outcome !== 'rejected');
      if (acknowledgement.outcome === 'rejected') this.#rows?.reset();
    }
    if (message.rows) {
      const parts = this.#rowsOf(message.rows, sent.rowPull, bytes.slice(end));
      this.#rows!.receive(message.rows, parts, generation);
    }
    if (this.#resend) {
      this.#resend = false;
      for (const kept of this.#kept) this.#send(kept);
    }
    if (evaluation) {
      if (this.#hangs && simulation.hanging.uniform() < 0.1) {
        this.#busy = true;
        return;
      }
      const evaluate = () =>
        this.#compute(200, () => {
          const loss = lossOf(problem, evaluation.part, theta);
          this.#connection?.send({
            ...{ type: 'evaluated', run: 'r', evaluation: evaluation.id, loss, error: loss },
            ...{ examples: examplesOf(problem, evaluation.part), metrics: {} },
          });
        });
      if (this.#rows) this.#pullRows(this.#rows.all, evaluation.id, evaluate);
      else evaluate();
      return;
    }
    if (generation !== this.#current?.generation) {
      this.#own = null;
      this.#fragments?.reset();
    }
    if (payload.length > 0 && message.local?.fragment !== undefined) {
      this.#fragments!.receive(payload, message.fragment ?? null);
    }
    if (payload.length > 0) this.#current = { theta, step, generation };
    const current = this.#current;
    const lease = leases.find(({ id }) => !this.#kept.some(({ push }) => push.lease === id));
    if (!current || !lease || this.#kept.length > 0) return;
    if (this.#hangs && simulation.hanging.uniform() < 0.1) {
      this.#busy = true;
      return;
    }
    const push = () => this.#compute(100, () => this.#push(lease, current, message));
    const rows = this.#rows;
    if (!rows || rows.heldFor(lease, generation)) push();
    // Rows of other parameters: what the server sends next says what is to be done.
    else this.#pullRows(rows.keysOf(lease), null, () => rows.heldFor(lease, generation) && push());
  }

  #compute(usualMs: number, done: () => void): void {
    this.#busy = true;
    this.#later(this.#simulation.delayMs(usualMs), () => {
      this.#busy = false;
      done();
      this.#read();
    });
  }

  #push(lease: Lease, { theta, step, generation }: Current, { local, leases }: Work): void {
    const isElastic = local?.push === 'elastic';
    const isByFragments = local?.fragment !== undefined;
    const own = isByFragments ? this.#fragments!.own : isElastic ? this.#own : null;
    const at = own ?? theta;
    const { payload: given, loss } = gradientOf(problem, 0, lease, at);
    const { wide, layout } = this.#simulation;
    const isWide = wide > 0 && !isByFragments;
    let payload: Float32Array = isWide ? this.#widened(given, at) : given;
    const trainable = isWide ? layout.trainableSize : OWN;
    // An honest gradient is small beside this rate.
    if (this.#simulation.overflows) payload[FEATURES]! /= OVERFLOWING;
    // One large step is as good as several here.
    for (let i = 0; local && i < trainable; i++) payload[i]! *= local.learningRate;
    if (isByFragments) payload = this.#fragment(local, payload);
    if (isElastic) {
      // What is pushed is where it has come to; then it moves towards the server.
      for (let i = 0; i < trainable; i++) payload[i] = at[i]! - payload[i]!;
      const rate = local.movingRate!;
      this.#own = payload.map((x, i) => x - rate * (x - theta[i]!));
    }
    const more = this.#rows?.pushed(
      lease,
      this.#rows.heldFor(lease, generation)!,
      leases.find(({ id }) => id > lease.id) ?? null,
      this.#simulation.shardCount,
    );
    const push: Push = {
      ...{ type: 'push', run: 'r', sequence: ++this.#sequence, lease: lease.id, step, generation },
      ...{ loss: Number.isFinite(loss) ? loss : null, computeMs: 1, encoding: 'f32' },
      ...(local && { kind: local.push }),
      ...(isByFragments && { fragment: local.fragment! }),
      ...(more && { rows: more[0]!.rows }),
    };
    const placed = isByFragments
      ? payload
      : this.#placed.packed(payload, this.#placed.exchangedSize);
    const kept = this.#inParts(push, placed, more ?? []);
    this.#kept.push(kept);
    if (this.#liar && this.#simulation.chance(0.4)) this.#lie(kept);
    this.#send(kept);
    if (this.#liar && this.#simulation.chance(0.2)) this.#send(kept);
  }

  /** @param payload without rows. @param rows for each shard; empty: there are none. */
  #inParts(push: Push, payload: Float32Array, rows: readonly RowsOfPush[]): Kept {
    const tailOf = (k: number) => rows[k]?.tail ?? NO_BYTES;
    const { ranges } = this.#simulation;
    if (ranges.length === 1) return { push, payload: joinedBytes([bytesOf(payload), tailOf(0)]) };
    const cut = ranges.map(({ start, end }, k) =>
      joinedBytes([bytesOf(payload.subarray(start, Math.min(end, payload.length))), tailOf(k)]),
    );
    const { run, sequence, encoding, kind } = push;
    const parts = cut.slice(1).map((own, i) => {
      const told = { type: 'part', run, sequence, encoding, ...(kind && { kind }) } as const;
      const more = rows[i + 1];
      return { message: more ? { ...told, rows: more.rows } : told, payload: own };
    });
    return { push, payload: cut[0]!, parts };
  }

  #send({ push, payload, parts }: Kept): void {
    this.#connection?.send(push, payload);
    if (!parts) return;
    const rows = [push.rows, ...parts.map(({ message }) => message.rows)];
    const payloads = [payload, ...parts.map((part) => part.payload)];
    const { kind, sequence } = push;
    const sent = { rows, payloads, ...(kind && { kind }) };
    this.#simulation.server.whole?.sends(this.#session, sequence, sent);
    for (const [i, part] of parts.entries()) {
      this.#links?.send(i + 1, part.message, [part.payload.slice()]);
    }
  }

  /** @returns the same with elements of the tensor beside the problem, which go where their index says. */
  #widened(given: Float32Array, at: Float32Array): Float32Array {
    const { layout, wide } = this.#simulation;
    const payload = new Float32Array(layout.exchangedSize);
    payload.set(given.subarray(0, OWN));
    for (let i = 0; i < wide; i++) payload[OWN + i] = at[OWN + i]! - i / wide;
    payload[layout.trainableSize] = given[OWN]!;
    return payload;
  }

  /** @param step of the elements of the problem, and the statistic. @returns what of a fragment is pushed. */
  #fragment({ fragment: index, learningRate }: LocalWork, step: Float32Array) {
    const { layout, fragments: count } = this.#simulation;
    const after = this.#fragments!.own.slice();
    for (let i = 0; i < OWN; i++) after[i]! -= step[i]!;
    for (let i = 0; i < WIDE; i++) after[OWN + i]! -= learningRate * (after[OWN + i]! - i / WIDE);
    const change = new Float32Array(layout.exchangedSize);
    change[layout.trainableSize] = step[OWN]!;
    this.#fragments!.push(index!, after, change);
    const whole = [{ start: 0, end: layout.exchangedSize }];
    const parts = fragmentPieces(layout, whole, { index: index!, count }).flatMap(
      ({ gradient, statistics }) => [gradient, statistics],
    );
    return concatFloats(parts.map(({ start, end }) => change.subarray(start, end)));
  }

  /** The same with shards: its parts may be of different pushes. */
  #lieInParts(kept: Kept & Required<Pick<Kept, 'parts'>>): void {
    const { draw } = this.#simulation;
    const { push, payload, parts } = kept;
    const links = this.#links;
    const victim = draw.below(parts.length);
    const changed = (change: (part: Uint8Array) => Uint8Array): Kept['parts'] =>
      parts.map((part, i) =>
        i === victim ? { ...part, payload: change(part.payload.slice()) } : part,
      );
    const { message } = parts[victim]!;
    const lies: (() => void)[] = [
      () => {
        const bad = (part: Uint8Array) => {
          const values = floatsOf(part);
          if (values.length > 0) values[draw.below(values.length)] = Number.NaN;
          return part;
        };
        this.#send({ push, payload, parts: changed(bad)! });
      },
      () => this.#send({ push, payload, parts: changed((part) => part.slice(0, -4))! }),
      () => this.#send({ ...kept, push: { ...push, lease: push.lease + 1 + draw.below(5) } }),
      () => this.#send({ ...kept, push: { ...push, step: push.step + 1 + draw.below(3) } }),
      () => this.#send({ ...kept, push: { ...push, generation: push.generation + 1 } }),
      () => this.#send({ ...kept, push: { ...push, loss: null } }),
      () => links?.send(victim + 1, { ...message, sequence: push.sequence + 7 }, []),
      () => links?.send(victim + 1, { ...message, run: 'nobody' }, [parts[victim]!.payload]),
      () => links?.send(victim + 1, { type: 'attach', session: this.#session }, []),
      () => this.#connection?.send({ type: 'nonsense' }),
    ];
    const { rows } = message;
    if (rows) {
      const told = (change: Partial<typeof rows>) =>
        parts.map((part, i) =>
          i === victim ? { ...part, message: { ...message, rows: { ...rows, ...change } } } : part,
        );
      // All claim rows that this worker was not sent.
      const claim = () => {
        const step = Math.max(rows.step + 1, this.#simulation.server.rowSteps);
        const claiming = parts.map((part) => ({
          ...part,
          message: { ...part.message, rows: { ...part.message.rows!, step } },
        }));
        this.#send({ push: { ...push, rows: { ...push.rows!, step } }, payload, parts: claiming });
      };
      lies.push(
        ...[claim, claim, claim],
        () => this.#send({ push, payload, parts: told({ step: rows.step + 1 }) }),
        () => this.#send({ push, payload, parts: told({ bytes: rows.bytes + 4 }) }),
        () => this.#send({ push, payload, parts: told({ bytes: 0, wanted: 0 }) }),
        // Each shard gets the rows of another one.
        () => {
          const others = parts.map((part, i) => ({ ...part, ...parts[(i + 1) % parts.length]! }));
          this.#send({ push, payload, parts: others });
        },
      );
    }
    this.#simulation.pick(lies)();
  }

  /** What an honest worker never does, before what it does. */
  #lie(kept: Kept): void {
    const { push, payload, parts } = kept;
    if (parts) {
      this.#lieInParts({ ...kept, parts });
      return;
    }
    const { draw } = this.#simulation;
    const connection = this.#connection;
    const values = floatsOf(payload.slice());
    if (this.#rows && draw.below(2) === 0) {
      const lie = this.#rows.lie(push, payload, this.#simulation.server.rowSteps);
      connection?.send(lie.push, lie.payload);
      return;
    }
    if (this.#simulation.overflows && draw.below(3) === 0) {
      const bad = payload.slice();
      const isNegative = draw.below(2) === 0;
      floatsOf(bad).fill(isNegative ? -LARGEST : LARGEST, 0, EXCHANGED);
      connection?.send(push, bad);
      return;
    }
    const lies: (() => void)[] = [
      () => {
        values[draw.below(values.length)] = this.#simulation.pick([Number.NaN, Infinity]);
        connection?.send({ ...push, sequence: push.sequence }, bytesOf(values));
      },
      () => connection?.send({ ...push, lease: push.lease + 1 + draw.below(5) }, payload),
      () => connection?.send({ ...push, lease: Math.max(0, push.lease - 1) }, payload),
      () => connection?.send({ ...push, step: push.step + 1 + draw.below(3) }, payload),
      () => connection?.send({ ...push, generation: push.generation + 1 }, payload),
      () => connection?.send({ ...push, loss: null }, payload),
      () => connection?.send(push, payload.slice(0, 8)),
      () => connection?.send({ ...push, sequence: Math.max(1, push.sequence - 1) }, payload),
      () => connection?.send({ ...push, run: 'nobody' }, payload),
      () => connection?.send({ type: 'nonsense' }),
      () => connection?.send({ type: 'join', run: 'r' }),
    ];
    this.#simulation.pick(lies)();
  }
}
