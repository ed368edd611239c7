import type { RunConfig } from '../../../shared/config.ts';
import { collects } from '../../../shared/consistency.ts';

/**
 * Notices that updates of several pushes are made at a learning rate for updates of one. Two numbers of the run decide.
 * The mean of k gradients is less noisy than each: E‖gᵢ‖² / ‖mean‖² is the factor by which the best rate grows, 1 where
 * gradients agree and k where they are all noise (McCandlish et al. 2018, arXiv:1812.06162, ε = ε_max / (1 + B_noise / B)).
 * And the loss falls by as much as the rate alone predicts, so that curvature does not limit the rate yet. Nothing of it
 * is kept: after a restart of the server it looks again.
 */

/** Updates of one look; the first ones of a run are left out, since the loss falls fast there at any rate. */
const LOOK_UPDATES = 40;
const FIRST_UPDATES = 10;
/** The loss at the beginning and at the end of a look is the mean of this many updates. */
const ENDS = 10;
/** On a parabola a step of twice the rate is still stable and faster, if the loss falls by this share of the linear prediction. */
const LINEAR_SHARE = 0.75;
/** A smaller factor is not worth a hint. */
const FACTOR_MIN = 2;

export interface CollectedUpdate {
  /** Pushes in it. */
  readonly pushes: number;
  /** Mean of their squared L2 norms. */
  readonly squares: number;
  /** Squared L2 norm of their mean. */
  readonly squareOfMean: number;
  /** Mean loss of their minibatches, at the parameters before the update. */
  readonly loss: number;
  readonly learningRate: number;
  /** Momentum of the optimizer; null: it has none. */
  readonly momentum: number | null;
}

/** Whether the rate alone predicts what an update does. Adaptive optimizers scale it by gradients of their own. */
const isPlain = ({ optimizer, consistency, clip }: RunConfig) =>
  ['sgd', 'momentum', 'nesterov'].includes(optimizer.kind) &&
  collects(consistency) &&
  (consistency.aggregate ?? 'mean') === 'mean' &&
  consistency.damping === 'none' &&
  ['auto', 'none'].includes(consistency.correction ?? 'none') &&
  clip.norm === null &&
  clip.value === null;

export class RateWatch {
  readonly #looks: boolean;
  #updates = 0;
  #first = 0;
  #last = 0;
  #predicted = 0;
  #squares = 0;
  #ofMeans = 0;
  #pushes = 0;
  /** By which the rate may grow, of the last look; null: nothing speaks for it. */
  #factor: number | null = null;
  /** Pushes in an update of that look. */
  #mean = 0;

  constructor(config: RunConfig) {
    this.#looks = isPlain(config);
  }

  updated(update: CollectedUpdate): void {
    const { pushes, squares, squareOfMean, loss, learningRate, momentum } = update;
    if (!this.#looks || pushes < 2) return;
    this.#updates++;
    const at = this.#updates - FIRST_UPDATES;
    if (at <= 0) return;
    if (at <= ENDS) this.#first += loss / ENDS;
    if (at > LOOK_UPDATES - ENDS) this.#last += loss / ENDS;
    // From the middle of the first updates to that of the last ones.
    if (at > ENDS / 2 && at <= LOOK_UPDATES - ENDS / 2) {
      // Without the noise of the mean: E‖mean‖² = ‖G‖² + σ²/k and E‖gᵢ‖² = ‖G‖² + σ².
      const signal = Math.max(0, (pushes * squareOfMean - squares) / (pushes - 1));
      this.#predicted += (learningRate / (1 - (momentum ?? 0))) * signal;
    }
    this.#squares += squares;
    this.#ofMeans += squareOfMean;
    this.#pushes += pushes;
    if (at < LOOK_UPDATES) return;
    const fallen = this.#first - this.#last;
    const factor = this.#squares / Math.max(this.#ofMeans, Number.MIN_VALUE);
    const isLinear = this.#predicted > 0 && fallen >= LINEAR_SHARE * this.#predicted;
    this.#factor = isLinear && factor >= FACTOR_MIN ? factor : null;
    this.#mean = Math.round(this.#pushes / LOOK_UPDATES);
    this.#begin(FIRST_UPDATES);
  }

  /** Fresh parameters: nothing is known of them. */
  reset(): void {
    this.#factor = null;
    this.#begin(0);
  }

  #begin(updates: number): void {
    this.#updates = updates;
    this.#first = 0;
    this.#last = 0;
    this.#predicted = 0;
    this.#squares = 0;
    this.#ofMeans = 0;
    this.#pushes = 0;
  }

  /** What to try; null: nothing speaks for a higher rate. */
  hint(learningRate: number): string | null {
    if (this.#factor === null) return null;
    const times = Math.min(this.#factor, this.#mean);
    const to = Number((times * learningRate).toPrecision(2));
    return `each update is the mean of ${this.#mean} pushes, whose gradients are mostly noise, and the loss falls as slowly as the learning rate allows: the rate is that of one worker. Try learningRate ${to} (now ${Number(learningRate.toPrecision(3))}), with schedule.warmupSteps if the first updates diverge`;
  }
}
