/**
 * Does a run stand its workers' number? What theory says beforehand of staleness and momentum, and what the loss
 * does since they came. docs/advice.md has the sentences and the numbers.
 */

/**
 * The largest ε λ at which the updates v ← α v − ε λ θ(t − τ), θ ← θ + v of a quadratic of curvature λ come to rest, with
 * gradients that are τ steps stale: at the limit θ is a wave z = e^{iω} with (z − 1)(1 − α / z) = −ε λ z^{−τ}. Without
 * staleness it is 2 (1 + α).
 */
export function stableLimit(momentum: number, staleness: number): number {
  const turn = (w: number) =>
    w * (staleness + 0.5) + Math.atan2(momentum * Math.sin(w), 1 - momentum * Math.cos(w));
  let low = 0;
  let high = Math.PI / (2 * staleness + 1);
  for (let i = 0; i < 60; i++) {
    const middle = (low + high) / 2;
    if (turn(middle) < Math.PI / 2) low = middle;
    else high = middle;
  }
  return (
    2 * Math.sin(high / 2) * Math.hypot(1 - momentum * Math.cos(high), momentum * Math.sin(high))
  );
}

export interface WatchState {
  readonly updates: number;
  readonly firstLoss: number;
  readonly loss: number;
  readonly staleness: number;
  readonly crowd: number;
  readonly since: number;
  readonly lossBefore: number | null;
}

/** What is known besides. */
export interface WatchFacts {
  readonly momentum: number | null;
  /** By look-ahead, or the staleness of a push lowers its rate. */
  readonly isCorrected: boolean;
  /** `auto` would look ahead. */
  readonly mayCorrect: boolean;
}

/** Fewer are a pair: staleness is 1, and was never seen to matter. */
const WORKERS_MIN = 3;
/** Share of the stable rate with one worker. With momentum 0.9 it is 1/109 at staleness 3, and 1/241 at 7, where accuracy goes. */
const SHARE_MIN = 1 / 150;
/** The first loss is the mean over so many updates. */
const FIRST_UPDATES = 20;
/** Rounds of all workers since the last one came: to be sure of a loss that is too high, or stands still. */
const ROUNDS_HIGH = 5;
const ROUNDS_STILL = 30;
const UPDATES_STILL = 200;
/** Times the first loss: no training that is stable is there after `ROUNDS_HIGH`. */
const HIGH = 1.3;
/** A smaller fall, from the first loss or from that before the last worker came, is none. */
const FALL_FROM_FIRST = 0.2;
const FALL_SINCE = 0.02;
/** Below this share of the first loss a training that stands still has arrived, as far as one can tell. */
const LEARNT = 0.5;
/** With more, look-ahead keeps a run stable and loses accuracy: docs/asynchrony.md. */
const WORKERS_MEASURED = 40;

export class StalenessWatch {
  #updates = 0;
  #firstLoss = 0;
  /** Running means over about ten rounds. */
  #loss = 0;
  #staleness = 0;
  /** Workers, and the updates since their number last grew; null: that was before the first loss was known. */
  #crowd = 0;
  #since = 0;
  #lossBefore: number | null = null;

  applied(crowd: number, staleness: number, loss: number): void {
    if (crowd > this.#crowd) {
      this.#lossBefore = this.#updates > FIRST_UPDATES ? this.#loss : null;
      this.#since = 0;
    }
    this.#crowd = crowd;
    this.#since++;
    this.#updates++;
    if (this.#updates <= FIRST_UPDATES) this.#firstLoss += loss / FIRST_UPDATES;
    const weight = 1 / Math.min(this.#updates, 10 * Math.max(2, crowd));
    this.#loss += weight * (Math.min(loss, Number.MAX_VALUE / 1e6) - this.#loss);
    this.#staleness += weight * (staleness - this.#staleness);
  }

  /** For the user; null: nothing is known against it. */
  hint({ momentum, isCorrected, mayCorrect }: WatchFacts): string | null {
    const workers = this.#crowd;
    if (workers < WORKERS_MIN || this.#updates <= FIRST_UPDATES) return null;
    const stale = `gradients are ${short(this.#staleness)} steps stale`;
    const next = mayCorrect
      ? "set consistency.correction to 'auto', or lower learningRate or momentum, or use fewer workers"
      : 'lower learningRate, or use fewer workers';
    const seen = `(${short(this.#firstLoss)} at first, ${short(this.#loss)} now)`;
    const isHigh = this.#since >= ROUNDS_HIGH * workers && this.#loss > HIGH * this.#firstLoss;
    if (isHigh && this.#firstLoss > 0 && this.#staleness >= 2) {
      return `the training loss is above that of the first updates ${seen} with ${workers} workers, whose ${stale}: the updates are not stable; ${next}.`;
    }
    if (isCorrected) {
      return workers > WORKERS_MEASURED
        ? `${workers} workers are more than look-ahead was seen to keep the accuracy with (32; docs/asynchrony.md): use fewer, or more epochs.`
        : null;
    }
    if (this.#standsStill && this.#staleness >= 2) {
      return `the training loss has stood still since ${workers} workers take part ${seen}, and their ${stale}: if one worker learns faster, that is why; ${next}.`;
    }
    const { share } = this.danger(momentum);
    if (this.#since < ROUNDS_HIGH * workers || share >= SHARE_MIN) return null;
    const by = momentum ? ` and momentum ${short(momentum)}` : '';
    return `${workers} workers, whose ${stale}${by}: the largest learning rate that is stable is about 1/${Math.round(1 / share)} of one worker's; ${next}.`;
  }

  /** How much of one worker's largest stable learning rate is left. */
  danger(momentum: number | null): { readonly staleness: number; readonly share: number } {
    const of = momentum ?? 0;
    return {
      staleness: this.#staleness,
      share: stableLimit(of, this.#staleness) / stableLimit(of, 0),
    };
  }

  get #standsStill(): boolean {
    if (this.#since < Math.max(UPDATES_STILL, ROUNDS_STILL * this.#crowd)) return false;
    if (!(this.#loss > LEARNT * this.#firstLoss)) return false;
    return this.#lossBefore === null
      ? this.#loss > (1 - FALL_FROM_FIRST) * this.#firstLoss
      : this.#loss > (1 - FALL_SINCE) * this.#lossBefore;
  }

  /** Fresh parameters: another course begins. */
  reset(): void {
    this.#updates = 0;
    this.#firstLoss = 0;
    this.#loss = 0;
    this.#staleness = 0;
    this.#since = 0;
    this.#lossBefore = null;
  }

  state(): WatchState {
    return {
      ...{ updates: this.#updates, firstLoss: this.#firstLoss, loss: this.#loss },
      ...{ staleness: this.#staleness, crowd: this.#crowd, since: this.#since },
      lossBefore: this.#lossBefore,
    };
  }

  restore(state: WatchState): void {
    this.#updates = state.updates;
    this.#firstLoss = state.firstLoss;
    this.#loss = state.loss;
    this.#staleness = state.staleness;
    this.#crowd = state.crowd;
    this.#since = state.since;
    this.#lossBefore = state.lossBefore;
  }
}

const short = (value: number) => String(Number(value.toPrecision(3)));
