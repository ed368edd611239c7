import type { RunConfig } from '../../shared/config.ts';
import { collects, hasWorkerVelocity } from '../../shared/consistency.ts';
import { localOf } from '../../shared/local-steps.ts';
import type { VelocityUse } from '../../shared/optimizer.ts';
import type { CorrectionFacts as Told } from '../../shared/rest.ts';
import { hasMomentum } from './group-rules.ts';
import { StalenessWatch, type WatchState } from './staleness-watch.ts';

/**
 * What a run does about its workers' number, chosen while it trains: docs/decisions/0014-many-workers.md has the
 * measurements behind each constant. Pure: who came and went, what was applied, and out comes how to apply the
 * next push.
 */

/** How a push is to be applied. */
export interface CorrectionPlan {
  /** The learning rate is multiplied by it. */
  readonly scale: number;
  /** The largest L2 norm of its gradient; Infinity: any. */
  readonly normMax: number;
  /** Null: as without workers of their own. */
  readonly velocity: VelocityUse | null;
}

export interface CorrectionState {
  readonly on: boolean;
  /** Whose velocity each is, by slot from 1. */
  readonly velocities: readonly (readonly [slot: number, owners: readonly string[]])[];
  readonly freed: readonly number[];
  readonly heir: number | null;
  readonly firstNorm: number;
  readonly norm: number;
  readonly norms: number;
  readonly told: string | null;
  readonly watch: WatchState;
}

/** With what a standby needs besides. */
export interface CorrectionReplica extends CorrectionState {
  readonly present: readonly string[];
  readonly away: readonly (readonly [worker: string, since: number | null])[];
  readonly quiet: number;
}

/** Look-ahead begins with so many workers; one alone ends it. */
const WORKERS_AHEAD = 3;
/** From so many on, the norm of gradients is limited. */
const WORKERS_LIMITED = 8;
/**
 * What all workers together push while one computes moves the parameters no further than the first gradients of so
 * many would: a region of trust for a round, whose size is the run's own. Once gradients are smaller it limits nothing.
 */
const WORKERS_TRUSTED = 16;
/** The first gradients: so many, and one of each worker. */
const FIRST_PUSHES = 16;
/** Where gradients grow as a run learns, the limit follows: so many times their mean over so many of each worker. */
const NORM_GROWTH = 1.25;
const NORM_ROUNDS = 10;
/** A worker that is away for longer has gone, and its velocity with it. */
const AWAY_MS = 5_000;

/** Whose velocity is zeros. */
const NOBODY = -1;

type CorrectionKind = 'none' | 'auto' | 'lookahead';

export class Correction {
  readonly #kind: CorrectionKind;
  readonly #limits: boolean;
  /** `auto` would have something to do. */
  readonly #able: boolean;
  /** Each worker has its own velocity, and pushes what look-ahead makes of it. */
  readonly #onWorkers: boolean;
  /** The staleness of a push lowers its rate, as configured. */
  readonly #damped: boolean;
  readonly #watch = new StalenessWatch();
  /** For so many velocities there is room. */
  #count = 0;
  readonly #present = new Set<string>();
  /** Those whose connection is lost, and since when; null: since before this life of the server. */
  readonly #away = new Map<string, number | null>();
  #on = false;
  /** Whose velocity each is, by slot. */
  readonly #slots = new Map<number, Set<string>>();
  readonly #slotOf = new Map<string, number>();
  #freed: number[] = [];
  /** The slot that the next velocity to begin goes on from; null: it begins with zeros, and the common one stays. */
  #heir: number | null = null;
  /** The mean norm of the first gradients, the running mean of those that were applied, and how many there were. */
  #firstNorm = 0;
  #norm = 0;
  #norms = 0;
  /** Pushes since a worker came or went. */
  #quiet = 0;
  #told: string | null = null;

  constructor({
    optimizer,
    consistency,
    clip,
    local,
    groups,
  }: Pick<RunConfig, 'optimizer' | 'consistency' | 'clip' | 'local' | 'groups'>) {
    // Absent in runs of older releases, which go on as they began.
    const { correction, damping, stalenessMax } = consistency as Partial<RunConfig['consistency']>;
    const own = damping !== 'none' || stalenessMax !== null;
    this.#damped =
      damping !== 'none' || !['auto', 'none', 'lookahead', undefined].includes(correction);
    const mayLookAhead = correction === 'lookahead' || (correction === 'auto' && !own);
    // With local steps a push is no gradient, and workers have the momentum.
    const isLocal = localOf({ local, consistency }) !== null;
    const wanted = mayLookAhead && !collects(consistency) && !isLocal;
    this.#onWorkers = hasWorkerVelocity(consistency);
    this.#able = hasMomentum({ optimizer, groups }) && !isLocal;
    this.#kind = wanted && this.#able ? (correction as CorrectionKind) : 'none';
    this.#limits = this.#kind === 'auto' && clip.norm === null && clip.value === null;
  }

