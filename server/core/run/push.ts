import { DownpourError, type ErrorCode } from '../../../shared/errors.ts';
import type { Acknowledgement, Push } from '../../../shared/protocol.ts';
import { limitedNorm, type Plan } from '../correction.ts';
import type { StagedPush } from '../landing-rooms.ts';
import type { Applied } from '../observations.ts';
import type { StepOptions } from '../optimizer.ts';
import { momentumAt } from '../schedule.ts';
import { type Facts, judge, judgeSender, type Refusal } from './admit.ts';
import type { CallOf } from './calls.ts';
import { learningRateOf, ownMomentumOf, scheduleStepOf } from './course.ts';
import { overflowText } from './reasons.ts';
import { credit, newWorker } from './roster.ts';
import { type Inside, secondsOf } from './state.ts';

/**
 * The way of a push: it is judged, measured and applied in one stretch, and answered. A push makes no garbage beyond its
 * answer and what is remembered of its update.
 */

/** What follows from a push for the course of its run. */
export interface Consequences {
  /** An update was made. */
  stepped(): void;
  /** What is done about the number of workers has changed. */
  corrected(text: string): void;
  /** A loss or gradient is not finite. @param readStep of its parameters. @returns what the worker is told. */
  nonFinite(readStep: number): string;
  diverged(reason: string): void;
}

export class Pushes {
  readonly #inside: Inside;
  readonly #then: Consequences;
  /** Of the push that is dealt with: one object for all of them. */
  readonly #facts: Facts;

  constructor(inside: Inside, then: Consequences) {
    const { fields } = inside;
    this.#inside = inside;
    this.#then = then;
    this.#facts = {
      ...{ config: inside.options.config, fields, isReady: false, worker: newWorker() },
      ...{ quarantine: null, problem: null, lease: null },
    };
  }

  /** @param payload see `RunCall`. */
  take(call: CallOf<'push'>, payload: Uint8Array): Acknowledgement {
    const { fields, parts } = this.#inside;
    const acknowledgement = this.#decide(call, payload);
    const { outcome } = acknowledgement;
    fields.pushes[outcome]++;
    this.#facts.worker.pushes[outcome]++;
    if (call.others && (outcome === 'rejected' || outcome === 'duplicate')) {
      parts.vector.dropParts(call.others.session, call.push.sequence);
    }
    return acknowledgement;
  }

  #decide(call: CallOf<'push'>, payload: Uint8Array): Acknowledgement {
    const { worker, push, now, others } = call;
    const facts = this.#facts;
    const { leases, vector, roster, robust } = this.#inside.parts;
    const { parameters } = vector;
    facts.worker = roster.of(worker);
    facts.quarantine = robust.quarantine(worker);
    facts.isReady = parameters !== null && leases !== null;
    const early = judgeSender(push, facts);
    if (early) return this.#refuse(push, early, now);
    let staged: StagedPush | null = null;
    facts.problem = null;
    try {
      staged = parameters!.stage(payload, push.encoding);
      const problem = others?.problem ?? null;
      if (problem !== null) facts.problem = { code: 'DP_TENSOR_SIZE', message: problem };
    } catch (error) {
      if (!(error instanceof DownpourError)) throw error;
      facts.problem = error;
    }
    facts.lease = leases!.find(push.lease, worker);
    const judgement = judge(push, facts);
    if (judgement.kind !== 'apply') return this.#refuse(push, judgement, now);
    return this.#apply(call, staged!, judgement.scale);
  }

  #refuse(push: Push, judgement: Refusal, now: number): Acknowledgement {
    if (judgement.kind === 'duplicate') return answer(push, 'duplicate', 0);
    const { code, message, staleness, retry } = judgement;
    if (retry) this.#retry(now);
    return answer(push, 'rejected', staleness, code, message);
  }

  /** The worker computes the minibatch again: its time begins anew. */
  #retry(now: number): void {
    this.#inside.parts.leases!.retry(this.#facts.lease!.id, now);
  }

  /** @param scale of the learning rate. */
  #apply(
    { worker, push, now, others }: CallOf<'push'>,
    staged: StagedPush,
    scale: number,
  ): Acknowledgement {
    const { options: of, fields, parts } = this.#inside;
    const { vector, correction, robust } = parts;
    const parameters = vector.mustParameters;
    const staleness = fields.step - push.step;
    const { clip, momentumSchedule } = of.config;
    const limit = clip.value ?? Infinity;
    const { loss } = push;
    const step = fields.step - fields.optimizerStart + 1;
    const plan = correction.plan(worker, staleness);
    const learningRate = learningRateOf(this.#inside) * scale * (plan?.scale ?? 1);
    const momentum = momentumAt(momentumSchedule, scheduleStepOf(fields));
    const options: StepOptions = {
      ...{ step, learningRate },
      ...(momentum !== undefined && { momentum }),
      ...(plan?.velocity && { velocity: plan.velocity }),
    };
    const given = Math.sqrt(parameters.squares(staged, limit) + (others?.squares ?? 0));
    if (loss === null || !Number.isFinite(given)) {
      this.#retry(now);
      const message = this.#then.nonFinite(push.step);
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
    const norm = Math.min(limitedNorm(given, plan?.normMax ?? Infinity), clip.norm ?? Infinity);
    const factor = norm < given ? norm / given : 1;
    if (!parameters.update(staged, { limit, factor }, options)) {
      const message = overflowText(this.#inside, fields.step + 1, learningRate, norm);
      this.#retry(now);
      this.#then.diverged(message);
      return answer(push, 'rejected', staleness, 'DP_DIVERGED', message);
    }
    if (others) {
      const { sequence } = push;
      const what = { worker, sequence, clip: { limit, factor }, options };
      vector.applyParts(others, { generation: fields.generation, ...what });
    }
    fields.step++;
    this.#applied(worker, push, plan, {
      step: fields.step,
      seconds: secondsOf(fields, now),
      loss,
      learningRate,
      momentum: momentum ?? ownMomentumOf(this.#inside),
      gradientNorm: norm,
      staleness,
      examples: this.#facts.lease!.count,
    });
    return answer(push, scale < 1 ? 'damped' : 'applied', staleness);
  }

  /** An update was made: what is remembered of it, and what is due. */
  #applied(worker: string, push: Push, plan: Plan | null, update: Applied): void {
    const { options, fields, parts } = this.#inside;
    const { robust, correction, observations } = parts;
    const { gradientNorm: norm, staleness, loss } = update;
    const lease = this.#facts.lease!;
    parts.leases!.complete(lease.id);
    credit(this.#facts.worker, push, staleness, lease);
    fields.nonFiniteInRow = 0;
    robust.applied(worker, fields.nowMs);
    correction.applied(worker, plan, { norm, staleness, loss });
    const news = correction.takeNews();
    if (news !== null) this.#then.corrected(news);
    fields.initialLoss ??= loss;
    observations.applied(update);
    if (options.config.observe.everySteps !== null) observations.computed(push.computeMs);
    this.#then.stepped();
  }
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
