import type { Encoding } from '../../../shared/compression.ts';
import type { RunConfig } from '../../../shared/config.ts';
import { type DataFacts, forkNote } from '../../../shared/data-facts.ts';
import { DownpourError } from '../../../shared/errors.ts';
import { groupsOf, mayFreeze } from '../../../shared/groups.ts';
import type { Labels } from '../../../shared/labels.ts';
import type { Layout } from '../../../shared/layout.ts';
import { isOver } from '../../../shared/phases.ts';
import type { DataSummary, Phase } from '../../../shared/protocol.ts';
import type {
  Evaluation,
  Metrics,
  Observations,
  RunDetail,
  RunSummary,
} from '../../../shared/rest.ts';
import type { EarlyStoppingState } from '../early-stopping.ts';
import type { LandingRoom } from '../landing-rooms.ts';
import type { SaveKind } from '../shard-command.ts';
import type { RoomFor } from '../tables/row-copy.ts';
import type { RowParts } from '../tables/row-parts.ts';
import type { RunTables } from '../tables/run-tables.ts';
import type { TablesCopy } from '../tables/tables-copy.ts';
import { troubleText } from '../trouble.ts';
import { type CopyVector, type NamedTensor, slice } from '../vectors.ts';
import type { LostNote, Seen } from './calls.ts';
import {
  epochOf,
  evaluationSecondsOf,
  learningRateOf,
  momentumOf,
  phaseStepOf,
  stepsMaxOf,
  workersMissingOf,
} from './course.ts';
import { capturesInUse } from './evaluations.ts';
import { frozenOf, toldGroups } from './groups.ts';
import { evaluates, examplesMeasured } from './handed.ts';
import { runProgress, stepsBehind } from './lives.ts';
import {
  type RunInternals,
  type RunOptions,
  type RunReplica,
  type RunState,
  replicaOf,
  runStateOf,
  secondsOf,
  stepsLost,
} from './state.ts';
import type { Vector } from './vector.ts';

/** What is told of a run: to lists, to pages, to the command line, to checkpoints. Looking changes nothing. */

/** In the detail of a run. */
const CLASSES_TOLD = 100;

/** A run, for those who look. */
export class RunView {
  readonly options: RunOptions;
  protected readonly inside: RunInternals;

  readonly #mayFreeze: boolean;

  constructor(inside: RunInternals) {
    this.options = inside.options;
    this.inside = inside;
    this.#mayFreeze = mayFreeze(groupsOf(inside.options.config));
  }

  get id(): string {
    return this.options.id;
  }

  get config(): RunConfig {
    return this.options.config;
  }

  get phase(): Phase {
    return this.inside.fields.phase;
  }

  /** What users say of it. */
  get labels(): Labels {
    return this.inside.fields.labels;
  }

  get reason(): string {
    return this.inside.fields.reason;
  }

  get step(): number {
    return this.inside.fields.step;
  }

  get generation(): number {
    return this.inside.fields.generation;
  }

  get epoch(): number {
    return epochOf(this.inside);
  }

  /** Learning rate of the next update, before damping. */
  get learningRate(): number {
    return learningRateOf(this.inside);
  }

  /** Training time, over all processes that have held the run, while it was not over. */
  seconds(now: number): number {
    return secondsOf(this.inside.fields, now);
  }

  /** When the test part was looked at, ISO 8601; null: not yet, or by an older release. */
  get testedAt(): string | null {
    return this.inside.fields.testedAt;
  }

  get layout(): Layout | null {
    return this.inside.components.vector.layout;
  }

