import type { RunConfig } from '../../../shared/config.ts';
import { DownpourError, type ErrorCode } from '../../../shared/errors.ts';
import { keepsSquares } from '../../../shared/optimizer.ts';
import type { OptimizerConfig } from '../../../shared/optimizer-config.ts';
import type { Acknowledgement, Push } from '../../../shared/protocol.ts';
import type { CompensationUse } from '../compensation.ts';
import { scaleOf } from '../consistency.ts';
import { type CorrectionPlan, limitedNorm } from '../correction.ts';
import type { Applied } from '../curves.ts';
import type { Clip } from '../fused.ts';
import type { StagedPush } from '../landing-rooms.ts';
import { clipOf } from '../outer.ts';
import { momentumAt } from '../schedule.ts';
import type { RowsUpdate } from '../shard-command.ts';
import type { StepOptions } from '../step-options.ts';
import { rowsElsewhere } from '../tables/row-parts.ts';
import {
  type AdmissionFacts,
  isOfAnotherFragment,
  judgePush,
  judgeSender,
  type Refusal,
} from './admit.ts';
import type { CallOf, PushPartsLanded } from './calls.ts';
import { learningRateOf, momentumOf, ownMomentumOf, scheduleStepOf } from './course.ts';
import { groupStepOf } from './groups.ts';
import { outerOptions, outerRateOf, pushKindOf } from './local.ts';
import { overflowText } from './reasons.ts';
import { credit, newWorker } from './roster.ts';
import { type RunInternals, secondsOf } from './state.ts';
import { RunSteps, type StepConsequences } from './steps.ts';

/**
 * The way of a push: it is judged, measured and applied in one stretch, and answered. A push makes no garbage beyond its
 * answer and what is remembered of its update.
 */

/** What follows from a push for the course of its run. */
export interface PushConsequences extends StepConsequences {
  /**
   * A loss or gradient is not finite. @param readStep of its parameters. @param overflows it is, but its square is not.
   * @returns what the worker is told.
   */
  nonFinite(readStep: number, overflows: boolean): string;
}

/**
 * A gradient of a larger norm may have a square that is infinite in float32. An optimizer that keeps it would never move
 * that parameter again, and nothing would say so.
 */
const SQUARED_MAX = 2 ** 63;
/** The same where squares are added up, as Adagrad does: a million of such gradients have a finite sum. */
const SUMMED_MAX = 2 ** 53;

/** @param squares Σ g² of the parameters. @param rowSquares the same of the rows. */
function overflow(
  { optimizer, groups = {}, tables = {}, clip }: RunConfig,
  squares: number,
  rowSquares: number,
): boolean {
  const isTooLarge = (
    sum: number,
    parts: readonly { readonly optimizer: OptimizerConfig | null }[],
  ) =>
    parts.some(({ optimizer: own }) => {
      if (own === null || !keepsSquares(own.kind)) return false;
      const most = own.kind === 'adagrad' ? SUMMED_MAX : SQUARED_MAX;
      return sum > most ** 2 && (clip.norm ?? Infinity) > most;
    });
  if (isTooLarge(squares, [{ optimizer }, ...Object.values(groups)])) return true;
  return isTooLarge(rowSquares, Object.values(tables));
}

export class Pushes {
  readonly #inside: RunInternals;
  readonly #then: PushConsequences;
  /** Facts of the push that is dealt with: one object for all pushes. */
  readonly #facts: AdmissionFacts;
  readonly steps: RunSteps;

