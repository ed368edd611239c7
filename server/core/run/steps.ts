import { clipOf } from '../outer.ts';
import { momentumAt } from '../schedule.ts';
import type { StepOptions } from '../step-options.ts';
import { isTraining, learningRateOf, ownMomentumOf, scheduleStepOf } from './course.ts';
import { groupStepOf } from './groups.ts';
import { fragmentOfStep, outerOptions, outerRateOf, pushKindOf } from './local.ts';
import { overflowText } from './reasons.ts';
import { type RunInternals, secondsOf } from './state.ts';

/** Steps of several pushes, and the gate at which workers wait for each other. Who has to wait is decided in modes/. */

/** What follows for the course of the run. */
export interface StepConsequences {
  /** An update was made. */
  stepped(): void;
  /** What is done about the number of workers has changed. */
  corrected(text: string): void;
  diverged(reason: string): void;
  /** Workers that had nothing to do may have something now. */
  woken(): void;
}

export class RunSteps {
  readonly #inside: RunInternals;
  readonly #then: StepConsequences;

  constructor(inside: RunInternals, then: StepConsequences) {
    this.#inside = inside;
    this.#then = then;
  }

  /** Something has happened that the mode may have waited for: a step is made, or the gate opens. */
  look(now: number): void {
    const { fields, components } = this.#inside;
    const { mode, collection, leases } = components;
    if (!mode) return;
    const { count } = collection;
    if (count > 0 && isTraining(fields) && !fields.grant && fields.ending === null) {
      // What is left at the end of all minibatches is a step of fewer.
      if (mode.isComplete(count, now) || leases!.exhausted) this.#combine(now);
    }
    if (mode.takeOpened()) this.#then.woken();
  }

  /** Makes one update of the pushes that were collected. */
  #combine(now: number): void {
    const { options: of, fields, components } = this.#inside;
    const { vector, mode, collection, correction, observations, rateWatch } = components;
    const parameters = vector.mustParameters;
    const { shares, examples, loss, staleness, norm: normOfEach, last: worker } = collection;
    const { count: pushes, squares } = collection;
    const computeMs = collection.computeMs(fields.step);
    const { consistency, momentumSchedule } = of.config;
    fields.nowMs = now;
    const kind = pushKindOf(this.#inside);
    const outer = kind !== 'gradient';
    const clip = clipOf(of.config, kind);
    const rate = learningRateOf(this.#inside);
    const learningRate = outer ? outerRateOf(this.#inside, null) : rate;
    const momentum = momentumAt(momentumSchedule, scheduleStepOf(fields));
    let options: StepOptions = { step: fields.step - fields.optimizerStart + 1, learningRate };
    const fragment = (outer ? fragmentOfStep(this.#inside) : null) ?? undefined;
    if (outer) options = outerOptions(options, fragment);
    else if (momentum !== undefined) options = { ...options, momentum };
    const groups = groupStepOf(this.#inside, 1);
    if (groups) options = { ...options, groups };
    const faulty = consistency.faultyMax ?? 1;
    const limit = clip.value ?? Infinity;
    const staged = parameters.combine(shares, faulty, fragment);
    const own = Math.sqrt(parameters.squares(staged, limit));
    // That of the mean is known where all of it is; else that of each push, which it does not exceed.
    const given = vector.ranges.length > 1 ? normOfEach : own;
    const norm = Math.min(given, clip.norm ?? Infinity);
    const factor = norm < given ? norm / given : 1;
    mode!.stepped();
    if (!Number.isFinite(own) || !parameters.update(staged, { limit, factor }, options)) {
      // The other shards have theirs still.
      vector.discard();
      this.#giveBack();
      this.#then.diverged(overflowText(this.#inside, fields.step + 1, learningRate, norm));
      return;
    }
    const what = { shares, faulty, clip: { limit, factor }, options };
    vector.combineParts({ generation: fields.generation, ...what });
    collection.take();
    fields.step++;
    correction.applied(worker!, null, { norm, staleness, loss });
    const news = correction.takeNews();
    if (news !== null) this.#then.corrected(news);
    const used = momentum ?? ownMomentumOf(this.#inside);
    if (vector.ranges.length === 1 && !outer) {
      rateWatch.updated({
        ...{ pushes, squares, squareOfMean: own ** 2, loss, learningRate, momentum: used },
      });
    }
    observations.applied({
      step: fields.step,
      seconds: secondsOf(fields, now),
      loss,
      learningRate: rate,
      momentum: used,
      gradientNorm: norm,
      staleness,
      examples,
      ...(computeMs === undefined ? {} : { computeMs }),
    });
    this.#then.stepped();
  }

  /** The pushes that were collected are of no more use: their minibatches are computed again. */
  discard(): void {
    const { vector, mode, collection } = this.#inside.components;
    if (collection.count === 0) return;
    vector.discard();
    mode!.stepped();
    this.#giveBack();
  }

  #giveBack(): void {
    const { collection, leases } = this.#inside.components;
    for (const { lease } of collection.take()) leases?.undo(lease);
    this.#then.woken();
  }
}
