import { bytesOf, floatsOf } from '../../shared/codec.ts';
import type { Encoding } from '../../shared/compression.ts';
import type { RunConfig } from '../../shared/config.ts';
import {
  type DataFacts,
  decodeFacts,
  forkNote,
  isOfOlderRelease,
} from '../../shared/data-facts.ts';
import { DownpourError, type ErrorCode } from '../../shared/errors.ts';
import { createLayout, type Layout, layoutSpecs, type TensorSpec } from '../../shared/layout.ts';
import { LIMITS } from '../../shared/limits.ts';
import { partLayout, type Range } from '../../shared/partition.ts';
import type {
  Acknowledgement,
  DataSummary,
  ErrorMeasure,
  Evaluated,
  Lease,
  Observed,
  Part,
  Phase,
  Push,
} from '../../shared/protocol.ts';
import type {
  Evaluation,
  Metrics,
  Rollback,
  RunDetail,
  RunSummary,
  Observations as SampledObservations,
} from '../../shared/rest.ts';
import { checkAgreement, type Joining } from './agreement.ts';
import { admit } from './consistency.ts';
import {
  Correction,
  type CorrectionReplica,
  type CorrectionState,
  limitedNorm,
} from './correction.ts';
import { EarlyStopping, type EarlyStoppingState } from './early-stopping.ts';
import { Leases, type LeasesReplica, type LeasesState } from './leases.ts';
import { normBounds } from './max-norm.ts';
import { Observations, type ObservationsState, sumOf } from './observations.ts';
import { normAndFinite, type StepOptions } from './optimizer.ts';
import {
  type Copy,
  flatTensor,
  type NamedTensor,
  Parameters,
  type ParametersState,
  type Room,
  type StagedPush,
  slice,
  takeTensor,
  velocityCount,
} from './parameters.ts';
import { Robust, type RobustState } from './robust.ts';
import {
  type Answer,
  type AnswerOf,
  type Assignment,
  type CallOf,
  hasPayload,
  type LostNote,
  type PartsLanded,
  type RunCall,
  type RunFollower,
  type Seen,
  toFollow,
} from './run/calls.ts';
import { createSchedule, momentumAt, type Schedule, type ScheduleState } from './schedule.ts';
import { BEST, type RunShards, rangesOf, saveVectors } from './shard.ts';
import type { SaveKind, ShardCommand } from './shard-command.ts';
import { Snapshot } from './snapshot.ts';
import { troubleText } from './trouble.ts';

/**
 * One training: its parameters, its clock, and every decision about them. Does no I/O, reads no
 * clock (`now` is an argument, in monotonic ms) and never waits: a push is checked and applied in
 * one synchronous stretch, so nothing can slip in between.
 *
 * What the surroundings must do about it comes out as events (`takeEvents`).
 */

export interface RunOptions {
  readonly id: string;
  readonly experiment: string;
  readonly experimentHash: string;
  readonly config: RunConfig;
  readonly createdAt: string;
  /** Whose parameters it began with. */
  readonly fork?: ForkOrigin;
  /** Whose trial it is. */
  readonly study?: string;
  /** SHA-256 of the bundle that its experiment was sent as. */
  readonly bundle?: string;
}

export interface ForkOrigin {
  readonly run: string;
  readonly step: number;
  /** The tensor file of the checkpoint. */
  readonly checkpoint: string;
  /** Absent: `same`. */
  readonly data?: 'same' | 'other';
}

export type RunEvent =
  | { readonly kind: 'phase'; readonly from: Phase; readonly to: Phase }
  /** A better validation value: `best` has changed. */
  | { readonly kind: 'best' }
  | { readonly kind: 'evaluated'; readonly evaluation: Evaluation }
  | { readonly kind: 'rollback'; readonly rollback: Rollback }
  /** More is known of what was lost with earlier lives of the server. */
  | { readonly kind: 'lost'; readonly steps: number; readonly restored: number }
  /** What is done about the number of workers has changed: a line for the user. */
  | { readonly kind: 'correction'; readonly text: string }
  /** Workers that had nothing to do may have something now. */
  | { readonly kind: 'wake' };

interface WorkerRecord extends WorkerDeeds {
  lastSequence: number;
  attached: boolean;
  /** The generation of the whole vector that it was sent, -1: none. */
  generation: number;
  /** The newest parameters that it was sent for a minibatch: a push names these or older ones. */
  sentGeneration: number;
  sentStep: number;
  /** Samples that its leases have asked it for, and that have not come. */
  samplesDue: number;
}

/** What a worker has done for the run. */
interface WorkerDeeds {
  pushes: Tally;
  /** Over its applied pushes. */
  stalenessSum: number;
  computeMsSum: number;
  /** Exponentially smoothed; null: none yet. */
  computeMsRecent: number | null;
  examples: number;
}
type Tally = { applied: number; damped: number; duplicate: number; rejected: number };

/** Trainable and statistics frozen in time, on all shards under one number. */
interface Capture {
  readonly id: number;
  /** Those of the coordinator's own range: shape [exchangedSize] of its layout. */
  readonly values: Float32Array;
}

interface PendingEvaluation {
  readonly id: number;
  readonly purpose: 'validation' | 'target' | 'test';
  readonly part: Part;
  readonly step: number;
  readonly phaseStep: number;
  readonly epoch: number;
  readonly generation: number;
  readonly capture: Capture;
  worker: string | null;
  deadline: number | null;
}

interface Best {
  readonly evaluation: Evaluation;
  /** i* of Algorithm 7.1, in updates since the phase began. */
  readonly phaseStep: number;
  readonly capture: Capture;
  readonly schedule: ScheduleState;
}

/** The JSON half of a checkpoint; the other half are `tensors()`. */
export interface RunState {
  readonly version: 1;
  readonly options: RunOptions;
  readonly phase: Phase;
  readonly resumePhase: Phase;
  readonly reason: string;
  readonly tensors: readonly TensorSpec[] | null;
  readonly data: DataSummary | null;
  /** What the parameters must be used with. Absent in states of older releases, as `originData`. */
  readonly facts?: DataFacts | null;
  /** Of a fork: what the run that it began with was trained on. */
  readonly originData?: DataSummary | null;
  /** Absent in states of older releases. */
  readonly errorMeasure?: ErrorMeasure | null;
  readonly step: number;
  readonly phaseStart: number;
  readonly scheduleOffset: number;
  readonly generation: number;
  readonly initialisations: number;
  readonly evaluationDue: boolean;
  readonly nextEvaluation: number;
  readonly evaluationsGiven: number;
  readonly ending: string | null;
  readonly seconds: number;
  readonly nonFiniteInRow: number;
  readonly stoppedAt: number | null;
  readonly target: number | null;
  readonly lastEvaluatedStep: number;
  readonly pushes: Tally;
  readonly schedule: ScheduleState;
  readonly parameters: ParametersState | null;
  readonly leases: LeasesState | null;
  readonly earlyStopping: EarlyStoppingState;
  readonly observations: ObservationsState;
  readonly best: Omit<Best, 'capture'> | null;
  readonly test: Evaluation | null;
  readonly testedAt?: string | null;
  /** Last sequence of each; what it has done is absent in states of release 0.1.0. */
  readonly workers: readonly (readonly [string, number, WorkerDeeds?])[];
  /** Which life of the server wrote it, and the first generation of that life; of older releases absent. */
  readonly life?: number;
  readonly firstGeneration?: number;
  readonly stepsLost?: number;
  /** Absent in checkpoints of older releases. */
  readonly rollbacks?: readonly Rollback[];
  readonly initialLoss?: number | null;
  readonly rateFactor?: number;
  readonly optimizerStart?: number;
  readonly epochAtEnd?: number | null;
  readonly startingAnew?: boolean;
  readonly correction?: CorrectionState;
}

/** All that a run is at one moment, with what a checkpoint leaves out; the vectors come beside it. */
export interface RunReplica {
  readonly state: RunState;
  readonly evaluationDue: boolean;
  readonly leases: LeasesReplica | null;
  readonly robust: RobustState;
  readonly correction: CorrectionReplica;
  readonly workers: readonly (readonly [string, WorkerRecord])[];
  readonly grant: { readonly id: number; readonly worker: string | null } | null;
  readonly grantsGiven: number;
  readonly evaluation:
    | (Omit<PendingEvaluation, 'capture'> & {
        /** Set: what is evaluated are the best parameters. */
        readonly isBest: boolean;
      })
    | null;
  readonly restored: { step: number; generation: number; firstGeneration: number };
  readonly lostBefore: number;
  readonly lost: readonly (readonly [number, number])[];
  readonly secondsBefore: number;
  readonly startedMs: number | null;
  readonly nowMs: number;
}

/** What is under evaluation, among the vectors of a replica. */
const EVALUATED = '@evaluated';
const NOTHING = new Uint8Array();

