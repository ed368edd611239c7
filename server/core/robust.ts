import type { RunConfig } from '../../shared/config.ts';
import type { ErrorCode } from '../../shared/errors.ts';
import { medianOf } from '../../shared/quantile.ts';

/**
 * What keeps single workers from spoiling a run by broken or poisoned gradients: a bound on the norm of a
 * push, a cap on one worker's share of the updates, and quarantine for those that send bad ones again and
 * again. Workers count by name and token: what else tells them apart is theirs to choose.
 */

/** Why a push is not taken. */
export interface PushProblem {
  readonly code: ErrorCode;
  readonly message: string;
}

/** Pushes that the median and the shares are taken over. */
export const ROBUST_WINDOW = 100;
/** Names of bad senders that are remembered: who chooses ever new ones is to cost no more. The oldest is forgotten. */
export const NAMES_MAX = 1_000;
/** Before so many norms are known, their median says little. */
export const NORMS_MIN = 20;

const NONE: RunConfig['robust'] = {
  normMax: null,
  normMedianMax: null,
  shareMax: null,
  quarantineAfter: null,
};

/** What the pushes of one worker were like. */
interface WorkerConduct {
  /** Bad pushes since its last good one. */
  bad: number;
  /** A push of another worker was applied since the first of them: it is not the run that is bad. */
  othersWell: boolean;
}

/** All that it remembers. */
export interface RobustState {
  readonly norms: readonly number[];
  readonly applied: readonly string[];
  readonly lastAppliedAt: readonly (readonly [string, number])[];
  readonly records: readonly (readonly [string, Readonly<WorkerConduct>])[];
  readonly quarantined: readonly (readonly [string, string])[];
}

export class Robust {
  readonly #config: RunConfig['robust'];
  readonly #leaseMs: number;
  /** Norms of the last finite gradients, those too large among them: if all grow, the median follows. */
  readonly #norms: number[] = [];
  /** Who the last applied pushes were from. */
  readonly #applied: string[] = [];
  readonly #lastAppliedAt = new Map<string, number>();
  readonly #records = new Map<string, WorkerConduct>();
  readonly #quarantined = new Map<string, string>();

  constructor(config: Pick<RunConfig, 'robust' | 'leaseSeconds'>) {
    // Checkpoints of older releases have none.
    this.#config = (config.robust as RunConfig['robust'] | undefined) ?? NONE;
    this.#leaseMs = config.leaseSeconds * 1000;
  }

