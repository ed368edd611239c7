import { decodeFacts, isOfOlderRelease } from '../../shared/data-facts.ts';
import { DownpourError } from '../../shared/errors.ts';
import { groupsOf, layoutWhile, mayThaw } from '../../shared/groups.ts';
import type { LeasePart, Phase } from '../../shared/protocol.ts';
import type { Evaluation } from '../../shared/rest.ts';
import {
  attend,
  detach,
  leave,
  mustAgree,
  pause,
  postpone,
  takeBackAll,
  takeSample,
  tick,
} from './run/attendance.ts';
import {
  type AnswerOf,
  type Assignment,
  type CallAnswer,
  type CallOf,
  hasPayload,
  type RunCall,
  type RunEvent,
  type RunFollower,
  type Seen,
  toFollow,
} from './run/calls.ts';
import {
  endingOf,
  epochOf,
  evaluateEveryOf,
  evaluationStepOf,
  isTraining,
  leasesOf,
  validates,
} from './run/course.ts';
import {
  beginEvaluation,
  capturesInUse,
  evaluationFrom,
  giveBack,
  isGood,
  mayRollBack,
  mustBeOfAll,
  mustBeTestable,
  validationCount,
} from './run/evaluations.ts';
import { fitGroups, frozenOf, takePlaces } from './run/groups.ts';
import { isBelievable, learnLost, recallLost } from './run/lives.ts';
import { openCheckpoint, openFork, openNew, openReplica } from './run/open.ts';
import { Pushes } from './run/push.ts';
import { nonFiniteText, nothingFiniteText, overflowText } from './run/reasons.ts';
import type {
  Components,
  PendingEvaluation,
  RunFields,
  RunOptions,
  RunReplica,
  RunState,
} from './run/state.ts';
import type { RunSteps } from './run/steps.ts';
import { RunView } from './run/view.ts';
import { workFor } from './run/work.ts';
import { createSchedule } from './schedule.ts';
import type { RunShards } from './shard.ts';
import type { NamedTensor } from './vectors.ts';

/**
 * One training: its parameters, its clock, and every decision about them. Does no I/O, reads no
 * clock (`now` is an argument, in monotonic ms) and never waits: a push is checked and applied in
 * one synchronous stretch, so nothing can slip in between.
 *
 * Here are its phases, and what divergence does to them; run/ has the rest: what calls there are, what a run is at one
 * moment, and what is decided from that alone. What the surroundings must do about it comes out as events (`takeEvents`).
 */

const NOTHING = new Uint8Array();
const NO_EVENTS: readonly RunEvent[] = [];
const END = { kind: 'end' } as const;