  /** @param velocities of workers that there is room for. */
  place(velocities: number): void {
    this.#count = velocities;
    // Another layout may leave less room.
    if ([...this.#slots.keys()].some((slot) => slot > velocities)) this.reset();
    if (velocities === 0) this.#on = false;
  }

  // Who is there.

  arrived(worker: string): void {
    this.#away.delete(worker);
    if (this.#present.has(worker)) return;
    this.#present.add(worker);
    this.#quiet = 0;
    this.#decide();
  }

  /** Its connection is lost; it may come back. */
  departed(worker: string, now: number): void {
    if (this.#present.delete(worker)) this.#away.set(worker, now);
  }

  /** It has gone for good. */
  left(worker: string): void {
    const known = this.#present.delete(worker) || this.#away.delete(worker);
    if (!known) return;
    this.#release(worker);
    this.#quiet = 0;
    this.#decide();
  }

  /** Those that have been away for long have gone. */
  tick(now: number): void {
    if (this.#away.size === 0) return;
    for (const [worker, since] of this.#away) {
      if (since === null) this.#away.set(worker, now);
      else if (now - since >= AWAY_MS) this.left(worker);
    }
  }

  /**
   * The last step of its velocity is in the parameters that were sent already; more is not to come of it, since what
   * it would push on with belongs to a worker that nobody waits for.
   */
  #release(worker: string): void {
    const slot = this.#slotOf.get(worker);
    if (slot === undefined) return;
    this.#slotOf.delete(worker);
    const owners = this.#slots.get(slot)!;
    owners.delete(worker);
    if (owners.size > 0) return;
    this.#slots.delete(slot);
    this.#freed.push(slot);
  }

  /** Workers that take part. */
  get crowd(): number {
    return this.#crowd;
  }

  get #crowd(): number {
    return this.#present.size + this.#away.size;
  }

  #decide(): void {
    const crowd = this.#crowd;
    const from = this.#kind === 'lookahead' ? 1 : WORKERS_AHEAD;
    if (this.#kind === 'none') return;
    if (!this.#on && crowd >= from && this.#count > 0) {
      this.#on = true;
      // The common velocity goes on as that of the first who pushes.
      this.#heir ??= 0;
    } else if (this.#on && crowd === 1 && from > 1) {
      this.#on = false;
      const [last] = [...this.#present, ...this.#away.keys()];
      this.#heir = this.#slotOf.get(last!) ?? NOBODY;
      this.#freed.push(...this.#slots.keys());
      this.#slots.clear();
      this.#slotOf.clear();
    }
  }

  // How pushes are applied.

  /** @returns null: as ever. */
  plan(worker: string, staleness: number): CorrectionPlan | null {
    if (this.#kind === 'none') return null;
    const normMax = this.#normMax;
    const velocity = this.#velocity(worker);
    const scale = this.#damps && staleness > 1 ? 1 / staleness : 1;
    return scale === 1 && normMax === Infinity && !velocity ? null : { scale, normMax, velocity };
  }

  /** A push was applied as planned. @param norm of its gradient as it was applied. */
  applied(
    worker: string,
    plan: CorrectionPlan | null,
    { norm, staleness, loss }: { norm: number; staleness: number; loss: number },
  ): void {
    this.#watch.applied(this.#crowd, staleness, loss);
    this.#quiet++;
    if (this.#kind === 'none') return;
    const round = Math.max(1, this.#crowd);
    this.#norms++;
    const isFirst = this.#norms <= Math.max(FIRST_PUSHES, round);
    this.#norm += (coarse(norm) - this.#norm) / (isFirst ? this.#norms : NORM_ROUNDS * round);
    if (isFirst) this.#firstNorm = this.#norm;
    const use = plan?.velocity;
    if (!use) return;
    if (use.from !== undefined) this.#heir = null;
    if (use.freed) this.#freed = [];
    if (use.slot === 0) return;
    this.#slots.set(use.slot, (this.#slots.get(use.slot) ?? new Set()).add(worker));
    this.#slotOf.set(worker, use.slot);
  }

  #velocity(worker: string): VelocityUse | null {
    const freed = this.#freed.length > 0 ? { freed: this.#freed } : {};
    if (!this.#on) {
      if (this.#heir === null) return null;
      return { slot: 0, from: this.#heir, ...freed };
    }
    const own = this.#slotOf.get(worker);
    if (own !== undefined) return { slot: own, ...freed };
    let slot = 1;
    let shared = 1;
    for (; slot <= this.#count; slot++) {
      const owners = this.#slots.get(slot);
      if (!owners) break;
      if (owners.size < this.#slots.get(shared)!.size) shared = slot;
    }
    if (slot > this.#count) return { slot: shared, ...freed };
    return { slot, from: this.#heir ?? NOBODY, ...freed };
  }

  /** For lack of room for velocities. */
  get #damps(): boolean {
    return this.#kind === 'auto' && this.#count === 0 && this.#crowd >= WORKERS_AHEAD;
  }

  get #isLimited(): boolean {
    return this.#limits && this.#crowd >= WORKERS_LIMITED;
  }

  get #normMax(): number {
    const crowd = this.#crowd;
    if (!this.#isLimited || this.#norms < Math.max(FIRST_PUSHES, crowd)) return Infinity;
    const own = Math.max(this.#firstNorm, NORM_GROWTH * this.#norm);
    return coarse(own * Math.min(1, WORKERS_TRUSTED / crowd));
  }

  /** The optimizer has forgotten its state. */
  reset(): void {
    this.#slots.clear();
    this.#slotOf.clear();
    this.#freed = [];
    this.#heir = null;
    this.#firstNorm = 0;
    this.#norm = 0;
    this.#norms = 0;
    this.#watch.reset();
  }

  // What others want to know.

  get told(): Told {
    const workers = this.#crowd;
    const shared = this.#on && workers > this.#count ? this.#count : null;
    return {
      kind: this.#onWorkers ? 'lookahead' : this.#kind,
      workers,
      lookahead: this.#on || (this.#onWorkers && workers > 0),
      velocities: shared ?? (this.#on ? workers : 0),
      normMax: Number.isFinite(this.#normMax) ? this.#normMax : null,
      text: this.#told,
    };
  }

  get #text(): string | null {
    const workers = this.#crowd;
    if (this.#onWorkers && workers > 0) {
      return `${workers} worker${workers === 1 ? '' : 's'}: look-ahead on, by velocities on the workers`;
    }
    if (this.#kind === 'none') return null;
    const parts: string[] = [];
    if (this.#on) {
      const shared = workers > this.#count ? ` by ${this.#count} velocities` : '';
      parts.push(`look-ahead on${shared}`);
    }
    if (this.#count === 0 && workers >= WORKERS_AHEAD) {
      const instead = this.#damps ? ', the rate of a push is divided by its staleness' : '';
      parts.push(`no room for look-ahead${instead}`);
    }
    if (this.#isLimited) parts.push('large gradients scaled down');
    if (parts.length === 0) return null;
    return `${workers} worker${workers === 1 ? '' : 's'}: ${parts.join(', ')}`;
  }

  /** What speaks against so many workers; null: nothing is known. @param momentum of the next update. */
  hint(momentum: number | null): string | null {
    const isCorrected = this.#on || this.#onWorkers || this.#damps || this.#damped;
    const mayCorrect = this.#able && !isCorrected;
    return this.#watch.hint({ momentum, isCorrected, mayCorrect });
  }

  /** A line for the user, once after each change that is worth one; null: nothing new. */
  takeNews(): string | null {
    if (this.#quiet !== Math.max(1, this.#crowd)) return null;
    const text = this.#text;
    if (text === this.#told) return null;
    this.#told = text;
    return text ?? 'as with one worker: look-ahead off';
  }

  state(): CorrectionState {
    return {
      on: this.#on,
      velocities: [...this.#slots].map(([slot, owners]) => [slot, [...owners]]),
      freed: [...this.#freed],
      heir: this.#heir,
      firstNorm: this.#firstNorm,
      norm: this.#norm,
      norms: this.#norms,
      told: this.#told,
      watch: this.#watch.state(),
    };
  }

  /** To one that is new. Whoever was there may come back. */
  restore(state: CorrectionState): void {
    if (state.watch) this.#watch.restore(state.watch);
    if (this.#onWorkers) this.#told = state.told;
    if (this.#kind === 'none') return;
    this.#on = state.on;
    for (const [slot, owners] of state.velocities) {
      this.#slots.set(slot, new Set(owners));
      for (const owner of owners) {
        this.#slotOf.set(owner, slot);
        this.#away.set(owner, null);
      }
    }
    this.#freed = [...state.freed];
    this.#heir = state.heir;
    this.#firstNorm = state.firstNorm;
    this.#norm = state.norm;
    this.#norms = state.norms;
    this.#told = state.told;
  }

  replica(): CorrectionReplica {
    const present = [...this.#present];
    return { ...this.state(), present, away: [...this.#away], quiet: this.#quiet };
  }

  replicate(replica: CorrectionReplica): void {
    this.restore(replica);
    this.#away.clear();
    for (const worker of replica.present) this.#present.add(worker);
    for (const [worker, since] of replica.away) this.#away.set(worker, since);
    this.#quiet = replica.quiet;
  }
}

/** Norm of a gradient once it is limited. */
export function limitedNorm(norm: number, normMax: number): number {
  const seen = coarse(norm);
  return seen > normMax ? norm * (normMax / seen) : norm;
}

/** By 3 to 6 %: shards add up norms in another order, and limit all the same. */
function coarse(norm: number): number {
  if (norm === 0) return 0;
  const unit = 2 ** (Math.floor(Math.log2(norm)) - 4);
  return unit * Math.round(norm / unit);
}