  constructor(inside: RunInternals, then: PushConsequences) {
    const { fields } = inside;
    this.#inside = inside;
    this.#then = then;
    this.#facts = {
      ...{ config: inside.options.config, fields, isReady: false, worker: newWorker() },
      ...{ quarantine: null, problem: null, lease: null, rows: null },
      ...{ key: '', mode: inside.components.mode, workers: 0, kind: 'gradient', fragment: null },
    };
    this.steps = new RunSteps(inside, then);
  }

  /** @param payload see `RunCall`. */
  take(call: CallOf<'push'>, payload: Uint8Array): Acknowledgement {
    const { fields, components } = this.#inside;
    const acknowledgement = this.#decide(call, payload);
    const { outcome } = acknowledgement;
    fields.pushes[outcome]++;
    this.#facts.worker.pushes[outcome]++;
    if (call.others && (outcome === 'rejected' || outcome === 'duplicate')) {
      components.vector.dropParts(call.others.session, call.push.sequence);
    }
    return acknowledgement;
  }

  #decide(call: CallOf<'push'>, payload: Uint8Array): Acknowledgement {
    const { worker, push, now, room, others } = call;
    const facts = this.#facts;
    const { leases, vector, roster, robust, correction } = this.#inside.components;
    const { parameters } = vector;
    facts.key = worker;
    facts.workers = correction.crowd;
    facts.kind = pushKindOf(this.#inside);
    facts.worker = roster.of(worker);
    facts.fragment = facts.worker.fragment;
    facts.quarantine = robust.quarantine(worker);
    facts.isReady = parameters !== null && leases !== null;
    const early = judgeSender(push, facts);
    if (early) return this.#refuse(push, early, now);
    let staged: StagedPush | null = null;
    facts.problem = null;
    facts.rows = null;
    let vectorPayload = payload;
    try {
      if (vector.tables !== null || push.rows !== undefined) {
        vectorPayload = this.#stageRows(call, payload);
      }
      // One for parameters of before may have another size. It is stale, whatever it holds.
      if (push.generation === facts.fields.generation && !isOfAnotherFragment(push, facts)) {
        staged = parameters!.stage(vectorPayload, push.encoding, room, push.fragment);
        const isElastic = push.kind === 'elastic' && facts.kind === 'elastic';
        if (isElastic) staged = parameters!.elastic(staged);
      }
      const problem = others?.problem ?? null;
      if (problem !== null) facts.problem = { code: 'DP_TENSOR_SIZE', message: problem };
    } catch (error) {
      if (!(error instanceof DownpourError)) throw error;
      facts.problem = error;
    }
    facts.lease = leases!.find(push.lease, worker);
    const judgement = judgePush(push, facts);
    if (judgement.kind !== 'apply') return this.#refuse(push, judgement, now);
    return this.#apply(call, staged!, judgement.scale);
  }

  /** @returns the payload without rows. @throws DownpourError DP_ROWS_INVALID. */
  #stageRows(
    { push: { rows }, rowStepSent, others }: CallOf<'push'>,
    payload: Uint8Array,
  ): Uint8Array {
    const { tables } = this.#inside.components.vector;
    if (!tables) {
      throw new DownpourError(
        'DP_ROWS_INVALID',
        'the push has rows, and this run has no tables: push gradients of the model alone',
      );
    }
    const rest = tables.stage(payload, rows);
    const { rowStep } = tables;
    let staleness = tables.staleness();
    if (others?.rows) {
      const elsewhere = rowsElsewhere(others.rows, rows, rowStep);
      if (elsewhere.problem !== null) {
        throw new DownpourError('DP_ROWS_INVALID', elsewhere.problem);
      }
      staleness = Math.max(staleness, elsewhere.staleness);
    }
    this.#facts.rows = { rowStepSent: Math.min(rowStep, rowStepSent ?? Infinity), staleness };
    return rest;
  }

  /** Updates the rows of an admitted push. @returns false: one overflowed, and all are as before. */
  #applyRows(push: Push, rate: number, clip: Clip): boolean {
    const { tables } = this.#inside.components.vector;
    if (!tables || !push.rows) return true;
    const { consistency } = this.#inside.options.config;
    const { workers } = this.#facts;
    return tables.apply(rate, clip, (staleness) => scaleOf(consistency, staleness, workers));
  }

  /** What other shards update their rows of an admitted push by. */
  #rowsUpdate(push: Push, rate: number, clip: Clip): { readonly rows?: RowsUpdate } {
    const { components, fields } = this.#inside;
    if (!components.vector.rowParts || !push.rows) return NO_ROWS_UPDATE;
    const { workers } = this.#facts;
    return { rows: { rate, clip, workers, generation: fields.generation } };
  }

  #refuse(push: Push, judgement: Refusal, now: number): Acknowledgement {
    if (judgement.kind === 'duplicate') return answer(push, 'duplicate', 0);
    const { code, message, staleness, retry, passOn } = judgement;
    if (retry) this.#retry(now);
    if (passOn) {
      this.#inside.components.leases!.giveBack(this.#facts.lease!.id);
      this.#then.woken();
    }
    return answer(push, 'rejected', staleness, code, message);
  }

  /** The worker computes the minibatch again: its time begins anew. */
  #retry(now: number): void {
    this.#inside.components.leases!.retry(this.#facts.lease!.id, now);
  }

  /** @param scale of the learning rate. */
  #apply(call: CallOf<'push'>, staged: StagedPush, scale: number): Acknowledgement {
    const { worker, push, now, others } = call;
    const { options: of, fields, components } = this.#inside;
    const { vector, correction, robust, mode, sent } = components;
    const parameters = vector.mustParameters;
    const staleness = fields.step - push.step;
    const { momentumSchedule } = of.config;
    const { kind } = this.#facts;
    const outer = kind !== 'gradient';
    const clip = clipOf(of.config, kind);
    const limit = clip.value ?? Infinity;
    const { loss } = push;
    const step = fields.step - fields.optimizerStart + 1;
    const plan = correction.plan(worker, staleness);
    const rate = learningRateOf(this.#inside);
    const learningRate = outer
      ? outerRateOf(this.#inside, this.#facts.worker) * scale
      : rate * scale * (plan?.scale ?? 1);
    const momentum = momentumAt(momentumSchedule, scheduleStepOf(fields));
    const { tables } = vector;
    const rowSquares = tables === null ? 0 : tables.squares(limit) + squaresElsewhere(others);
    const squares = parameters.squares(staged, limit) + (others?.squares ?? 0);
    const given = Math.sqrt(squares + rowSquares);
    const overflows = given > SUMMED_MAX && !outer && overflow(of.config, squares, rowSquares);
    if (loss === null || !Number.isFinite(given) || overflows) {
      this.#retry(now);
      const message = this.#then.nonFinite(push.step, overflows);
      robust.bad(worker, message);
      return answer(push, 'rejected', staleness, 'DP_GRADIENT_NOT_FINITE', message);
    }
    const refusal = robust.refuse(worker, given, now);
    if (refusal) {
      this.#retry(now);
      const { code, message } = refusal;
      if (code === 'DP_GRADIENT_TOO_LARGE') robust.bad(worker, message);
      return answer(push, 'rejected', staleness, code, message);
    }
    const compensation = sent.isUsed ? this.#compensation(worker, push, given, learningRate) : null;
    const rowRate = rate * (plan?.scale ?? 1);
    if (mode?.collects) {
      const factor = Math.min(1, (clip.norm ?? Infinity) / given);
      if (tables !== null && !this.#applyRows(push, rowRate, { limit, factor })) {
        return this.#overflowed(push, rowRate, given, staleness, now);
      }
      const more = this.#rowsUpdate(push, rowRate, { limit, factor });
      this.#collect(call, staged, { scale, loss, norm: given, compensation, ...more });
      return answer(push, scale < 1 ? 'damped' : 'applied', staleness);
    }
    const norm = Math.min(limitedNorm(given, plan?.normMax ?? Infinity), clip.norm ?? Infinity);
    const factor = norm < given ? norm / given : 1;
    let options: StepOptions = { step, learningRate };
    if (outer) options = outerOptions(options, push.fragment);
    else if (momentum !== undefined) options = { ...options, momentum };
    if (plan?.velocity) options = { ...options, velocity: plan.velocity };
    if (compensation) options = { ...options, compensation };
    const groups = groupStepOf(this.#inside, scale * (plan?.scale ?? 1));
    if (groups) options = { ...options, groups };
    if (tables !== null && !this.#applyRows(push, rowRate, { limit, factor })) {
      return this.#overflowed(push, rowRate, norm, staleness, now);
    }
    if (!parameters.update(staged, { limit, factor }, options)) {
      if (tables !== null && push.rows) tables.undo();
      return this.#overflowed(push, learningRate, norm, staleness, now);
    }
    if (others) {
      const { sequence } = push;
      const what = { worker, sequence, clip: { limit, factor }, options };
      vector.applyParts(others, {
        generation: fields.generation,
        kindOfPush: kind,
        ...what,
        ...this.#rowsUpdate(push, rowRate, { limit, factor }),
      });
    }
    fields.step++;
    this.#counts(worker, push, staleness, loss, given);
    this.#updated(worker, plan, {
      step: fields.step,
      seconds: secondsOf(fields, now),
      loss,
      learningRate: outer ? rate : learningRate,
      momentum: momentum ?? ownMomentumOf(this.#inside),
      gradientNorm: norm,
      staleness,
      examples: this.#facts.lease!.count,
      computeMs: push.computeMs / this.#minibatches,
    });
    if (mode) {
      mode.pushed(worker, 0, now);
      this.steps.look(now);
    }
    return answer(push, scale < 1 ? 'damped' : 'applied', staleness);
  }

  /** The update is undone, and the run goes back. */
  #overflowed(
    push: Push,
    learningRate: number,
    norm: number,
    staleness: number,
    now: number,
  ): Acknowledgement {
    const { fields } = this.#inside;
    const message = overflowText(this.#inside, fields.step + 1, learningRate, norm);
    this.#retry(now);
    this.#then.diverged(message);
    return answer(push, 'rejected', staleness, 'DP_DIVERGED', message);
  }

  /** Minibatches of the lease that is dealt with. */
  get #minibatches(): number {
    return Math.ceil(this.#facts.lease!.count / this.#inside.options.config.minibatchSize);
  }

  /** A push counts: what is remembered of it. Its numbers one by one: there are thousands a second. */
  #counts(worker: string, push: Push, staleness: number, loss: number, norm: number): void {
    const { options, fields, components } = this.#inside;
    const { robust, observations, sent } = components;
    const lease = this.#facts.lease!;
    const minibatches = this.#minibatches;
    components.leases!.complete(lease);
    credit(this.#facts.worker, push, staleness, { lease, minibatches });
    fields.nonFiniteInRow = 0;
    robust.applied(worker, fields.nowMs);
    fields.initialLoss ??= loss;
    if (options.config.observe.everySteps !== null) observations.computed(push.computeMs);
    if (!sent.isUsed) return;
    sent.counted(norm);
    const news = sent.takeNews();
    if (news !== null) this.#then.corrected(news);
  }

  /** An update was made: what is remembered of it, and what is due. */
  #updated(worker: string, plan: CorrectionPlan | null, update: Applied): void {
    const { correction, observations } = this.#inside.components;
    const { gradientNorm: norm, staleness, loss } = update;
    correction.applied(worker, plan, { norm, staleness, loss });
    const news = correction.takeNews();
    if (news !== null) this.#then.corrected(news);
    observations.applied(update);
    this.#then.stepped();
  }

  /** Keeps an admitted push for a step of several. */
  #collect(
    { worker, push, now, others = null }: CallOf<'push'>,
    staged: StagedPush,
    it: {
      readonly scale: number;
      readonly loss: number;
      readonly norm: number;
      readonly compensation: CompensationUse | null;
      readonly rows?: RowsUpdate;
    },
  ): void {
    const { options, fields, components } = this.#inside;
    const { vector, mode, collection } = components;
    const { scale, loss, norm, compensation, rows } = it;
    const lease = this.#facts.lease!;
    const staleness = fields.step - push.step;
    const share = lease.count / options.config.minibatchSize;
    const { sequence } = push;
    const computeMs = push.computeMs / this.#minibatches;
    const { kind: kindOfPush } = this.#facts;
    const weight = { scale, share };
    vector.collect(staged, others, {
      ...{ worker, sequence, kindOfPush, weight, compensation },
      ...(rows && { rows }),
    });
    this.#counts(worker, push, staleness, loss, norm);
    collection.add({ worker, lease, loss, staleness, norm, share, computeMs });
    mode!.pushed(worker, collection.count, now);
    this.steps.look(now);
  }

  /** How the gradient of a push is put right for the way of the parameters since its worker read them; null: not. */
  #compensation(
    worker: string,
    { step, generation }: Push,
    norm: number,
    rate: number,
  ): CompensationUse | null {
    const { fields, components } = this.#inside;
    const read = { step, generation, staleness: fields.step - step };
    const momentum = momentumOf(this.#inside) ?? 0;
    const size = components.vector.layout!.trainableSize;
    return components.sent.use(worker, read, { norm, rate, momentum, size });
  }
}

const NO_ROWS_UPDATE = {};

/** Σ g² of the rows that are on other shards. */
function squaresElsewhere(others: PushPartsLanded | null | undefined): number {
  return others?.rows?.reduce((sum, { squares }) => sum + squares, 0) ?? 0;
}

function answer(
  { sequence }: Push,
  outcome: Acknowledgement['outcome'],
  staleness: number,
  code: ErrorCode | null = null,
  message: string | null = null,
): Acknowledgement {
  return { sequence, outcome, staleness, code, message };
}