export class Run extends RunView {
  readonly #fields: RunFields;
  readonly #components: Components;
  readonly #pushes: Pushes;
  readonly #steps: RunSteps;
  /** Some group is frozen up to a step. */
  readonly #mayThaw: boolean;
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
    super(openNew(options, shards, life, life - since));
    const { fields, components } = this.inside;
    this.#fields = fields;
    this.#components = components;
    this.#pushes = new Pushes(this.inside, {
      stepped: () => this.#afterStep(),
      woken: () => this.#wake(),
      corrected: (text) => void this.#events.push({ kind: 'correction', text }),
      nonFinite: (readStep) => this.#nonFinite(readStep),
      diverged: (reason) => this.#diverged(reason),
    });
    this.#steps = this.#pushes.steps;
    this.#mayThaw = mayThaw(options.config);
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

  #carryOut(call: RunCall, payload: Uint8Array): CallAnswer | undefined {
    switch (call.call) {
      case 'push':
        this.#goesOn(call.now);
        return this.#pushes.take(call, payload);
      case 'assign':
        return this.#assign(call);
      case 'join':
        this.#join(call, payload);
        break;
      case 'detach':
        if (detach(this.inside, call.worker, call.now)) this.#wake();
        break;
      case 'leave':
        if (leave(this.inside, call.worker)) this.#wake();
        this.#steps.look(this.#fields.nowMs);
        break;
      case 'postpone':
        postpone(this.inside, call.ms);
        break;
      case 'tick':
        if (tick(this.inside, call.now)) this.#wake();
        this.#steps.look(call.now);
        break;
      case 'initialised':
        return this.#initialised(call, payload);
      case 'evaluated':
        return this.#evaluated(call);
      case 'sampled':
        return takeSample(this.inside, call.worker, call.observed, call.now);
      case 'overflowed':
        this.#overflowed(call.generation);
        break;
      case 'learnLost':
        this.#learnLost(call.seen);
        break;
      case 'recallLost':
        recallLost(this.#fields, call);
        break;
      case 'stop':
        this.#stop(call.reason);
        break;
      case 'test':
        mustBeTestable(this.inside);
        this.#setPhase('testing', this.#fields.reason);
        this.#evaluateTest();
        break;
      case 'resume':
        this.#resume();
        break;
      case 'label':
        this.#fields.labels = call.labels;
        break;
    }
    return undefined;
  }

  /** What happened since the last call. */
  takeEvents(): readonly RunEvent[] {
    const events = this.#events;
    if (events.length === 0) return NO_EVENTS;
    this.#events = [];
    return events;
  }

  #wake(): void {
    this.#events.push({ kind: 'wake' });
  }

  // Workers come and go.

  #join({ worker, join, now }: CallOf<'join'>, payload: Uint8Array): void {
    const { experimentHash, data, errorMeasure } = join;
    const fields = this.#fields;
    const { vector } = this.#components;
    this.mustBeTrusted(worker);
    const frozen = vector.parameters ? vector.frozen : frozenOf(this.inside);
    const layout = layoutWhile(join.tensors, groupsOf(this.config), frozen);
    const facts = join.facts ? decodeFacts(payload) : null;
    mustAgree(this.inside, { experimentHash, layout, data, facts });
    if (join.seen && isBelievable(fields, join.seen)) this.#learnLost(join.seen);
    // What a worker of this release knows takes the place of what an older one had told.
    if (!fields.data || isOfOlderRelease(fields.data, data)) fields.data = data;
    fields.facts ??= facts;
    fields.errorMeasure ??= errorMeasure ?? null;
    if (!vector.parameters) {
      takePlaces(this.inside, vector.place(join.tensors, frozenOf(this.inside)));
      vector.createParts();
    }
    if (fields.phase === 'waiting' && !fields.grant) {
      if (this.hasParameters) this.#begin();
      else this.#requestParameters();
    }
    attend(this.inside, worker, now);
    // Those that wait for more workers look again.
    if (this.config.workersMin > 1) this.#wake();
  }

  #learnLost(seen: Seen): void {
    const news = learnLost(this.#fields, seen);
    if (news) this.#events.push(news);
  }

  #assign({ worker, ahead, now, to }: CallOf<'assign'>): Assignment {
    // Whoever asks is known from now on.
    this.#components.roster.of(worker);
    if (this.over) return END;
    this.#goesOn(now);
    const work = workFor(this.inside, worker, ahead, now, to ?? null);
    // One for whom there is nothing, or that evaluates, may have been the last that a step waited for.
    if (work.kind !== 'work' || work.evaluation) this.#steps.look(now);
    return work;
  }

  #initialised(
    { worker, grant, now, others = null }: CallOf<'initialised'>,
    payload: Uint8Array,
  ): boolean {
    const fields = this.#fields;
    const { vector, correction, rateWatch } = this.#components;
    if (this.over || fields.grant?.id !== grant || fields.grant.worker !== worker) return false;
    let values: Float32Array;
    try {
      values = vector.readInitial(payload, worker, others);
    } catch (error) {
      // Another one is asked for them, one that waits.
      fields.grant.worker = null;
      this.#wake();
      throw error;
    }
    vector.initialise(values, others);
    correction.reset();
    rateWatch.reset();
    this.#steps.discard();
    fields.grant = null;
    fields.initialLoss = null;
    if (!fields.startingAnew) fields.initialisations++;
    fields.startingAnew = false;
    fields.generation++;
    if (fields.phase === 'waiting') this.#begin();
    this.#goesOn(now);
    this.#wake();
    return true;
  }

  /** An update that was admitted made the parameters of another shard overflow. @param generation of it. */
  #overflowed(generation: number): void {
    // Several updates may have been under way when the first was told.
    if (this.over || generation !== this.#fields.generation) return;
    const { gradientNorm } = this.#components.observations;
    this.#diverged(overflowText(this.inside, this.step, this.learningRate, gradientNorm));
  }

  // Divergence.

  #nonFinite(readStep: number): string {
    const fields = this.#fields;
    fields.nonFiniteInRow++;
    const { nonFiniteMax } = this.config;
    const atStart = fields.initialLoss === null;
    const message = nonFiniteText(this.inside, readStep);
    if (fields.nonFiniteInRow < nonFiniteMax) return message;
    const last = fields.rollbacks.at(-1);
    // The same parameters once more would give the same.
    const isAgain = atStart && last?.to === null && last.step === fields.step;
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
    const fields = this.#fields;
    const { rollbacksMax, factor } = this.config.divergence;
    if (fields.rollbacks.length >= rollbacksMax) {
      const after = rollbacksMax === 0 ? '' : `, after ${rollbacksMax} rollbacks`;
      this.#fail(`${reason}${after}`);
      return;
    }
    fields.nonFiniteInRow = 0;
    fields.rateFactor *= factor;
    fields.optimizerStart = fields.step;
    this.#components.observations.restartSmoothing();
    const { afterStop } = this.config.earlyStopping;
    const isAnew = fields.phase === 'refitting' && afterStop === 'retrain';
    const best = isAnew || !isGood(fields.best, fields) ? null : fields.best;
    if (!best && !isAnew && this.options.fork) {
      this.#fail(`${reason}; a fork has no initial parameters of its own to go back to`);
      return;
    }
    if (best) {
      this.#setParameters(best.capture);
      this.#resetOptimizer();
    } else {
      fields.startingAnew = true;
      this.#steps.discard();
      fields.generation++;
      this.#requestParameters();
    }
    const to = best?.evaluation.step ?? null;
    const rollback = { step: fields.step, to, learningRate: this.learningRate, reason };
    fields.rollbacks = [...fields.rollbacks, rollback];
    this.#events.push({ kind: 'rollback', rollback }, { kind: 'wake' });
  }

  // Evaluations.

  /** What is due after an applied push: an evaluation, the end of a phase. */
  #afterStep(): void {
    const fields = this.#fields;
    if (this.#mayThaw && fitGroups(this.inside)) this.#wake();
    fields.ending = endingOf(this.inside) ?? fields.ending;
    const at = evaluationStepOf(this.inside);
    if (at >= fields.nextEvaluation) {
      const every = evaluateEveryOf(this.inside);
      fields.nextEvaluation = (Math.floor(at / every) + 1) * every;
      fields.evaluationDue = validates(this.inside);
    }
    this.#proceed();
  }

  /** Starts the evaluation that is due, or ends the phase, unless one is under way. */
  #proceed(): void {
    const fields = this.#fields;
    if (fields.evaluation || !isTraining(fields)) return;
    const { ending, lastEvaluatedStep, step } = fields;
    if (ending !== null && lastEvaluatedStep < step && validates(this.inside)) {
      fields.evaluationDue = true;
    }
    if (fields.evaluationDue) {
      fields.evaluationDue = false;
      this.#evaluate('validation', 'validation', this.#capture('evaluated'));
    } else if (ending !== null) {
      if (fields.phase === 'training') this.#stopTraining(ending);
      else this.#conclude(ending);
    }
  }

  #capture(what: 'evaluated' | 'exchanged'): number {
    const id = ++this.#fields.captures;
    this.#components.vector.capture(id, what);
    return id;
  }

  /** @param step that the captured parameters belong to. */
  #evaluate(
    purpose: PendingEvaluation['purpose'],
    part: LeasePart,
    capture: number,
    step?: number,
  ): void {
    beginEvaluation(this.inside, purpose, part, capture, step);
    this.#wake();
  }

  /** The parameters that were restored belong to the best step, refitted ones to the last. */
  #evaluateTest(): void {
    const { best, step } = this.#fields;
    const isRestored = this.config.earlyStopping.afterStop === 'restore';
    const of = isRestored ? best!.evaluation.step : step;
    this.#evaluate('test', 'test', this.#capture('exchanged'), of);
  }

  #evaluated({ worker, result, now, at }: CallOf<'evaluated'>): boolean {
    const fields = this.#fields;
    const pending = fields.evaluation;
    if (this.over || pending?.id !== result.evaluation || pending.worker !== worker) return false;
    if (this.quarantine(worker) !== null) return false;
    try {
      mustBeOfAll(this.inside, pending, result);
    } catch (error) {
      giveBack(fields, worker);
      this.#wake();
      throw error;
    }
    this.#goesOn(now);
    fields.evaluation = null;
    const evaluation = evaluationFrom(this.inside, pending, result, now);
    this.#components.observations.evaluated(evaluation);
    this.#events.push({ kind: 'evaluated', evaluation }, { kind: 'wake' });
    if (pending.purpose === 'test') {
      fields.test = evaluation;
      fields.testedAt = at ?? null;
      this.#finish();
    } else if (pending.purpose === 'target') this.#continueFromBest(evaluation);
    else this.#validated(pending, evaluation);
    this.#components.vector.forget(pending.capture, capturesInUse(fields));
    return true;
  }

  #validated(pending: PendingEvaluation, evaluation: Evaluation): void {
    const fields = this.#fields;
    const { schedule, earlyStopping, observations, vector } = this.#components;
    const { loss, error } = evaluation;
    fields.lastEvaluatedStep = pending.step;
    if (fields.phase === 'refitting') {
      const { target } = fields;
      if (loss === null || target === null || loss >= target) this.#proceed();
      else {
        this.#conclude(
          `validation loss ${loss} fell below the training loss at the stop ${target}`,
        );
      }
      return;
    }
    const { metric, patience } = this.config.earlyStopping;
    const value = (metric === 'loss' ? loss : error) ?? Number.NaN;
    if (!Number.isFinite(value) && mayRollBack(this.inside, pending)) {
      this.#diverged(`the validation ${metric} at step ${pending.step} is NaN or infinite`);
      return;
    }
    schedule.observe(value);
    const verdict = earlyStopping.observe(value, pending.step);
    if (verdict.improved) {
      const worse = fields.best;
      const { phaseStep, capture } = pending;
      fields.best = { evaluation, phaseStep, schedule: schedule.state(), capture };
      if (worse) vector.forget(worse.capture, capturesInUse(fields));
      this.#events.push({ kind: 'best' });
    }
    const count = validationCount(observations);
    if (verdict.stop) {
      this.#stopTraining(`validation ${metric} has not improved for ${patience} evaluations`);
    } else if (fields.ending === null && this.config.pauseAfter?.includes(count)) {
      this.#stop(
        `paused after ${count} evaluations, as pauseAfter says; \`downpour resume\` goes on`,
      );
    } else this.#proceed();
  }

  // From phase to phase.

  /** There are parameters, and it is known what the data are. */
  #begin(): void {
    const { epochsMax: epochs } = this.config;
    this.#startPhase('training', { part: 'train', epochs, reason: 'training' });
  }

  #startPhase(
    phase: 'training' | 'refitting',
    options: { part: LeasePart; epochs: number | null; reason: string },
  ): void {
    const fields = this.#fields;
    this.#steps.discard();
    fields.phaseStart = fields.step;
    fields.optimizerStart = fields.step;
    fields.ending = null;
    fields.evaluationDue = false;
    takeBackAll(this.inside);
    this.#components.leases = leasesOf(this.inside, options.part, options.epochs);
    fields.nextEvaluation = evaluateEveryOf(this.inside);
    fitGroups(this.inside);
    this.#setPhase(phase, options.reason);
  }

  /** Training is over: what `afterStop` asks for follows. */
  #stopTraining(reason: string): void {
    const fields = this.#fields;
    fields.stoppedAt = fields.step;
    const { best } = fields;
    if (!best) {
      this.#fail(nothingFiniteText(this.inside, reason));
      return;
    }
    const { afterStop } = this.config.earlyStopping;
    fields.ending = reason;
    if (afterStop === 'restore') {
      this.#setParameters(best.capture);
      this.#conclude(reason);
    } else if (afterStop === 'continue') {
      this.#setPhase('measuring', `${reason}; measuring the training loss at the best step`);
      this.#evaluate('target', 'train', best.capture, best.evaluation.step);
    } else {
      fields.scheduleOffset = 0;
      this.#components.schedule = createSchedule(this.config.schedule, this.config);
      this.#components.observations.restartSmoothing();
      this.#startPhase('refitting', {
        part: 'trainAndValidation',
        epochs: null,
        reason: `${reason}; retraining on all data for ${best.phaseStep} steps (Algorithm 7.2)`,
      });
      this.#requestParameters();
    }
  }

  /** Algorithm 7.3: from the best parameters, on all data, down to the training loss there. */
  #continueFromBest({ loss }: Evaluation): void {
    const fields = this.#fields;
    const best = fields.best!;
    if (loss === null) {
      this.#fail('the training loss at the best step is not finite');
      return;
    }
    fields.target = loss;
    this.#setParameters(best.capture);
    this.#resetOptimizer();
    this.#components.schedule.restore(best.schedule);
    fields.scheduleOffset = best.phaseStep;
    this.#startPhase('refitting', {
      part: 'trainAndValidation',
      epochs: null,
      reason: `continuing on all data until the validation loss is below ${loss} (Algorithm 7.3)`,
    });
  }

  #setParameters(by: number | 'evaluated'): void {
    this.#steps.discard();
    this.#components.vector.replace(by);
    this.#fields.generation++;
  }

  #resetOptimizer(): void {
    this.#components.vector.resetOptimizer();
    this.#components.correction.reset();
    this.#components.rateWatch.reset();
  }

  /** The parameters are the final ones; the test part is looked at once. */
  #conclude(reason: string): void {
    const fields = this.#fields;
    if (fields.phase === 'refitting') this.#setParameters('evaluated');
    fields.ending = reason;
    if (this.config.testAtEnd && fields.data!.testCount > 0) {
      this.#setPhase('testing', reason);
      this.#evaluateTest();
    } else {
      fields.reason = reason;
      this.#finish();
    }
  }

  #finish(): void {
    this.#fields.epochAtEnd = epochOf(this.inside);
    this.#components.leases = null;
    this.#setPhase('finished', this.#fields.reason);
  }

  #fail(reason: string): void {
    pause(this.inside);
    this.#setPhase('failed', reason);
  }

  /** Asks a worker for fresh parameters. */
  #requestParameters(): void {
    this.#fields.grant = { id: ++this.#fields.grantsGiven, worker: null };
    this.#wake();
  }

  #setPhase(to: Phase, reason: string): void {
    const fields = this.#fields;
    const from = fields.phase;
    fields.phase = to;
    fields.reason = reason;
    if (this.over) {
      fields.seconds = this.seconds(fields.nowMs);
      fields.startedMs = null;
    }
    this.#events.push({ kind: 'phase', from, to }, { kind: 'wake' });
  }

  #stop(reason: string): void {
    const fields = this.#fields;
    if (this.over) return;
    const { evaluation } = fields;
    if (fields.phase === 'testing' && !this.#components.leases) {
      // It had finished before somebody asked for the test: it is as it was.
      fields.evaluation = null;
      if (evaluation) this.#components.vector.forget(evaluation.capture, capturesInUse(fields));
      this.#setPhase('finished', fields.reason);
      return;
    }
    fields.resumePhase = fields.phase;
    pause(this.inside);
    this.#setPhase('stopped', reason);
  }

  #resume(): void {
    const { phase, reason, resumePhase } = this.#fields;
    if (phase === 'failed') {
      throw new DownpourError(
        'DP_RUN_FAILED',
        `run ${this.id} has failed: ${reason}; start a new one with another configuration`,
      );
    }
    if (phase === 'finished') {
      throw new DownpourError('DP_RUN_ENDED', `run ${this.id} is finished: ${reason}`);
    }
    if (phase !== 'stopped') return;
    this.#components.robust.release();
    this.#setPhase(resumePhase, 'resumed');
  }

  /** Something was done for it: its time runs, if it is not over. */
  #goesOn(now: number): void {
    const fields = this.#fields;
    fields.nowMs = now;
    if (!this.over && this.hasParameters) fields.startedMs ??= now;
  }

  /**
   * A new run that begins with the parameters of another one: its optimizer, schedule, order of examples
   * and steps begin anew, as its configuration says. The averaging of statistics goes on.
   * @param source the other run's checkpoint, with tensors for all of its layout.
   * @throws DownpourError DP_CHECKPOINT_CORRUPT when a tensor is missing or has another size.
   */
  static fork(
    options: RunOptions,
    source: Parameters<typeof openFork>[1],
    tensors: readonly NamedTensor[],
  ): Run {
    const run = new Run(options);
    openFork(run.inside, source, tensors);
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
    openCheckpoint(run.inside, state, tensors);
    run.#restorePending();
    return run;
  }

  /** What was asked for when the checkpoint was taken is asked for again. */
  #restorePending(): void {
    const fields = this.#fields;
    const { best } = fields;
    const phase = fields.phase === 'stopped' ? fields.resumePhase : fields.phase;
    if (phase === 'waiting' || fields.startingAnew) {
      if (!this.hasParameters || fields.startingAnew) this.#requestParameters();
    } else if (phase === 'refitting' && fields.initialisations === 1) {
      const retrain = this.config.earlyStopping.afterStop === 'retrain';
      if (retrain) this.#requestParameters();
    } else if (phase === 'measuring') {
      this.#evaluate('target', 'train', best!.capture, best!.evaluation.step);
    } else if (phase === 'testing') {
      this.#evaluateTest();
    }
    if (phase === fields.phase) this.#proceed();
  }

  /** Tells all calls from now on; null: nobody. */
  follow(follower: RunFollower | null): void {
    this.#follower = follower;
  }

  /**
   * A run that is equal to another one, to be called alike. For a run without shards.
   * @param vectors as of `replicaVectors`; they are the run's own from now on.
   * @throws DownpourError DP_CHECKPOINT_CORRUPT when a vector has another size.
   */
  static replicate(replica: RunReplica, vectors: ReadonlyMap<string, Float32Array>): Run {
    const run = new Run(replica.options);
    openReplica(run.inside, replica, vectors);
    return run;
  }
}