  state(): RobustState {
    return {
      norms: [...this.#norms],
      applied: [...this.#applied],
      lastAppliedAt: [...this.#lastAppliedAt],
      records: [...this.#records].map(([name, record]) => [name, { ...record }]),
      quarantined: [...this.#quarantined],
    };
  }

  /** To one that is new. */
  restore(state: RobustState): void {
    this.#norms.push(...state.norms);
    this.#applied.push(...state.applied);
    for (const [name, at] of state.lastAppliedAt) this.#lastAppliedAt.set(name, at);
    for (const [name, record] of state.records) this.#records.set(name, { ...record });
    for (const [name, why] of state.quarantined) this.#quarantined.set(name, why);
  }

  /** Why this worker's pushes are not taken any more; null: they are. */
  quarantine(worker: string): string | null {
    if (this.#quarantined.size === 0) return null;
    return this.#quarantined.get(nameOf(worker)) ?? null;
  }

  /** Those that were shut out may try again. */
  release(): void {
    this.#quarantined.clear();
    this.#records.clear();
  }

  /**
   * Whether a push may not be applied, for its size or since its worker has had more than its share.
   * @param norm finite, before clipping. Call once a push.
   * @param now monotonic ms.
   */
  refuse(worker: string, norm: number, now: number): PushProblem | null {
    const tooLarge = this.#tooLarge(norm);
    if (this.#config.normMedianMax !== null) push(this.#norms, norm);
    if (tooLarge !== null) return { code: 'DP_GRADIENT_TOO_LARGE', message: tooLarge };
    const { shareMax } = this.#config;
    return shareMax === null ? null : this.#beyondShare(nameOf(worker), shareMax, now);
  }

  #beyondShare(name: string, shareMax: number, now: number): PushProblem | null {
    let pushing = 1;
    for (const [other, at] of this.#lastAppliedAt) {
      if (other !== name && now - at <= this.#leaseMs) pushing++;
    }
    if (pushing === 1) return null;
    // Those that would be in the window with this one. Shares that do not add up to 1 would end all
    // training: one of `pushing` workers is always within its part.
    const others = this.#applied.slice(1 - ROBUST_WINDOW);
    const own = others.filter((other) => other === name).length;
    const most = Math.ceil(ROBUST_WINDOW * Math.max(shareMax, 1 / pushing));
    if (own < most) return null;
    return {
      code: 'DP_PUSH_SHARE',
      message: `${own} of the last ${others.length} updates were this worker's; robust.shareMax ${shareMax} allows it ${most} of ${ROBUST_WINDOW} while ${pushing} workers push: compute on`,
    };
  }

  /** It has left: the others' shares are larger. */
  left(worker: string): void {
    this.#lastAppliedAt.delete(nameOf(worker));
  }

  #tooLarge(norm: number): string | null {
    const { normMax, normMedianMax } = this.#config;
    if (normMax !== null && norm > normMax) {
      return `the gradient's norm is ${norm}; robust.normMax allows ${normMax}`;
    }
    if (normMedianMax === null || this.#norms.length < NORMS_MIN) return null;
    const median = medianOf(this.#norms);
    if (norm <= normMedianMax * median) return null;
    return `the gradient's norm is ${norm}; robust.normMedianMax allows ${normMedianMax} times the median ${median} of the last ${this.#norms.length}`;
  }

  applied(worker: string, now: number): void {
    const { shareMax, quarantineAfter } = this.#config;
    if (shareMax === null && quarantineAfter === null) return;
    const name = nameOf(worker);
    if (shareMax !== null) push(this.#applied, name);
    this.#lastAppliedAt.delete(name);
    this.#lastAppliedAt.set(name, now);
    // Names are the workers' choice: only those of the window matter.
    if (this.#lastAppliedAt.size > ROBUST_WINDOW) {
      this.#lastAppliedAt.delete(this.#lastAppliedAt.keys().next().value!);
    }
    this.#records.delete(name);
    for (const record of this.#records.values()) record.othersWell = true;
  }

  /**
   * A push was not finite or too large.
   * @returns why its worker is in quarantine from now on; null: it is not.
   */
  bad(worker: string, what: string): string | null {
    const { quarantineAfter } = this.#config;
    if (quarantineAfter === null) return null;
    const name = nameOf(worker);
    const record = this.#records.get(name) ?? { bad: 0, othersWell: false };
    record.bad++;
    this.#records.delete(name);
    this.#records.set(name, record);
    if (this.#records.size > NAMES_MAX) {
      this.#records.delete(this.#records.keys().next().value!);
    }
    if (record.bad < quarantineAfter || !record.othersWell) return null;
    const reason = `${record.bad} bad pushes in a row, while pushes of other workers were applied; the last: ${what}`;
    this.#quarantined.set(name, reason);
    if (this.#quarantined.size > NAMES_MAX) {
      this.#quarantined.delete(this.#quarantined.keys().next().value!);
    }
    this.#records.delete(name);
    return reason;
  }
}

/**
 * A worker's key is its name, its incarnation, which is new with each start of its process, and what tells whose token
 * it has. A name counts for one token: what another one's worker does under it is not held against this one.
 */
function nameOf(worker: string): string {
  // For each push: `split` takes twice as long.
  const end = worker.indexOf('/');
  if (end === -1) return worker;
  const token = worker.indexOf('/', end + 1);
  return token === -1 ? worker.slice(0, end) : worker.slice(0, end) + worker.slice(token);
}

function push<T>(window: T[], value: T): void {
  window.push(value);
  if (window.length > ROBUST_WINDOW) window.shift();
}