const emptyTally = (): Tally => ({ applied: 0, damped: 0, duplicate: 0, rejected: 0 });
/** In the detail of a run. */
const CLASSES_TOLD = 100;
const NO_EVENTS: readonly RunEvent[] = [];
const GRACE_MS = 5_000;
/** Weight of the past in what a gradient takes a worker of late: about its last 20 count. */
const RECENT = 0.95;
/** More generations than one life of the server ever has. */
const GENERATIONS_A_LIFE = 2 ** 20;
/** Steps after a checkpoint that a worker is believed to have seen: 20,000 a second for 8 minutes. */
const SEEN_AHEAD_MAX = 10_000_000;
/** The number of the best parameters of a run that has been restored. */
export const RESTORED_BEST = 1;
export class Run {
  readonly options: RunOptions;
  #phase: Phase = 'waiting';
  #resumePhase: Phase = 'waiting';
  #reason = 'waiting for a worker to create the parameters';
  readonly #shards: RunShards | null;
  /** Of the whole model. */
  #layout: Layout | null = null;
  #ranges: readonly Range[] = [];
  /** Of the first range, which is all of it as a rule. */
  #parameters: Parameters | null = null;
  #captures = 0;
  #data: DataSummary | null = null;
  #facts: DataFacts | null = null;
  #originData: DataSummary | null = null;
  #errorMeasure: ErrorMeasure | null = null;
  #step = 0;
  /** The step at which the present phase began: its own updates count from there. */
  #phaseStart = 0;
  /** Added to the phase's updates for the schedule: `continue` goes on where the best was. */
  #scheduleOffset = 0;
  #generation = 1;
  /** Of the server, counted over all that have held the state. */
  #life: number;
  /** Lower ones belong to earlier lives. */
  #firstGeneration = 1;
  /** What this life began with: the newest checkpoint. */
  #restored = { step: 0, generation: 1, firstGeneration: 0 };
  #lostBefore = 0;
  /** Steps after the checkpoint, by the life since then that applied them. */
  readonly #lost = new Map<number, number>();
  /** How often fresh parameters were made: training, and `retrain`. */
  #initialisations = 0;
  #schedule: Schedule;
  #leases: Leases | null = null;
  #earlyStopping: EarlyStopping;
  #observations = new Observations();
  readonly #robust: Robust;
  readonly #correction: Correction;
  #evaluation: PendingEvaluation | null = null;
  #evaluationDue = false;
  /** In updates of the phase. */
  #nextEvaluation = 0;
  /** Of a run that is finished: a refit that is not evaluated has epochs too. */
  #epochAtEnd: number | null = null;
  #evaluationsGiven = 0;
  #lastEvaluatedStep = -1;
  /** Set: no more minibatches in this phase, and why. */
  #ending: string | null = null;
  #best: Best | null = null;
  #test: Evaluation | null = null;
  #testedAt: string | null = null;
  #stoppedAt: number | null = null;
  #target: number | null = null;
  #nonFiniteInRow = 0;
  #rollbacks: Rollback[] = [];
  /** Of the first minibatch, at the initial parameters. */
  #initialLoss: number | null = null;
  /** What divergence has left of the learning rate. */
  #rateFactor = 1;
  /** The step at which the optimizer's state began. */
  #optimizerStart = 0;
  /** Diverged before there was a best: the same initial parameters are asked for again. */
  #startingAnew = false;
  #pushes = emptyTally();
  #grant: { id: number; worker: string | null } | null = null;
  #grantsGiven = 0;
  /** Training time before this process took the run over. */
  /** Training time up to `startedMs`; null: it stands still. */
  #secondsBefore = 0;
  #startedMs: number | null = null;
  /** The latest that was told. */
  #nowMs = 0;
  readonly #workers = new Map<string, WorkerRecord>();
  #events: RunEvent[] = [];
  #follower: RunFollower | null = null;

  /**
   * @param shards that share the vector; null: all of it is here.
   * @param life of the server; `since` that in which the run was made and of which nothing is left.
   */
  constructor(
    options: RunOptions,
    shards: RunShards | null = null,
    { life = 1, since = life }: { life?: number; since?: number } = {},
  ) {
    this.options = options;
    this.#life = life;
    this.#generation += (life - since) * GENERATIONS_A_LIFE;
    this.#firstGeneration = this.#generation;
    this.#shards = shards;
    this.#schedule = createSchedule(options.config.schedule, options.config);
    this.#robust = new Robust(options.config);
    this.#correction = new Correction(options.config);
    this.#earlyStopping = new EarlyStopping(options.config.earlyStopping);
  }

  get id(): string {
    return this.options.id;
  }

  get config(): RunConfig {
    return this.options.config;
  }

  /** When the test part was looked at, ISO 8601; null: not yet, or by an older release. */
  get testedAt(): string | null {
    return this.#testedAt;
  }

  get phase(): Phase {
    return this.#phase;
  }

  get reason(): string {
    return this.#reason;
  }

  get step(): number {
    return this.#step;
  }

  get generation(): number {
    return this.#generation;
  }

  get layout(): Layout | null {
    return this.#layout;
  }

  /** Of the first range: what lands here and is sent from here. */
  get partLayout(): Layout | null {
    return this.#parameters?.layout ?? null;
  }

  /** One for each shard, fewer of a small model. */
  get ranges(): readonly Range[] {
    return this.#ranges;
  }

  /** Into how many ranges the vector is cut. */
  get parts(): number {
    return this.#ranges.length;
  }

  /** Of the server. */
  get life(): number {
    return this.#life;
  }