  /** Names of the groups that are frozen now; null: none ever is. */
  get frozenGroups(): readonly string[] | null {
    if (!this.#mayFreeze) return null;
    const { vector } = this.inside.components;
    return vector.layout ? vector.frozen : frozenOf(this.inside);
  }

  /** Layout of the first range, which lands here and is sent from here. */
  get rangeLayout(): Layout | null {
    return this.inside.components.vector.parameters?.layout ?? null;
  }

  /** Into how many ranges the vector is cut. */
  get rangeCount(): number {
    return this.inside.components.vector.ranges.length;
  }

  /** Where the vector lies, and what the shards that have it are to do beside the decisions of the run. */
  get vector(): Pick<
    Vector,
    'ranges' | 'dropParts' | 'grantParts' | 'revokeParts' | 'removeParts' | 'forgetSaved'
  > {
    return this.inside.components.vector;
  }

  /** Room for a push's payload, as of `Parameters.land`. */
  land(byteLength: number, encoding: Encoding | null): LandingRoom | null {
    return this.inside.components.vector.land(byteLength, encoding);
  }

  /** Life of the server. */
  get life(): number {
    return this.inside.fields.life;
  }

  /** Updates that were applied and are gone, with crashes of the server, as far as is known. */
  get stepsLost(): number {
    return stepsLost(this.inside.fields);
  }

  /** Lost steps that this life has not made up for yet. */
  get stepsBehind(): number {
    return stepsBehind(this.inside.fields);
  }

  /** How far it has come, and all that it knows of lost steps: what the next life must not forget. */
  get progress(): Seen & LostNote {
    return runProgress(this.inside.fields);
  }

  /** It has parameters. */
  get hasParameters(): boolean {
    return this.inside.fields.initialisations > 0;
  }

  /** Nothing more will happen unless somebody resumes it. */
  get over(): boolean {
    return isOver(this.inside.fields.phase);
  }

  /** Its mode waits for this moment, monotonic ms: call `tick` then. Null: it does not. */
  get deadline(): number | null {
    return this.inside.components.mode?.deadline ?? null;
  }

  /** Pushes that wait for their update. */
  get collected(): number {
    return this.inside.components.collection.count;
  }

  /** Its time runs: what is told of it changes without a call. */
  get moving(): boolean {
    return this.inside.fields.startedMs !== null;
  }

  /** The best evaluation so far. */
  get best(): Evaluation | null {
    return this.inside.fields.best?.evaluation ?? null;
  }

  get earlyStoppingState(): EarlyStoppingState & {
    stoppedAt: number | null;
    target: number | null;
  } {
    const { stoppedAt, target } = this.inside.fields;
    return { ...this.inside.components.earlyStopping.state, stoppedAt, target };
  }

  /** What the worker's data must be standardised by; null: by themselves. */
  get givenFacts(): DataFacts | null {
    return this.options.fork ? this.inside.fields.facts : null;
  }

  get data(): DataSummary | null {
    return this.inside.fields.data;
  }

  /** Null: no worker has told. */
  get facts(): DataFacts | null {
    return this.inside.fields.facts;
  }

  /** Why a worker's pushes are not taken any more; null: they are. */
  quarantine(worker: string): string | null {
    return this.inside.components.robust.quarantine(worker);
  }

  /** @throws DownpourError DP_QUARANTINED. */
  mustBeTrusted(worker: string): void {
    const reason = this.quarantine(worker);
    if (reason === null) return;
    throw new DownpourError(
      'DP_QUARANTINED',
      `run ${this.id} rejects everything from this worker: ${reason}; fix the worker, then stop and resume the run`,
    );
  }

  /** It was asked for the initial parameters. */
  awaitsInitial(worker: string): boolean {
    return this.inside.fields.grant?.worker === worker;
  }

  /** Tables of rows; null: the run has none. */
  get tables(): RunTables | null {
    return this.inside.components.vector.tables;
  }

  /** Rows on other shards; null: all are here. */
  get rowParts(): RowParts | null {
    return this.inside.components.vector.rowParts;
  }

  /** A worker is sent rows as they are now. This is no call of the run, since a standby sends nothing. */
  sendsRows(worker: string): void {
    const { roster, vector } = this.inside.components;
    roster.sendsRows(worker, vector.tables!.rowStep);
  }

  /** Row step of the newest rows that a worker was sent, on any of its connections; 0: none. */
  rowStepSent(worker: string): number {
    return this.inside.components.roster.rowStepSent(worker);
  }

  /** A worker has a minibatch to compute, or evaluates: it needs rows. */
  isAtWork(worker: string): boolean {
    const { leases } = this.inside.components;
    const { evaluation } = this.inside.fields;
    return evaluation?.worker === worker || (leases?.heldBy(worker).length ?? 0) > 0;
  }

  /** Examples that the evaluation under way measures; 0: there is none. */
  get evaluationExamples(): number {
    const { evaluation } = this.inside.fields;
    return evaluation ? examplesMeasured(this.inside, evaluation.part) : 0;
  }

  /** The capture that a worker evaluates; null: it does not evaluate this. */
  evaluatedCapture(worker: string, id: number | null): number | null {
    const { evaluation } = this.inside.fields;
    return evaluation?.id === id && evaluates(evaluation, worker) ? evaluation.capture : null;
  }

  /** A worker may push this minibatch. */
  isLeased(lease: number, worker: string): boolean {
    return this.inside.components.leases?.find(lease, worker) != null;
  }

  /** Before the first update: so many more must come before it begins. */
  get workersMissing(): number {
    return workersMissingOf(this.inside);
  }

  summary(now: number): Omit<RunSummary, 'checkpoint' | 'unwritten'> {
    return summaryOf(this.inside, now);
  }

  detail(now: number): Omit<RunDetail, 'checkpoint' | 'unwritten'> {
    return detailOf(this.inside, now);
  }

  /** @param pointsMax of each curve, at least 2. */
  metrics(pointsMax?: number): Metrics {
    return this.inside.components.observations.metrics(pointsMax);
  }

  get observed(): Observations {
    const { everySteps } = this.config.observe;
    return { everySteps, ...this.inside.components.observations.observed() };
  }

  /** Between two evaluations at the mean speed so far, s; null: unknown. */
  evaluationSeconds(now: number): number | null {
    return evaluationSecondsOf(this.inside, this.seconds(now));
  }

  /** What one worker did for this run. */
  workerTally(worker: string): ReturnType<typeof workerTallyOf> {
    return workerTallyOf(this.inside, worker);
  }

  // Checkpoints.

  /** The JSON half of a checkpoint at this step. */
  state(now: number): RunState {
    return runStateOf(this.inside, now);
  }

  /** The other half: see `Vector.tensors`. */
  tensors(copy: CopyVector = slice): NamedTensor[] {
    return this.hasParameters ? this.inside.components.vector.tensors(this.bestCapture, copy) : [];
  }

  /** The best parameters by their names, for a checkpoint of their own. */
  bestTensors(copy: CopyVector = slice): NamedTensor[] {
    return this.inside.components.vector.named(this.bestCapture, copy);
  }

  /** The parameters by their names. */
  finalTensors(copy: CopyVector = slice): NamedTensor[] {
    return this.inside.components.vector.named(null, copy);
  }

  /** Has all shards keep copies of this moment for a checkpoint: see `Vector.save`. */
  save(
    id: number,
    what: SaveKind,
    { changes = false, copy = slice }: { changes?: boolean; copy?: CopyVector } = {},
  ): Map<string, Float32Array> {
    return this.inside.components.vector.save(id, what, this.bestCapture, changes, copy);
  }

  /** Begins to copy the rows of this moment for a checkpoint: see `Vector.copyRows`. */
  copyRows(
    what: SaveKind,
    how: { readonly changes: boolean; readonly room: RoomFor },
  ): TablesCopy | null {
    return this.inside.components.vector.copyRows(what, this.bestCapture, how);
  }

  /** As `tensors`, `bestTensors` or `finalTensors`, without the rows of tables. */
  withoutRows(what: SaveKind, copy: CopyVector): NamedTensor[] {
    const { vector } = this.inside.components;
    if (what === 'last') return vector.withoutRows(this.bestCapture, copy);
    return vector.namedWithoutRows(what === 'best' ? this.bestCapture : null, copy);
  }

  protected get bestCapture(): number | null {
    return this.inside.fields.best?.capture ?? null;
  }

  /** Time of the last call that told it, in the caller's monotonic ms. */
  get nowMs(): number {
    return this.inside.fields.nowMs;
  }

  /** The run at this moment. */
  replica(): RunReplica {
    return replicaOf(this.inside);
  }

  /** The live vectors that belong to `replica`, by name. */
  replicaVectors(): (readonly [name: string, values: Float32Array])[] {
    const { vector } = this.inside.components;
    const inUse = capturesInUse(this.inside.fields);
    return this.hasParameters ? vector.vectors(inUse) : vector.rowVectors(inUse);
  }
}

function summaryOf(
  inside: RunInternals,
  now: number,
): Omit<RunSummary, 'checkpoint' | 'unwritten'> {
  const { options, fields, components } = inside;
  const { observations, vector } = components;
  const seconds = secondsOf(fields, now);
  const speed = isOver(fields.phase) ? null : observations.speed(seconds);
  const stepsMax = stepsMaxOf(inside);
  const { enabled, metric, patience, afterStop } = options.config.earlyStopping;
  const { edits: _, ...labels } = fields.labels;
  return {
    id: options.id,
    ...labels,
    experiment: options.experiment,
    study: options.study ?? null,
    phase: fields.phase,
    reason: fields.reason,
    createdAt: options.createdAt,
    step: fields.step,
    epoch: epochOf(inside),
    examples: observations.examples,
    stepsMax,
    workers: components.roster.attached,
    parameters: vector.layout?.trainableSize ?? null,
    learningRate: learningRateOf(inside),
    momentum: momentumOf(inside),
    examplesPerSecond: speed?.examplesPerSecond ?? null,
    examplesPerSecondMean: isOver(fields.phase) ? observations.meanSpeed() : null,
    secondsLeft:
      stepsMax === null || !speed || speed.stepsPerSecond === 0
        ? null
        : Math.max(0, stepsMax - fields.step) / speed.stepsPerSecond,
    seconds,
    trainingLoss: observations.trainingLoss,
    sparkline: observations.sparkline(),
    validation: observations.evaluations.findLast((e) => e.part === 'validation') ?? null,
    best: fields.best?.evaluation ?? null,
    test: fields.test,
    testedAt: fields.testedAt,
    earlyStopping: {
      enabled,
      metric,
      patience,
      patienceLeft: components.earlyStopping.patienceLeft,
      afterStop,
      stoppedAt: fields.stoppedAt,
      target: fields.target,
      refitSteps: fields.phase === 'refitting' ? phaseStepOf(fields) : null,
    },
    staleness: observations.staleness(),
    gradientNorm: observations.gradientNorm,
    ...(vector.tables && { tables: (vector.rowParts ?? vector.tables).facts() }),
    correction: components.correction.told,
    collecting: collectingOf(inside, now),
    hint: hintOf(inside),
    pushes: { ...fields.pushes },
    rollbacks: [...fields.rollbacks],
    stepsLost: stepsLost(fields),
    data: fields.data,
    dataNote: forkNote(options.fork, fields.originData, fields.data),
    errorMeasure: fields.errorMeasure,
  };
}

/** The update that a mode collects pushes for; null: each push is an update, or the run is over. */
function collectingOf(
  { fields, components }: RunInternals,
  now: number,
): NonNullable<RunSummary['collecting']> | null {
  const { mode, collection } = components;
  if (!mode?.collects || isOver(fields.phase)) return null;
  const { deadline } = mode;
  return {
    pushes: collection.count,
    of: mode.wanted,
    secondsLeft: deadline === null ? null : Math.max(0, deadline - now) / 1_000,
  };
}

function hintOf(inside: RunInternals): string | null {
  const { options, fields, components } = inside;
  const { trouble } = components.observations;
  // A refit begins anew or goes on from the best: neither is judged by the course so far.
  const { afterStop } = options.config.earlyStopping;
  const judged = fields.phase === 'training' || afterStop === 'restore';
  const many = fields.phase === 'training' ? components.correction.hint(momentumOf(inside)) : null;
  if (many !== null) return many;
  if (!trouble || !judged) {
    return fields.phase === 'training' ? components.rateWatch.hint(learningRateOf(inside)) : null;
  }
  return troubleText(trouble, (components.vector.layout?.statisticsSize ?? 0) > 0);
}

function detailOf(inside: RunInternals, now: number): Omit<RunDetail, 'checkpoint' | 'unwritten'> {
  const { options, fields, components } = inside;
  return {
    ...summaryOf(inside, now),
    experimentHash: options.experimentHash,
    bundle: options.bundle ?? null,
    config: options.config,
    layoutHash: components.vector.layout?.hash ?? null,
    groups: toldGroups(inside),
    inputShape: fields.facts?.inputs.shape ?? null,
    classes: fields.facts?.classes?.slice(0, CLASSES_TOLD) ?? null,
  };
}

/** What one worker did for this run, and does. */
function workerTallyOf({ fields, components }: RunInternals, worker: string) {
  const { pushes, ...means } = components.roster.deedsOf(worker);
  return {
    leases: components.leases?.heldBy(worker).length ?? 0,
    evaluating: fields.evaluation?.worker === worker,
    pushes,
    ...means,
  };
}
