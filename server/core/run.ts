import { decodeFacts, isOfOlderRelease } from '../../shared/data-facts.ts';
import { errorText } from '../../shared/errors.ts';
import { groupsOf, layoutWhile } from '../../shared/groups.ts';
import { trainsRows } from '../../shared/tables.ts';
import { attend, detach, leave, mustAgree, postpone, takeSample, tick } from './run/attendance.ts';
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
import { mustBeTestable } from './run/evaluations.ts';
import { frozenOf, takePlaces } from './run/groups.ts';
import { isBelievable, learnLost, recallLost } from './run/lives.ts';
import { openCheckpoint, openFork, openNew, openReplica } from './run/open.ts';
import { Phases } from './run/phases.ts';
import { Pushes } from './run/push.ts';
import { overflowText } from './run/reasons.ts';
import type { Components, RunFields, RunOptions, RunReplica, RunState } from './run/state.ts';
import type { RunSteps } from './run/steps.ts';
import { RunView } from './run/view.ts';
import { workFor } from './run/work.ts';
import type { RunShards } from './shard.ts';
import type { NamedTensor } from './vectors.ts';

/**
 * One training: its parameters, its clock, and every decision about them. Does no I/O, reads no
 * clock (`now` is an argument, in monotonic ms) and never waits: a push is checked and applied in
 * one synchronous stretch, so nothing can slip in between.
 *
 * Here are its calls; run/ has the rest: what a run is at one moment, what is decided from that alone, and how it goes
 * from phase to phase. What the surroundings must do about it comes out as events (`takeEvents`).
 */

const NOTHING = new Uint8Array();
const NO_EVENTS: readonly RunEvent[] = [];
const END = { kind: 'end' } as const;

export class Run extends RunView {
  readonly #fields: RunFields;
  readonly #components: Components;
  readonly #pushes: Pushes;
  readonly #phases: Phases;
  readonly #steps: RunSteps;
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
      stepped: () => this.#phases.afterStep(),
      woken: () => this.#wake(),
      corrected: (text) => void this.#events.push({ kind: 'correction', text }),
      nonFinite: (readStep, overflows) => this.#phases.nonFinite(readStep, overflows),
      diverged: (reason) => this.#phases.diverged(reason),
    });
    this.#steps = this.#pushes.steps;
    this.#phases = new Phases(this, this.inside, {
      tell: (event) => void this.#events.push(event),
      discard: () => this.#steps.discard(),
    });
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
        this.#phases.goesOn(call.now);
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
        this.#phases.failWithoutInitial();
        this.#steps.look(this.#fields.nowMs);
        break;
      case 'postpone':
        postpone(this.inside, call.ms);
        break;
      case 'tick':
        if (tick(this.inside, call.now, (text) => this.#events.push({ kind: 'late', text }))) {
          this.#wake();
        }
        this.#phases.failWithoutInitial(call.now);
        this.#steps.look(call.now);
        break;
      case 'initialised':
        return this.#initialised(call, payload);
      case 'initialRows':
        return this.#initialRows(call, payload);
      case 'evaluated':
        return this.#phases.evaluated(call);
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
        this.#phases.stop(call.reason);
        break;
      case 'test':
        mustBeTestable(this.inside);
        this.#phases.setPhase('testing', this.#fields.reason);
        this.#phases.evaluateTest();
        break;
      case 'resume':
        this.#phases.resume();
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
    const layout = layoutWhile(
      join.tensors,
      groupsOf(this.config),
      frozen,
      trainsRows(this.config),
    );
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
      if (this.hasParameters) this.#phases.begin();
      else this.#phases.requestParameters();
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
    this.#phases.goesOn(now);
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
      this.#phases.refuseInitial(worker, errorText(error));
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
    if (fields.phase === 'waiting') this.#phases.begin();
    this.#phases.goesOn(now);
    this.#wake();
    return true;
  }

  #initialRows({ worker, grant }: CallOf<'initialRows'>, payload: Uint8Array): boolean {
    const { grant: asked } = this.#fields;
    if (this.over || asked?.id !== grant || asked.worker !== worker) return false;
    try {
      this.#components.vector.beginRows(payload);
    } catch (error) {
      this.#phases.refuseInitial(worker, errorText(error));
      throw error;
    }
    return true;
  }

  /** An update that was admitted made the parameters of another shard overflow. @param generation of it. */
  #overflowed(generation: number): void {
    // Several updates may have been under way when the first was told.
    if (this.over || generation !== this.#fields.generation) return;
    const { gradientNorm } = this.#components.observations;
    this.#phases.diverged(overflowText(this.inside, this.step, this.learningRate, gradientNorm));
  }

  /**
   * A new run that begins with the parameters of another one: its optimizer, schedule, order of examples
   * and steps begin anew, as its configuration says. The averaging of statistics goes on.
   * @param source the other run's checkpoint, with tensors for all of its layout.
   * @throws DownpourError DP_CHECKPOINT_CORRUPT when a tensor is missing or has another size; DP_CONFIG_INVALID: tables
   *   cannot have the rows of the other run.
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
    run.#phases.restorePending();
    return run;
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