  /** Updates that were applied and are gone, with crashes of the server, as far as is known. */
  get stepsLost(): number {
    let steps = this.#lostBefore;
    for (const lost of this.#lost.values()) steps += lost;
    return steps;
  }

  /** Of the lost ones, those that this life has not made up for yet. */
  get stepsBehind(): number {
    const ahead = Math.max(0, ...this.#lost.values());
    return Math.max(0, this.#restored.step + ahead - this.#step);
  }

  /** How far it has come, and all that it knows of lost steps: what the next life must not forget. */
  get progress() {
    const { step, generation } = this.#restored;
    return {
      ...{ step: this.#step, generation: this.#generation },
      ...{ base: { step, generation }, lost: [...this.#lost], total: this.stepsLost },
    };
  }

  #recallLost({ base, lost, total }: LostNote): void {
    const { step, generation } = this.#restored;
    if (base.step === step && base.generation === generation) {
      for (const [life, steps] of lost) {
        this.#lost.set(life, Math.max(steps, this.#lost.get(life) ?? 0));
      }
    }
    // That life began with another checkpoint: what it learnt is of lives before the one of this checkpoint.
    this.#lostBefore += Math.max(0, total - this.stepsLost);
  }

  #learnLost(seen: Seen): void {
    const { step, generation, firstGeneration } = this.#restored;
    // Of lives before the checkpoint was written: what they lost was counted by those after them.
    if (seen.generation < firstGeneration || seen.generation >= this.#firstGeneration) return;
    const life = Math.max(0, Math.floor((seen.generation - generation) / GENERATIONS_A_LIFE));
    const before = this.#lost.get(life) ?? 0;
    if (seen.step - step <= before) return;
    this.#lost.set(life, seen.step - step);
    this.#events.push({ kind: 'lost', steps: seen.step - step, restored: step });
  }

  /** It has parameters. */
  get hasParameters(): boolean {
    return this.#initialisations > 0;
  }

  /** Nothing more will happen unless somebody resumes it. */
  get over(): boolean {
    return this.#phase === 'finished' || this.#phase === 'stopped' || this.#phase === 'failed';
  }

  /** Its time runs: what is told of it changes without a call. */
  get moving(): boolean {
    return this.#startedMs !== null;
  }

  /** The best evaluation so far. */
  get best(): Evaluation | null {
    return this.#best?.evaluation ?? null;
  }

  get earlyStoppingState(): EarlyStoppingState & {
    stoppedAt: number | null;
    target: number | null;
  } {
    return { ...this.#earlyStopping.state, stoppedAt: this.#stoppedAt, target: this.#target };
  }

  /** What happened since the last call. */
  takeEvents(): readonly RunEvent[] {
    const events = this.#events;
    if (events.length === 0) return NO_EVENTS;
    this.#events = [];
    return events;
  }

  /**
   * The one way to change the run. Whoever follows it is told here, and nowhere else, before it is carried out.
   * @param payload of a call that has one; it is used during the call alone.
   * @throws DownpourError as the kind of call says.
   */
  call<C extends RunCall>(call: C, payload: Uint8Array = NOTHING): AnswerOf<C> {
    this.#follower?.(toFollow(call), hasPayload(call) ? payload : NOTHING);
    return this.#carryOut(call, payload) as AnswerOf<C>;
  }

  #carryOut(call: RunCall, payload: Uint8Array): Answer | undefined {
    switch (call.call) {
      case 'push':
        return this.#push(call.worker, call.push, payload, call.now, call.others ?? null);
      case 'assign':
        return this.#assign(call.worker, call.ahead, call.now);
      case 'join':
        this.#join(call, payload);
        break;
      case 'detach':
        this.#detach(call.worker, call.now);
        break;
      case 'leave':
        this.#leave(call.worker);
        break;
      case 'postpone':
        this.#postpone(call.ms);
        break;
      case 'tick':
        this.#tick(call.now);
        break;
      case 'initialised':
        return this.#initialised(call, payload);
      case 'evaluated':
        return this.#evaluated(call.worker, call.result, call.now);
      case 'sampled':
        return this.#sampled(call.worker, call.observed, call.now);
      case 'overflowed':
        this.#overflowed(call.generation);
        break;
      case 'learnLost':
        this.#learnLost(call.seen);
        break;
      case 'recallLost':
        this.#recallLost(call);
        break;
      case 'stop':
        this.#stop(call.reason);
        break;
      case 'test':
        this.#lookAtTest();
        break;
      case 'tested':
        this.#testedAt = call.at;
        break;
      case 'resume':
        this.#resume();
        break;
    }
    return undefined;
  }

  // Workers come and go.

  #join({ worker, join, now }: CallOf<'join'>, payload: Uint8Array): void {
    const { experimentHash, data, errorMeasure } = join;
    this.mustBeTrusted(worker);
    const layout = createLayout(join.tensors);
    const facts = join.facts ? decodeFacts(payload) : null;
    this.#mustAgree({ experimentHash, layout, data, facts });
    if (join.seen && join.seen.step - this.#restored.step <= SEEN_AHEAD_MAX) {
      this.#learnLost(join.seen);
    }
    // What a worker of this release knows takes the place of what an older one had told.
    if (!this.#data || isOfOlderRelease(this.#data, data)) this.#data = data;
    this.#facts ??= facts;
    this.#errorMeasure ??= errorMeasure ?? null;
    if (!this.#parameters) {
      this.#place(layout);
      this.#tell({ kind: 'create', run: this.id, tensors: join.tensors, config: this.config });
    }
    if (this.#phase === 'waiting' && !this.#grant) {
      if (this.hasParameters) this.#begin();
      else this.#requestParameters();
    }
    const record = this.#record(worker);
    record.attached = true;
    this.#correction.arrived(worker);
    record.generation = -1;
    // Those that wait for more workers look again.
    if (this.config.workersMin > 1) this.#events.push({ kind: 'wake' });
    this.#leases?.extend(worker, now);
    if (this.#evaluation?.worker === worker) this.#evaluation.deadline = null;
  }

  #mustAgree(worker: Joining): void {
    const { experiment, experimentHash, fork } = this.options;
    const origin = fork ? { run: fork.run, data: this.#originData } : null;
    const takesOtherData = fork?.data === 'other';
    const own = { experiment, experimentHash, layout: this.layout };
    checkAgreement(
      { ...own, data: this.#data, facts: this.#facts, origin, takesOtherData },
      worker,
    );
  }

  /** What the worker's data must be standardised by; null: by themselves. */
  get givenFacts(): DataFacts | null {
    return this.options.fork ? this.#facts : null;
  }

  get data(): DataSummary | null {
    return this.#data;
  }

  /** Null: no worker has told. */
  get facts(): DataFacts | null {
    return this.#facts;
  }

  /** Why a worker's pushes are not taken any more; null: they are. */
  quarantine(worker: string): string | null {
    return this.#robust.quarantine(worker);
  }

  /** @throws DownpourError DP_QUARANTINED. */
  mustBeTrusted(worker: string): void {
    const reason = this.quarantine(worker);
    if (reason === null) return;
    throw new DownpourError(
      'DP_QUARANTINED',
      `run ${this.id} takes nothing from this worker any more: ${reason}; mend it, then stop and resume the run`,
    );
  }

  /** Cuts the vector into ranges and makes room for the first one. */
  #place(layout: Layout): void {
    const ranges = rangesOf(layout, this.#shards?.count ?? 1);
    // Here, where a worker is told, not on the other shards.
    for (const range of ranges) normBounds(this.config.maxNorm, partLayout(layout, range).tensors);
    const velocities = velocityCount(this.config, layout);
    this.#parameters = new Parameters(partLayout(layout, ranges[0]!), this.config, velocities);
    this.#correction.place(velocities);
    this.#layout = layout;
    this.#ranges = ranges;
  }

  #tell(command: ShardCommand): void {
    if (this.parts > 1) this.#shards!.tell(this.parts, command);
  }

  #capture(what: 'evaluated' | 'exchanged'): Capture {
    const id = ++this.#captures;
    this.#tell({ kind: 'capture', run: this.id, id, what });
    return { id, values: this.#mustParameters()[what]() };
  }

  /** Nobody needs it any more, unless it is the best or under evaluation. */
  #forget({ id }: Capture): void {
    if (id === this.#best?.capture.id || id === this.#evaluation?.capture.id) return;
    this.#tell({ kind: 'forget', run: this.id, id });
  }

  #detach(worker: string, now: number): void {
    const record = this.#workers.get(worker);
    if (record) record.attached = false;
    this.#robust.left(worker);
    this.#correction.departed(worker, now);
    this.#leases?.hasten(worker, now + GRACE_MS);
    if (this.#evaluation?.worker === worker) this.#evaluation.deadline = now + GRACE_MS;
    if (this.#grant?.worker === worker) {
      this.#grant.worker = null;
      this.#events.push({ kind: 'wake' });
    }
  }

  /** It was asked for the initial parameters. */
  awaitsInitial(worker: string): boolean {
    return this.#grant?.worker === worker;
  }

  #leave(worker: string): void {
    const record = this.#workers.get(worker);
    if (record) record.attached = false;
    this.#robust.left(worker);
    this.#correction.left(worker);
    if (this.#leases?.release(worker)) this.#events.push({ kind: 'wake' });
    if (this.#evaluation?.worker === worker) {
      this.#evaluation.worker = null;
      this.#events.push({ kind: 'wake' });
    }
    if (this.#grant?.worker === worker) {
      this.#grant.worker = null;
      this.#events.push({ kind: 'wake' });
    }
  }

  #postpone(ms: number): void {
    this.#leases?.postpone(ms);
    if (this.#evaluation?.deadline != null) this.#evaluation.deadline += ms;
  }

  #tick(now: number): void {
    this.#correction.tick(now);
    let freed = this.#leases?.expire(now) ?? 0;
    const evaluation = this.#evaluation;
    if (evaluation?.deadline != null && evaluation.deadline <= now) {
      evaluation.worker = null;
      evaluation.deadline = null;
      freed++;
    }
    if (freed > 0) this.#events.push({ kind: 'wake' });
  }

  #assign(worker: string, ahead: number, now: number): Assignment {
    const record = this.#record(worker);
    if (this.over) return { kind: 'end' };
    this.#goesOn(now);
    if (this.#grant) {
      if (this.#grant.worker === null || this.#grant.worker === worker) {
        this.#grant.worker = worker;
        const seed = this.config.seed + this.#initialisations - (this.#startingAnew ? 1 : 0);
        return { kind: 'initialise', grant: this.#grant.id, seed };
      }
      return { kind: 'wait' };
    }
    if (!this.#parameters) return { kind: 'wait' };
    const evaluation = this.#evaluation;
    if (evaluation && (evaluation.worker === null || evaluation.worker === worker)) {
      evaluation.worker = worker;
      evaluation.deadline = null;
      const { id, values } = evaluation.capture;
      const whole = this.#whole(record, values);
      return {
        kind: 'work',
        leases: this.#leases?.heldBy(worker) ?? [],
        evaluation: { id: evaluation.id, part: evaluation.part },
        payload: plain(whole ?? values),
        shared: false,
        step: evaluation.step,
        parts: { capture: id, whole: whole !== null },
      };
    }
    const training = this.#phase === 'training' || this.#phase === 'refitting';
    if (!training || this.#ending !== null || !this.#leases) return { kind: 'wait' };
    if (this.#step === 0 && !this.#isStaffed()) return { kind: 'wait' };
    const { nextId } = this.#leases;
    const leases = this.#leases.grant(worker, Math.min(ahead, LIMITS.leasesPerWorkerMax), now);
    if (leases.length === 0) return { kind: 'wait' };
    this.#askForSamples(record, leases, nextId);
    record.sentGeneration = this.#generation;
    record.sentStep = this.#step;
    const whole = this.#whole(record);
    return {
      kind: 'work',
      leases,
      evaluation: null,
      payload: whole ? plain(whole) : this.#parameters.snapshot(this.config.compression.pull),
      shared: whole === null,
      step: this.#step,
      parts: { capture: null, whole: whole !== null },
    };
  }

  /** Those whose number says so; of one that had been another worker's before, again. @param from the first new one. */
  #askForSamples(record: WorkerRecord, leases: readonly Lease[], from: number): void {
    const { everySteps } = this.config.observe;
    if (everySteps === null) return;
    const asked = leases.filter(({ id }) => (id - 1) % everySteps === 0);
    const isNew = asked.some(({ id }) => id >= from);
    // A worker may put a sample off, and takes it once then, however many leases have asked for it.
    if (isNew || (asked.length > 0 && record.samplesDue === 0)) record.samplesDue = 1;
  }

  #isStaffed(): boolean {
    return this.workersMissing === 0;
  }

  /** Before the first update: so many more must come before it begins. */
  get workersMissing(): number {
    const { workersMin } = this.config;
    if (workersMin === 1 || this.#step > 0 || this.over) return 0;
    const here = [...this.#workers.values()].filter(({ attached }) => attached).length;
    return Math.max(0, workersMin - here);
  }

  /** Nobody will decide about this push: the other shards let go of their parts, if they have them. */
  dropParts(session: string, sequence: number): void {
    this.#tell({ kind: 'drop', run: this.id, session, sequence });
  }

  /** The other shards take initial parameters from this worker, and from nobody else. */
  grantParts(session: string, grant: number): void {
    this.#tell({ kind: 'grant', run: this.id, session, grant });
  }

  /** They take none from it any more. */
  revokeParts(session: string): void {
    this.#tell({ kind: 'revoke', run: this.id, session });
  }

  /** Has the other shards send a worker what belongs to an assignment, under the number of a pull. */
  sendParts(
    session: string,
    pull: number,
    parts: Extract<Assignment, { kind: 'work' }>['parts'],
  ): void {
    this.#tell({ kind: 'send', run: this.id, session, pull, ...parts });
  }

  /**
   * Frozen tensors travel once, with the first parameters that a worker gets.
   * @returns null: it has them.
   */
  #whole(record: WorkerRecord, exchanged?: Float32Array): Float32Array | null {
    const parameters = this.#mustParameters();
    const first = record.generation !== this.#generation;
    record.generation = this.#generation;
    return first && this.#layout!.frozenSize > 0 ? parameters.whole(exchanged) : null;
  }

  /** A worker may push this minibatch. */
  isLeased(lease: number, worker: string): boolean {
    return this.#leases?.find(lease, worker) != null;
  }

  /** Room for a push's payload, as of `Parameters.land`. */
  land(byteLength: number, encoding: Encoding | null): Room | null {
    return this.#parameters?.land(byteLength, encoding) ?? null;
  }

  #initialised(
    { worker, grant, now, others = null }: CallOf<'initialised'>,
    payload: Uint8Array,
  ): boolean {
    const parameters = this.#mustParameters();
    if (this.over || this.#grant?.id !== grant || this.#grant.worker !== worker) return false;
    const { size } = parameters.layout;
    if (payload.length !== 4 * size)
      throw sizeError('initial parameters', payload.length / 4, size);
    const values = floatsOf(payload);
    if (!Number.isFinite(normAndFinite(values)) || others?.finite === false) {
      this.#grant.worker = null;
      throw new DownpourError(
        'DP_GRADIENT_NOT_FINITE',
        `the initial parameters of worker ${worker} hold NaN or infinity: look at the model's initialisers`,
      );
    }
    parameters.initialise(values);
    this.#correction.reset();
    if (others) this.#tell({ kind: 'initialise', run: this.id, session: others.session });
    this.#grant = null;
    this.#initialLoss = null;
    if (!this.#startingAnew) this.#initialisations++;
    this.#startingAnew = false;
    this.#generation++;
    if (this.#phase === 'waiting') this.#begin();
    this.#goesOn(now);
    this.#events.push({ kind: 'wake' });
    return true;
  }

  /** There are parameters, and it is known what the data are. */
  #begin(): void {
    const { epochsMax: epochs } = this.config;
    this.#startPhase('training', { part: 'train', epochs, reason: 'training' });
  }

  // A push.

  /** Everything between the check of a push and the update happens here, without a pause. */
  #push(
    worker: string,
    push: Push,
    payload: Uint8Array,
    now: number,
    others: PartsLanded | null,
  ): Acknowledgement {
    const { sequence } = push;
    this.#goesOn(now);
    const acknowledgement = this.#decide(worker, push, payload, now, others);
    const { outcome } = acknowledgement;
    this.#pushes[outcome]++;
    this.#record(worker).pushes[outcome]++;
    if (others && (outcome === 'rejected' || outcome === 'duplicate')) {
      this.#tell({ kind: 'drop', run: this.id, session: others.session, sequence });
    }
    return acknowledgement;
  }

  #decide(
    worker: string,
    push: Push,
    payload: Uint8Array,
    now: number,
    others: PartsLanded | null,
  ): Acknowledgement {
    const record = this.#record(worker);
    if (push.sequence <= record.lastSequence) return answer(push, 'duplicate', 0);

    const shutOut = this.quarantine(worker);
    if (shutOut !== null) return answer(push, 'rejected', 0, 'DP_QUARANTINED', shutOut);
    const parameters = this.#parameters;
    const leases = this.#leases;
    const training = this.#phase === 'training' || this.#phase === 'refitting';
    if (!parameters || !leases || !training || this.#grant || this.#ending !== null) {
      const message = `the run is ${this.#ending ?? this.#phase}: this minibatch is not needed any more`;
      return answer(push, 'rejected', 0, 'DP_PUSH_PHASE', message);
    }
    let staged: StagedPush;
    try {
      staged = parameters.stage(payload, push.encoding);
    } catch (error) {
      if (!(error instanceof DownpourError)) throw error;
      return answer(push, 'rejected', 0, error.code, error.message);
    }
    if (others?.problem) return answer(push, 'rejected', 0, 'DP_TENSOR_SIZE', others.problem);
    const lease = leases.find(push.lease, worker);
    if (!lease) {
      const message = `minibatch lease ${push.lease} is not this worker's any more: it was not pushed within leaseSeconds ${this.config.leaseSeconds} or its connection was lost, and it went to another worker`;
      return answer(push, 'rejected', 0, 'DP_PUSH_LEASE_LOST', message);
    }
    if (push.generation !== this.#generation) {
      leases.retry(lease.id, now);
      const message = `push read step ${push.step} of generation ${push.generation}, server is at ${this.#step} of generation ${this.#generation}: these parameters are no more; pull, then retry`;
      return answer(push, 'rejected', 0, 'DP_PUSH_STALE', message);
    }
    const sentStep = record.sentGeneration === this.#generation ? record.sentStep : -1;
    if (push.step > sentStep) {
      leases.retry(lease.id, now);
      const sent = sentStep < 0 ? 'none of this generation' : `none after step ${sentStep}`;
      const message = `push read step ${push.step}, and this worker was sent ${sent}: name the step of the parameters that the gradient was computed at; pull, then retry`;
      return answer(push, 'rejected', 0, 'DP_PUSH_STALE', message);
    }
    const staleness = this.#step - push.step;
    const admission = admit(this.config.consistency, {
      staleness,
      readStep: push.step,
      serverStep: this.#step,
    });
    if (admission.kind === 'reject') {
      leases.retry(lease.id, now);
      return answer(push, 'rejected', staleness, 'DP_PUSH_STALE', admission.message);
    }
    const { clip } = this.config;
    const limit = clip.value ?? Infinity;
    const { loss } = push;
    const step = this.#step - this.#optimizerStart + 1;
    const plan = this.#correction.plan(worker, staleness);
    const learningRate = this.learningRate * admission.scale * (plan?.scale ?? 1);
    const momentum = momentumAt(this.config.momentumSchedule, this.#scheduleStep);
    const options: StepOptions = {
      ...{ step, learningRate },
      ...(momentum !== undefined && { momentum }),
      ...(plan?.velocity && { velocity: plan.velocity }),
    };
    const given = Math.sqrt(parameters.squares(staged, limit) + (others?.squares ?? 0));
    if (loss === null || !Number.isFinite(given)) {
      leases.retry(lease.id, now);
      const message = this.#nonFinite(push.step);
      this.#robust.bad(worker, message);
      return answer(push, 'rejected', staleness, 'DP_GRADIENT_NOT_FINITE', message);
    }
    const refusal = this.#robust.refuse(worker, given, now);
    if (refusal) {
      leases.retry(lease.id, now);
      const { code, message } = refusal;
      if (code === 'DP_GRADIENT_TOO_LARGE') this.#robust.bad(worker, message);
      return answer(push, 'rejected', staleness, code, message);
    }
    const norm = Math.min(limitedNorm(given, plan?.normMax ?? Infinity), clip.norm ?? Infinity);
    const factor = norm < given ? norm / given : 1;

    if (!parameters.update(staged, { limit, factor }, options)) {
      const message = overflowMessage(this.#step + 1, learningRate, norm, clip.norm);
      leases.retry(lease.id, now);
      this.#diverged(message);
      return answer(push, 'rejected', staleness, 'DP_DIVERGED', message);
    }
    if (others) {
      const { session } = others;
      const { sequence } = push;
      const what = { worker, sequence, clip: { limit, factor }, options };
      const generation = this.#generation;
      this.#tell({ kind: 'apply', run: this.id, session, generation, ...what });
    }
    this.#step++;
    leases.complete(lease.id);
    record.lastSequence = push.sequence;
    record.stalenessSum += staleness;
    record.computeMsSum = sumOf(record.computeMsSum, push.computeMs);
    const before = record.computeMsRecent ?? push.computeMs;
    record.computeMsRecent = RECENT * before + (1 - RECENT) * push.computeMs;
    record.examples += lease.count;
    this.#nonFiniteInRow = 0;
    this.#robust.applied(worker, now);
    this.#correction.applied(worker, plan, { norm, staleness, loss });
    const news = this.#correction.takeNews();
    if (news !== null) this.#events.push({ kind: 'correction', text: news });
    this.#initialLoss ??= loss;
    this.#observations.applied({
      step: this.#step,
      seconds: this.seconds(now),
      loss,
      learningRate,
      momentum: momentum ?? this.#ownMomentum,
      gradientNorm: norm,
      staleness,
      examples: lease.count,
    });
    if (this.config.observe.everySteps !== null) this.#observations.computed(push.computeMs);
    this.#afterStep();
    return answer(push, admission.scale < 1 ? 'damped' : 'applied', staleness);
  }

  #overflowed(generation: number): void {
    // Several updates may have been under way when the first was told.
    if (this.over || generation !== this.#generation) return;
    this.#diverged(
      overflowMessage(
        this.#step,
        this.learningRate,
        this.#observations.gradientNorm,
        this.config.clip.norm,
      ),
    );
  }

  #nonFinite(readStep: number): string {
    this.#nonFiniteInRow++;
    const { nonFiniteMax } = this.config;
    const count = `${this.#nonFiniteInRow} in a row, the run counts as diverged at ${nonFiniteMax}`;
    const atStart = this.#initialLoss === null;
    const clip = this.config.clip.norm === null ? 'set clip.norm' : 'lower clip.norm';
    const message = atStart
      ? `the loss or gradient is NaN or infinite at the initial parameters, before any update (${count}): learningRate has no part in it; look for bad or far too large values in the data, at the loss, and at the model's initialisers`
      : `the loss or gradient at step ${readStep} is NaN or infinite (${count}): lower learningRate, ${clip}, or look for bad values in the data`;
    if (this.#nonFiniteInRow < nonFiniteMax) return message;
    const last = this.#rollbacks.at(-1);
    // The same parameters once more would give the same.
    const isAgain = atStart && last?.to === null && last.step === this.#step;
    if (isAgain) this.#fail(message);
    else this.#diverged(message);
    return message;
  }

  /**
   * Goes back to the last parameters that are known to be good, with a lower learning rate, as often as the
   * configuration allows. Those are the best of the evaluations, since what came before the first sign of
   * divergence may be spoilt already; or the initial ones, when no evaluation was better than they are, and
   * in a `retrain`, which must not begin with trained ones. Steps, epochs and the order of examples go on.
   */
  #diverged(reason: string): void {
    const { rollbacksMax, factor } = this.config.divergence;
    if (this.#rollbacks.length >= rollbacksMax) {
      const after = rollbacksMax === 0 ? '' : `, after ${rollbacksMax} rollbacks`;
      this.#fail(`${reason}${after}`);
      return;
    }
    this.#nonFiniteInRow = 0;
    this.#rateFactor *= factor;
    this.#optimizerStart = this.#step;
    this.#observations.restartSmoothing();
    const anew = this.#phase === 'refitting' && this.config.earlyStopping.afterStop === 'retrain';
    const best = anew || !this.#isGood(this.#best) ? null : this.#best;
    if (!best && !anew && this.options.fork) {
      this.#fail(`${reason}; a fork has no initial parameters of its own to go back to`);
      return;
    }
    if (best) {
      this.#setParameters(best.capture);
      this.#resetOptimizer();
    } else {
      this.#startingAnew = true;
      this.#generation++;
      this.#requestParameters();
    }
    const { step } = best?.evaluation ?? { step: null };
    const rollback = { step: this.#step, to: step, learningRate: this.learningRate, reason };
    this.#rollbacks.push(rollback);
    this.#events.push({ kind: 'rollback', rollback }, { kind: 'wake' });
  }

  /** Where training diverges from the start, an evaluation may be finite and yet worthless. */
  #isGood(best: Best | null): boolean {
    const loss = best?.evaluation.loss ?? Infinity;
    return this.#initialLoss !== null && loss <= this.#initialLoss;
  }

  /** What is due after an applied push: an evaluation, the end of a phase. */
  #afterStep(): void {
    const { config } = this;
    const phaseStep = this.#phaseStep;
    if (this.#phase === 'refitting') {
      if (config.earlyStopping.afterStop === 'retrain') {
        if (phaseStep >= this.#best!.phaseStep) this.#ending = 'refitted for the best step count';
      } else if (phaseStep >= this.#refitStepsMax()) {
        this.#ending = 'continued up to its limit of steps';
      }
    } else if (config.stepsMax !== null && phaseStep >= config.stepsMax) {
      this.#ending = `reached stepsMax ${config.stepsMax}`;
    } else if (this.#leases!.exhausted) {
      this.#ending = `reached epochsMax ${config.epochsMax}`;
    }
    if (phaseStep >= this.#nextEvaluation) {
      this.#nextEvaluation =
        (Math.floor(phaseStep / this.#evaluateEvery) + 1) * this.#evaluateEvery;
      this.#evaluationDue = this.#validates;
    }
    this.#proceed();
  }

  /** `retrain` trains on the validation data too, so there is nothing to validate on. */
  get #validates(): boolean {
    return this.#phase !== 'refitting' || this.config.earlyStopping.afterStop === 'continue';
  }

  /** Starts the evaluation that is due, or ends the phase, unless one is under way. */
  #proceed(): void {
    if (this.#evaluation) return;
    const training = this.#phase === 'training' || this.#phase === 'refitting';
    if (!training) return;
    if (this.#ending !== null && this.#validates && this.#lastEvaluatedStep < this.#step) {
      this.#evaluationDue = true;
    }
    if (this.#evaluationDue) {
      this.#evaluationDue = false;
      this.#evaluate('validation', 'validation', this.#capture('evaluated'));
    } else if (this.#ending !== null) {
      if (this.#phase === 'training') this.#stopTraining(this.#ending);
      else this.#settle(this.#ending);
    }
  }

  // Evaluations.

  /** @param step that the captured parameters belong to. */
  #evaluate(
    purpose: PendingEvaluation['purpose'],
    part: Part,
    capture: Capture,
    step = this.#step,
  ): void {
    this.#evaluation = {
      id: ++this.#evaluationsGiven,
      purpose,
      part,
      step,
      phaseStep: this.#phaseStep,
      epoch: this.epoch,
      generation: this.#generation,
      capture,
      worker: null,
      deadline: null,
    };
    this.#events.push({ kind: 'wake' });
  }

  #evaluated(worker: string, result: Evaluated, now: number): boolean {
    const pending = this.#evaluation;
    if (this.over || pending?.id !== result.evaluation || pending.worker !== worker) return false;
    if (this.quarantine(worker) !== null) return false;
    const examples = this.#examplesOf(pending.part);
    if (result.examples !== examples) {
      pending.worker = null;
      this.#events.push({ kind: 'wake' });
      throw new DownpourError(
        'DP_DATA_MISMATCH',
        `an evaluation of ${result.examples} examples; the part '${pending.part}' of run ${this.id} has ${examples}: evaluate all of them, once each`,
      );
    }
    this.#goesOn(now);
    this.#evaluation = null;
    const evaluation: Evaluation = {
      step: pending.step,
      epoch: pending.epoch,
      seconds: this.seconds(now),
      part: pending.part,
      loss: result.loss,
      error: result.error,
      examples: result.examples,
      metrics: result.metrics,
      learningRate: this.learningRate,
      trainingLoss: this.#observations.trainingLoss,
    };
    this.#observations.evaluated(evaluation);
    this.#events.push({ kind: 'evaluated', evaluation }, { kind: 'wake' });
    if (pending.purpose === 'test') {
      this.#test = evaluation;
      this.#finish();
    } else if (pending.purpose === 'target') {
      this.#continueFromBest(evaluation);
    } else {
      this.#validated(pending, evaluation);
    }
    this.#forget(pending.capture);
    return true;
  }

  #examplesOf(part: Part): number {
    const { trainCount, validationCount, testCount } = this.#data!;
    if (part === 'trainAndValidation') return trainCount + validationCount;
    return { train: trainCount, validation: validationCount, test: testCount }[part];
  }

  #sampled(worker: string, observed: Observed, now: number): boolean {
    const record = this.#workers.get(worker);
    if (this.over || !this.layout || !record || record.samplesDue === 0) return false;
    if (this.quarantine(worker) !== null) return false;
    record.samplesDue--;
    const known = new Set(this.layout.tensors.map(({ name }) => name));
    const strange = observed.tensors.find(({ name }) => !known.has(name));
    if (strange) {
      throw new DownpourError(
        'DP_LAYOUT_MISMATCH',
        `a sample is of tensor '${strange.name}', which run ${this.id} does not have`,
      );
    }
    this.#observations.sampled(observed, this.seconds(now));
    return true;
  }

  #validated(pending: PendingEvaluation, evaluation: Evaluation): void {
    this.#lastEvaluatedStep = pending.step;
    if (this.#phase === 'refitting') {
      const { loss } = evaluation;
      if (loss !== null && this.#target !== null && loss < this.#target) {
        this.#settle(
          `validation loss ${loss} fell below the training loss at the stop ${this.#target}`,
        );
      } else {
        this.#proceed();
      }
      return;
    }
    const { metric, patience } = this.config.earlyStopping;
    const value = (metric === 'loss' ? evaluation.loss : evaluation.error) ?? Number.NaN;
    if (!Number.isFinite(value) && this.#mayRollBack(pending)) {
      this.#diverged(`the validation ${metric} at step ${pending.step} is NaN or infinite`);
      return;
    }
    this.#schedule.observe(value);
    const verdict = this.#earlyStopping.observe(value, pending.step);
    if (verdict.improved) {
      const worse = this.#best;
      this.#best = {
        evaluation,
        phaseStep: pending.phaseStep,
        capture: pending.capture,
        schedule: this.#schedule.state(),
      };
      if (worse) this.#forget(worse.capture);
      this.#events.push({ kind: 'best' });
    }
    if (verdict.stop) {
      this.#stopTraining(`validation ${metric} has not improved for ${patience} evaluations`);
      return;
    }
    const { evaluations } = this.#observations;
    const count = evaluations.filter(({ part }) => part === 'validation').length;
    if (this.#ending === null && this.config.pauseAfter?.includes(count)) {
      this.#stop(
        `paused after ${count} evaluations, as pauseAfter says; \`downpour resume\` goes on`,
      );
    } else {
      this.#proceed();
    }
  }

  /** There is something to go back for: this phase goes on, and with the parameters that were evaluated. */
  #mayRollBack(pending: PendingEvaluation): boolean {
    const left = this.config.divergence.rollbacksMax - this.#rollbacks.length;
    return left > 0 && this.#ending === null && pending.generation === this.#generation;
  }

  // From phase to phase.

  #startPhase(
    phase: 'training' | 'refitting',
    options: { part: Part; epochs: number | null; reason: string },
  ): void {
    const exampleCount = this.#examplesOf(options.part);
    this.#phaseStart = this.#step;
    this.#optimizerStart = this.#step;
    this.#ending = null;
    this.#evaluationDue = false;
    this.#leases = new Leases({
      part: options.part,
      exampleCount,
      minibatchSize: this.config.minibatchSize,
      epochStart: this.#leases ? this.#leases.epoch + 1 : 0,
      epochs: options.epochs,
      leaseMs: this.config.leaseSeconds * 1000,
      idStart: this.#leases?.nextId ?? 1,
    });
    this.#nextEvaluation = this.#evaluateEvery;
    this.#setPhase(phase, options.reason);
  }

  /** Training is over: what `afterStop` asks for follows. */
  #stopTraining(reason: string): void {
    this.#stoppedAt = this.#step;
    const best = this.#best;
    if (!best) {
      const { trainingLoss } = this.#observations;
      const trains = trainingLoss !== null && this.#rollbacks.length === 0;
      const next = trains
        ? `the training loss is ${Number(trainingLoss.toPrecision(4))}, so look at the values of the validation part and at what is measured there`
        : 'lower learningRate';
      this.#fail(`no evaluation gave a finite validation value (${reason}): ${next}`);
      return;
    }
    const { afterStop } = this.config.earlyStopping;
    this.#ending = reason;
    if (afterStop === 'restore') {
      this.#setParameters(best.capture);
      this.#settle(reason);
    } else if (afterStop === 'continue') {
      this.#setPhase('measuring', `${reason}; measuring the training loss at the best step`);
      this.#evaluate('target', 'train', best.capture, best.evaluation.step);
    } else {
      this.#scheduleOffset = 0;
      this.#schedule = createSchedule(this.config.schedule, this.config);
      this.#observations.restartSmoothing();
      this.#startPhase('refitting', {
        part: 'trainAndValidation',
        epochs: null,
        reason: `${reason}; retraining on all data for ${best.phaseStep} steps (Algorithm 7.2)`,
      });
      this.#requestParameters();
    }
  }

  /** Algorithm 7.3: from the best parameters, on all data, down to the training loss there. */
  #continueFromBest(evaluation: Evaluation): void {
    const best = this.#best!;
    if (evaluation.loss === null) {
      this.#fail('the training loss at the best step is not finite');
      return;
    }
    this.#target = evaluation.loss;
    this.#setParameters(best.capture);
    this.#resetOptimizer();
    this.#schedule.restore(best.schedule);
    this.#scheduleOffset = best.phaseStep;
    this.#startPhase('refitting', {
      part: 'trainAndValidation',
      epochs: null,
      reason: `continuing on all data until the validation loss is below ${this.#target} (Algorithm 7.3)`,
    });
  }

  #refitStepsMax(): number {
    return this.config.earlyStopping.continueStepsMax ?? this.#best!.phaseStep;
  }

  #setParameters(by: Capture | 'evaluated'): void {
    const parameters = this.#mustParameters();
    const evaluated = by === 'evaluated';
    parameters.replace(evaluated ? parameters.evaluated() : by.values);
    this.#tell({ kind: 'replace', run: this.id, by: evaluated ? by : by.id });
    this.#generation++;
  }

  #resetOptimizer(): void {
    this.#mustParameters().resetOptimizer();
    this.#correction.reset();
    this.#tell({ kind: 'resetOptimizer', run: this.id });
  }

  /** The parameters are the final ones; the test part is looked at once. */
  #settle(reason: string): void {
    if (this.#phase === 'refitting') this.#setParameters('evaluated');
    this.#ending = reason;
    if (this.config.testAtEnd && this.#data!.testCount > 0) {
      this.#setPhase('testing', reason);
      this.#evaluateTest();
    } else {
      this.#reason = reason;
      this.#finish();
    }
  }

  /** The parameters that were restored belong to the best step, refitted ones to the last. */
  #evaluateTest(): void {
    const restored = this.config.earlyStopping.afterStop === 'restore';
    const step = restored ? this.#best!.evaluation.step : this.#step;
    this.#evaluate('test', 'test', this.#capture('exchanged'), step);
  }

  #lookAtTest(): void {
    if (!this.hasParameters) {
      throw new DownpourError(
        'DP_CHECKPOINT_MISSING',
        `run ${this.id} has no parameters yet, so there is nothing to test`,
      );
    }
    if (this.#phase === 'failed') {
      throw new DownpourError('DP_RUN_FAILED', `run ${this.id} has failed: ${this.#reason}`);
    }
    if (this.#phase !== 'finished') {
      throw new DownpourError(
        'DP_RUN_UNFINISHED',
        `run ${this.id} is ${this.#phase}: the test part is for the final parameters, so let it finish first`,
      );
    }
    if (this.#test) {
      throw new DownpourError(
        'DP_TEST_SEEN',
        `the test part was looked at for run ${this.id}${this.testedAt === null ? '' : ` on ${this.testedAt}`}: loss ${this.#test.loss}, error ${this.#test.error}; it counts once`,
      );
    }
    if (this.#data!.testCount === 0) {
      throw new DownpourError(
        'DP_DATA_MISSING',
        `the data of run ${this.id} (${this.#data!.source}) have no test part`,
      );
    }
    this.#setPhase('testing', this.#reason);
    this.#evaluateTest();
  }

  #finish(): void {
    this.#epochAtEnd = this.epoch;
    this.#leases = null;
    this.#setPhase('finished', this.#reason);
  }

  #fail(reason: string): void {
    this.#pause();
    this.#setPhase('failed', reason);
  }

  /** Asks a worker for fresh parameters. */
  #requestParameters(): void {
    this.#grant = { id: ++this.#grantsGiven, worker: null };
    this.#events.push({ kind: 'wake' });
  }

  #setPhase(to: Phase, reason: string): void {
    const from = this.#phase;
    this.#phase = to;
    this.#reason = reason;
    if (this.over) {
      this.#secondsBefore = this.seconds(this.#nowMs);
      this.#startedMs = null;
    }
    this.#events.push({ kind: 'phase', from, to }, { kind: 'wake' });
  }

  #stop(reason: string): void {
    if (this.over) return;
    if (this.#phase === 'testing' && !this.#leases) {
      // It had finished before somebody asked for the test: it is as it was.
      this.#evaluation = null;
      this.#setPhase('finished', this.#reason);
      return;
    }
    this.#resumePhase = this.#phase;
    this.#pause();
    this.#setPhase('stopped', reason);
  }

  #resume(): void {
    if (this.#phase === 'failed') {
      throw new DownpourError(
        'DP_RUN_FAILED',
        `run ${this.id} has failed: ${this.#reason}; start a new one with another configuration`,
      );
    }
    if (this.#phase === 'finished') {
      throw new DownpourError('DP_RUN_ENDED', `run ${this.id} is finished: ${this.#reason}`);
    }
    if (this.#phase === 'stopped') this.#robust.release();
    if (this.#phase === 'stopped') this.#setPhase(this.#resumePhase, 'resumed');
  }

  #pause(): void {
    for (const worker of this.#workers.keys()) this.#leases?.release(worker);
    if (this.#evaluation) this.#evaluation.worker = null;
    if (this.#grant) this.#grant.worker = null;
  }

  // What others want to know.

  get epoch(): number {
    return (
      this.#leases?.epoch ?? this.#epochAtEnd ?? this.#observations.evaluations.at(-1)?.epoch ?? 0
    );
  }

  /** Updates of the present phase. */
  get #phaseStep(): number {
    return this.#step - this.#phaseStart;
  }

  get #scheduleStep(): number {
    return this.#phaseStep + this.#scheduleOffset;
  }

  get #evaluateEvery(): number {
    return this.config.evaluateEverySteps ?? this.#leases!.perEpoch;
  }

  /** Of the next update, before damping. */
  get learningRate(): number {
    return this.#schedule.rate(this.#scheduleStep) * this.#rateFactor;
  }

  /** Something was done for it: its time runs, if it is not over. */
  #goesOn(now: number): void {
    this.#nowMs = now;
    if (!this.over && this.hasParameters) this.#startedMs ??= now;
  }

  /** Of the update rule where no schedule changes it; null: it has none. */
  get #ownMomentum(): number | null {
    const { optimizer } = this.config;
    return 'momentum' in optimizer ? optimizer.momentum : null;
  }

  get #momentum(): number | null {
    return momentumAt(this.config.momentumSchedule, this.#scheduleStep) ?? this.#ownMomentum;
  }

  /** Training time, over all processes that have held the run, while it was not over. */
  seconds(now: number): number {
    return this.#secondsBefore + (this.#startedMs === null ? 0 : (now - this.#startedMs) / 1000);
  }

  #stepsMax(): number | null {
    const { stepsMax, epochsMax } = this.config;
    // A refit begins after the first phase, and its limit is the run's to the end.
    if (this.#phaseStart > 0 && this.#best) {
      const retrain = this.config.earlyStopping.afterStop === 'retrain';
      return this.#phaseStart + (retrain ? this.#best!.phaseStep : this.#refitStepsMax());
    }
    const byEpochs =
      epochsMax !== null && this.#data
        ? epochsMax * Math.ceil(this.#data.trainCount / this.config.minibatchSize)
        : Infinity;
    const limit = Math.min(stepsMax ?? Infinity, byEpochs);
    return Number.isFinite(limit) ? limit : null;
  }

  summary(now: number): Omit<RunSummary, 'checkpoint' | 'unwritten'> {
    const observations = this.#observations;
    const speed = this.over ? null : observations.speed(this.seconds(now));
    const stepsMax = this.#stepsMax();
    const { earlyStopping } = this.config;
    return {
      id: this.id,
      experiment: this.options.experiment,
      study: this.options.study ?? null,
      phase: this.#phase,
      reason: this.#reason,
      createdAt: this.options.createdAt,
      step: this.#step,
      epoch: this.epoch,
      examples: observations.examples,
      stepsMax,
      workers: [...this.#workers.values()].filter((w) => w.attached).length,
      parameters: this.layout?.trainableSize ?? null,
      learningRate: this.learningRate,
      momentum: this.#momentum,
      examplesPerSecond: speed?.examplesPerSecond ?? null,
      secondsLeft:
        stepsMax === null || !speed || speed.stepsPerSecond === 0
          ? null
          : Math.max(0, stepsMax - this.#step) / speed.stepsPerSecond,
      seconds: this.seconds(now),
      trainingLoss: observations.trainingLoss,
      sparkline: observations.sparkline(),
      validation: observations.evaluations.findLast((e) => e.part === 'validation') ?? null,
      best: this.best,
      test: this.#test,
      testedAt: this.testedAt,
      earlyStopping: {
        enabled: earlyStopping.enabled,
        metric: earlyStopping.metric,
        patience: earlyStopping.patience,
        patienceLeft: this.#earlyStopping.patienceLeft,
        afterStop: earlyStopping.afterStop,
        stoppedAt: this.#stoppedAt,
        target: this.#target,
        refitSteps: this.#phase === 'refitting' ? this.#phaseStep : null,
      },
      staleness: observations.staleness(),
      gradientNorm: observations.gradientNorm,
      correction: this.#correction.told,
      hint: this.#hint(),
      pushes: { ...this.#pushes },
      rollbacks: [...this.#rollbacks],
      stepsLost: this.stepsLost,
      data: this.#data,
      dataNote: forkNote(this.options.fork, this.#originData, this.#data),
      errorMeasure: this.#errorMeasure,
    };
  }

  #hint(): string | null {
    const { trouble } = this.#observations;
    // A refit begins anew or goes on from the best: neither is judged by the course so far.
    const { afterStop } = this.config.earlyStopping;
    const judged = this.#phase === 'training' || afterStop === 'restore';
    const many = this.#phase === 'training' ? this.#correction.hint(this.#momentum) : null;
    if (many !== null || !trouble || !judged) return many;
    return troubleText(trouble, (this.layout?.statisticsSize ?? 0) > 0);
  }

  detail(now: number): Omit<RunDetail, 'checkpoint' | 'unwritten'> {
    return {
      ...this.summary(now),
      experimentHash: this.options.experimentHash,
      bundle: this.options.bundle ?? null,
      config: this.config,
      layoutHash: this.layout?.hash ?? null,
      inputShape: this.#facts?.inputs.shape ?? null,
      classes: this.#facts?.classes?.slice(0, CLASSES_TOLD) ?? null,
    };
  }

  /** @param pointsMax of each curve, at least 2. */
  metrics(pointsMax?: number): Metrics {
    return this.#observations.metrics(pointsMax);
  }

  get observed(): SampledObservations {
    return { everySteps: this.config.observe.everySteps, ...this.#observations.observed() };
  }

  /** Between two evaluations at the mean speed so far, s; null: unknown. */
  evaluationSeconds(now: number): number | null {
    if (this.#step === 0 || !this.#leases) return null;
    return (this.#evaluateEvery * this.seconds(now)) / this.#step;
  }

  /** What one worker did for this run. */
  workerTally(worker: string) {
    // Looking must not change anything: a replica is not looked at.
    const record = this.#workers.get(worker) ?? newRecord();
    const applied = record.pushes.applied + record.pushes.damped;
    return {
      leases: this.#leases?.heldBy(worker).length ?? 0,
      evaluating: this.#evaluation?.worker === worker,
      pushes: { ...record.pushes },
      stalenessMean: applied === 0 ? null : record.stalenessSum / applied,
      computeMsMean: applied === 0 ? null : record.computeMsSum / applied,
      computeMsRecent: record.computeMsRecent,
      examples: record.examples,
    };
  }

  // Checkpoints.

  /** The JSON half of a checkpoint at this step. */
  state(now: number): RunState {
    return {
      version: 1,
      options: this.options,
      phase: this.#phase,
      resumePhase: this.#resumePhase,
      reason: this.#reason,
      tensors: this.layout && layoutSpecs(this.layout),
      data: this.#data,
      facts: this.#facts,
      originData: this.#originData,
      errorMeasure: this.#errorMeasure,
      step: this.#step,
      phaseStart: this.#phaseStart,
      scheduleOffset: this.#scheduleOffset,
      generation: this.#generation,
      initialisations: this.#initialisations,
      evaluationDue: this.#evaluationDue || this.#evaluation?.purpose === 'validation',
      nextEvaluation: this.#nextEvaluation,
      evaluationsGiven: this.#evaluationsGiven,
      ending: this.#ending,
      seconds: this.seconds(now),
      nonFiniteInRow: this.#nonFiniteInRow,
      stoppedAt: this.#stoppedAt,
      target: this.#target,
      lastEvaluatedStep: this.#lastEvaluatedStep,
      pushes: { ...this.#pushes },
      schedule: this.#schedule.state(),
      parameters: this.#parameters?.state() ?? null,
      leases: this.#leases?.state() ?? null,
      earlyStopping: this.#earlyStopping.state,
      observations: this.#observations.state(),
      best: this.#best && {
        evaluation: this.#best.evaluation,
        phaseStep: this.#best.phaseStep,
        schedule: this.#best.schedule,
      },
      test: this.#test,
      testedAt: this.testedAt,
      workers: [...this.#workers].map(([key, record]) => {
        const { pushes, stalenessSum, computeMsSum, computeMsRecent, examples } = record;
        const deeds = { stalenessSum, computeMsSum, computeMsRecent, examples };
        return [key, record.lastSequence, { pushes: { ...pushes }, ...deeds }];
      }),
      life: this.#life,
      firstGeneration: this.#firstGeneration,
      stepsLost: this.stepsLost,
      rollbacks: [...this.#rollbacks],
      initialLoss: this.#initialLoss,
      rateFactor: this.#rateFactor,
      optimizerStart: this.#optimizerStart,
      epochAtEnd: this.#epochAtEnd,
      startingAnew: this.#startingAnew,
      correction: this.#correction.state(),
    };
  }

  /**
   * The other half: private copies. Parameters by their names, optimizer state as
   * `@optimizer.<symbol>`, that of the average as `@average.<symbol>`, the best parameters: flat.
   */
  tensors(copy: Copy = slice): NamedTensor[] {
    if (!this.#parameters || !this.hasParameters) return [];
    const tensors = this.#parameters.tensors(copy);
    if (this.#best) tensors.push(flatTensor(BEST, copy(this.#best.capture.values)));
    return tensors;
  }

  /** The best parameters by their names, for a checkpoint of their own. */
  bestTensors(copy: Copy = slice): NamedTensor[] {
    return this.#mustParameters().named(this.#best?.capture.values, copy);
  }

  /** The parameters by their names. */
  finalTensors(copy: Copy = slice): NamedTensor[] {
    return this.#mustParameters().named(undefined, copy);
  }

  /**
   * Has all shards keep copies of this moment for a checkpoint.
   * @param id under which the others give theirs.
   * @returns those of the first range; see `saveVectors`.
   */
  save(id: number, what: SaveKind, copy: Copy = slice): Map<string, Float32Array> {
    const best = what === 'final' ? null : (this.#best?.capture ?? null);
    this.#tell({ kind: 'save', run: this.id, id, what, best: best?.id ?? null });
    return saveVectors(this.#mustParameters(), what, best?.values ?? null, copy);
  }

  /** The other shards need the copies no more. */
  saved(id: number): void {
    this.#tell({ kind: 'saved', run: this.id, id });
  }

  /**
   * A new run that begins with the parameters of another one: its optimizer, schedule, order of examples
   * and steps begin anew, as its configuration says. The averaging of statistics goes on.
   * @param source the other run's checkpoint, with tensors for all of its layout.
   * @throws DownpourError DP_CHECKPOINT_CORRUPT when a tensor is missing or has another size.
   */
  static fork(
    options: RunOptions,
    source: Pick<RunState, 'tensors' | 'parameters' | 'data' | 'facts' | 'originData'>,
    tensors: readonly NamedTensor[],
  ): Run {
    const run = new Run(options);
    // Its parameters belong to inputs that are standardised as they were.
    run.#facts = source.facts ?? null;
    // Of a fork that nobody has worked for its own is not known.
    run.#originData = source.data ?? source.originData ?? null;
    run.#place(createLayout(source.tensors ?? []));
    run.#mustParameters().adopt(source.parameters, tensors);
    run.#initialisations = 1;
    return run;
  }

  /**
   * Continues from a checkpoint as if nothing had happened: same parameters, optimizer state,
   * schedule and order of examples. What was out is given out anew, in the same order.
   * @param tensors of the first range: parts of tensors under the names of the whole ones. The other
   *   shards have theirs already, the best parameters under the number `RESTORED_BEST`.
   * @param life of the server that goes on.
   * @throws DownpourError DP_CHECKPOINT_CORRUPT when a tensor is missing or has another size.
   */
  static restore(
    state: RunState,
    tensors: readonly NamedTensor[],
    shards: RunShards | null = null,
    life = (state.life ?? 0) + 1,
  ): Run {
    const run = new Run(state.options, shards, { life });
    // Of several lives since the checkpoint each has numbers of its own: what was computed or leased in
    // one is never taken for something of another.
    const lives = Math.max(1, life - (state.life ?? life - 1));
    const { step, generation } = state;
    run.#restored = { step, generation, firstGeneration: state.firstGeneration ?? 0 };
    run.#lostBefore = state.stepsLost ?? 0;
    run.#continue(state);
    run.#generation = state.generation + lives * GENERATIONS_A_LIFE;
    run.#firstGeneration = run.#generation;
    run.#leases = state.leases && Leases.restore(state.leases, lives);
    // The result of an evaluation that was given out in a lost time is not one of now.
    run.#evaluationsGiven = state.evaluationsGiven + lives * GENERATIONS_A_LIFE;
    for (const [key, lastSequence, deeds] of state.workers) {
      Object.assign(run.#record(key), { lastSequence }, deeds && structuredClone(deeds));
    }
    if (state.tensors && state.parameters && run.hasParameters) {
      run.#place(createLayout(state.tensors));
      const parameters = run.#mustParameters();
      parameters.restore(state.parameters, tensors);
      const { exchangedSize } = parameters.layout;
      run.#captures = RESTORED_BEST;
      if (state.best) {
        const values = takeTensor(tensors, BEST, exchangedSize);
        run.#best = { ...state.best, capture: { id: RESTORED_BEST, values } };
      }
    }
    run.#restorePending();
    return run;
  }

  /** What a checkpoint says of itself. */
  #continue(state: RunState): void {
    this.#phase = state.phase;
    this.#resumePhase = state.resumePhase;
    this.#reason = state.reason;
    this.#data = state.data;
    this.#facts = state.facts ?? null;
    this.#originData = state.originData ?? null;
    this.#errorMeasure = state.errorMeasure ?? null;
    this.#step = state.step;
    this.#phaseStart = state.phaseStart;
    this.#scheduleOffset = state.scheduleOffset;
    this.#initialisations = state.initialisations;
    this.#evaluationDue = state.evaluationDue;
    this.#nextEvaluation = state.nextEvaluation;
    this.#evaluationsGiven = state.evaluationsGiven;
    this.#ending = state.ending;
    this.#secondsBefore = state.seconds;
    this.#nonFiniteInRow = state.nonFiniteInRow;
    this.#rollbacks = [...(state.rollbacks ?? [])];
    // Of an older release: its best has been good enough so far.
    this.#initialLoss = state.initialLoss === undefined ? Number.MAX_VALUE : state.initialLoss;
    this.#rateFactor = state.rateFactor ?? 1;
    this.#optimizerStart = state.optimizerStart ?? state.phaseStart;
    this.#epochAtEnd = state.epochAtEnd ?? null;
    this.#startingAnew = state.startingAnew ?? false;
    if (state.correction) this.#correction.restore(state.correction);
    this.#stoppedAt = state.stoppedAt;
    this.#target = state.target;
    this.#lastEvaluatedStep = state.lastEvaluatedStep;
    this.#pushes = { ...state.pushes };
    this.#schedule.restore(state.schedule);
    this.#earlyStopping = new EarlyStopping(
      state.options.config.earlyStopping,
      state.earlyStopping,
    );
    this.#observations = new Observations(state.observations);
    this.#test = state.test;
    this.#testedAt = state.testedAt ?? null;
  }

  /** What was asked for when the checkpoint was taken is asked for again. */
  #restorePending(): void {
    const phase = this.#phase === 'stopped' ? this.#resumePhase : this.#phase;
    if (phase === 'waiting' || this.#startingAnew) {
      if (!this.hasParameters || this.#startingAnew) this.#requestParameters();
    } else if (phase === 'refitting' && this.#initialisations === 1) {
      const retrain = this.config.earlyStopping.afterStop === 'retrain';
      if (retrain) this.#requestParameters();
    } else if (phase === 'measuring') {
      this.#evaluate('target', 'train', this.#best!.capture, this.#best!.evaluation.step);
    } else if (phase === 'testing') {
      this.#evaluateTest();
    }
    if (phase === this.#phase) this.#proceed();
  }

  // A replica.

  /** Tells all calls from now on; null: nobody. */
  follow(follower: RunFollower | null): void {
    this.#follower = follower;
  }

  /** Of the last call that told it, in the monotonic ms of whoever called. */
  get nowMs(): number {
    return this.#nowMs;
  }

  /** Of this moment; what a worker's payloads and numbers are made of is not copied. */
  replica(): RunReplica {
    const { capture, ...pending } = this.#evaluation ?? { capture: null };
    return {
      state: this.state(this.#nowMs),
      evaluationDue: this.#evaluationDue,
      leases: this.#leases?.replica() ?? null,
      robust: this.#robust.state(),
      correction: this.#correction.replica(),
      workers: [...this.#workers],
      grant: this.#grant,
      grantsGiven: this.#grantsGiven,
      evaluation: 'id' in pending ? { ...pending, isBest: capture === this.#best?.capture } : null,
      restored: this.#restored,
      lostBefore: this.#lostBefore,
      lost: [...this.#lost],
      secondsBefore: this.#secondsBefore,
      startedMs: this.#startedMs,
      nowMs: this.#nowMs,
    };
  }

  /** The live vectors that belong to `replica`, by name. */
  replicaVectors(): (readonly [name: string, values: Float32Array])[] {
    if (!this.#parameters || !this.hasParameters) return [];
    const vectors = [...this.#parameters.vectors()];
    const best = this.#best?.capture;
    if (best) vectors.push([BEST, best.values]);
    const evaluated = this.#evaluation?.capture;
    if (evaluated && evaluated.id !== best?.id) vectors.push([EVALUATED, evaluated.values]);
    return vectors;
  }

  /**
   * A run that is equal to another one, to be called alike. For a run without shards.
   * @param vectors as of `replicaVectors`; they are the run's own from now on.
   * @throws DownpourError DP_CHECKPOINT_CORRUPT when a vector has another size.
   */
  static replicate(replica: RunReplica, vectors: ReadonlyMap<string, Float32Array>): Run {
    const { state } = replica;
    const life = state.life ?? 1;
    const run = new Run(state.options, null, { life });
    run.#continue(state);
    run.#generation = state.generation;
    run.#firstGeneration = state.firstGeneration ?? 0;
    run.#restored = replica.restored;
    run.#lostBefore = replica.lostBefore;
    for (const [of, steps] of replica.lost) run.#lost.set(of, steps);
    run.#evaluationDue = replica.evaluationDue;
    run.#leases = replica.leases && Leases.replicate(replica.leases);
    run.#robust.restore(replica.robust);
    run.#correction.replicate(replica.correction);
    for (const [key, record] of replica.workers) run.#workers.set(key, { ...record });
    run.#grant = replica.grant && { ...replica.grant };
    run.#grantsGiven = replica.grantsGiven;
    run.#secondsBefore = replica.secondsBefore;
    run.#startedMs = replica.startedMs;
    run.#nowMs = replica.nowMs;
    if (!state.tensors) return run;
    run.#place(createLayout(state.tensors));
    const parameters = run.#mustParameters();
    if (state.parameters) parameters.restoreState(state.parameters);
    for (const [name] of run.hasParameters ? parameters.vectors() : []) {
      parameters.write(name, 0, vectors.get(name) ?? new Float32Array());
    }
    const captured = (name: string): Capture => {
      const values = vectors.get(name) ?? new Float32Array();
      return { id: ++run.#captures, values };
    };
    if (state.best) run.#best = { ...state.best, capture: captured(BEST) };
    if (replica.evaluation) {
      const { isBest, ...pending } = replica.evaluation;
      const capture = isBest ? run.#best!.capture : captured(EVALUATED);
      run.#evaluation = { ...pending, capture };
    }
    return run;
  }

  #mustParameters(): Parameters {
    if (!this.#parameters) throw new Error(`run ${this.id} has no parameters yet`);
    return this.#parameters;
  }

  #record(worker: string): WorkerRecord {
    let record = this.#workers.get(worker);
    if (!record) {
      record = newRecord();
      this.#workers.set(worker, record);
      this.#forgetOldWorkers(worker);
    }
    return record;
  }

  /** Of workers that have gone, the latest are remembered, so that months of coming and going cost nothing. */
  #forgetOldWorkers(newest: string): void {
    for (const [key, record] of this.#workers) {
      if (this.#workers.size <= LIMITS.workerCountMax) return;
      if (!record.attached && key !== newest) this.#workers.delete(key);
    }
  }
}

const newRecord = (): WorkerRecord => ({
  lastSequence: 0,
  attached: false,
  generation: -1,
  sentGeneration: -1,
  sentStep: -1,
  samplesDue: 0,
  pushes: emptyTally(),
  stalenessSum: 0,
  computeMsSum: 0,
  computeMsRecent: null,
  examples: 0,
});

function answer(
  { sequence }: Push,
  outcome: Acknowledgement['outcome'],
  staleness: number,
  code: ErrorCode | null = null,
  message: string | null = null,
): Acknowledgement {
  return { sequence, outcome, staleness, code, message };
}

const overflowMessage = (
  step: number,
  learningRate: number,
  norm: number | null,
  clip: number | null,
) =>
  `the update at step ${step} made the parameters overflow with learning rate ${learningRate} and gradient norm ${norm}: lower learningRate, or clip.norm (now ${clip ?? 'none'})`;

/** A payload for one worker: nobody writes to these numbers. */
const plain = (values: Float32Array) => new Snapshot(bytesOf(values), 'f32');

function sizeError(what: string, seen: number, allowed: number): DownpourError {
  return new DownpourError(
    'DP_TENSOR_SIZE',
    `the ${what} has ${seen} elements; this run's layout needs ${allowed}`,
  );
}
