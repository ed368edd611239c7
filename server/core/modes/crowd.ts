/**
 * Who takes part in a run whose workers wait for each other, and for whom the others wait. Each has a clock: the
 * minibatches that it has pushed, raised to those of the others when it comes, so that nobody waits until a newcomer
 * has caught up.
 */

/** A worker whose connection is lost is waited for so long. */
export const AWAY_MS = 5_000;

/**
 * `ready`: it computes, or asks for work in a moment. `idle`: there is nothing for it to do, or it evaluates. `late`:
 * its minibatch ran out of time, or was taken back while it computed. Only those that are ready are waited for.
 */
export type Standing = 'ready' | 'idle' | 'late';

interface CrowdMember {
  clock: number;
  standing: Standing;
  /** Its connection is lost, since when; `null`: since before this life of the server; absent: it is connected. */
  awaySince?: number | null;
}

export interface CrowdState {
  readonly members: readonly (readonly [
    worker: string,
    clock: number,
    standing: Standing,
    awaySince?: number | null,
  ])[];
}

export class Crowd {
  readonly #members = new Map<string, CrowdMember>();
  /** How many of the members that are waited for have each clock. */
  readonly #waitedFor = new Map<number, number>();
  #floor = Infinity;
  #away = 0;

  /** The lowest clock of those that are waited for; Infinity: nobody is. */
  get floor(): number {
    return this.#floor;
  }

  /** Members whose connection is not known to be lost. */
  get present(): number {
    return this.#members.size - this.#away;
  }

  /** Members that are waited for. */
  get ready(): number {
    let count = 0;
    for (const each of this.#waitedFor.values()) count += each;
    return count;
  }

  clockOf(worker: string): number {
    return this.#members.get(worker)?.clock ?? 0;
  }

  arrived(worker: string): void {
    const member = this.#members.get(worker);
    if (member) {
      this.#comeBack(member);
      this.#stand(member, 'ready');
      return;
    }
    const fresh: CrowdMember = { clock: this.#lowest(), standing: 'idle' };
    this.#members.set(worker, fresh);
    this.#stand(fresh, 'ready');
  }

  /** Its connection is lost: it is waited for until it has been away for `AWAY_MS`. */
  departed(worker: string, now: number): void {
    const member = this.#members.get(worker);
    if (!member || member.awaySince !== undefined) return;
    member.awaySince = now;
    this.#away++;
  }

  left(worker: string): void {
    const member = this.#members.get(worker);
    if (!member) return;
    this.#stand(member, 'idle');
    this.#comeBack(member);
    this.#members.delete(worker);
  }

  /** Those that have been away for long have gone. */
  tick(now: number): void {
    if (this.#away === 0) return;
    for (const [worker, member] of this.#members) {
      const { awaySince } = member;
      if (awaySince === null) member.awaySince = now;
      else if (awaySince !== undefined && now - awaySince >= AWAY_MS) this.left(worker);
    }
  }

  /** The server stood still for so long. */
  postpone(ms: number): void {
    if (this.#away === 0) return;
    for (const member of this.#members.values()) {
      if (member.awaySince != null) member.awaySince += ms;
    }
  }

  /** It has been given a minibatch. */
  given(worker: string): void {
    const member = this.#members.get(worker);
    if (member) this.#stand(member, 'ready');
  }

  /** Nothing is to be had for it, or it evaluates. */
  idle(worker: string): void {
    const member = this.#members.get(worker);
    if (member) this.#stand(member, 'idle');
  }

  late(worker: string): void {
    const member = this.#members.get(worker);
    if (member?.standing === 'ready') this.#stand(member, 'late');
  }

  /** Its push counts. @param clock that it has then; absent: one more. */
  advance(worker: string, clock?: number): void {
    const member = this.#members.get(worker);
    if (!member) return;
    this.#count(member, -1);
    member.clock = clock ?? member.clock + 1;
    member.standing = 'ready';
    this.#count(member, 1);
  }

  #comeBack(member: CrowdMember): void {
    if (member.awaySince === undefined) return;
    delete member.awaySince;
    this.#away--;
  }

  /** Who was not waited for does not hold the others up for what it has missed. */
  #stand(member: CrowdMember, standing: Standing): void {
    if (member.standing === standing) return;
    this.#count(member, -1);
    if (standing === 'ready') member.clock = Math.max(member.clock, this.#lowest());
    member.standing = standing;
    this.#count(member, 1);
  }

  /** The clock that a newcomer begins with: the lowest of those that are waited for, else the highest of all. */
  #lowest(): number {
    if (this.#floor !== Infinity) return this.#floor;
    let highest = 0;
    for (const { clock } of this.#members.values()) highest = Math.max(highest, clock);
    return highest;
  }

  #count({ clock, standing }: CrowdMember, by: 1 | -1): void {
    if (standing !== 'ready') return;
    const count = (this.#waitedFor.get(clock) ?? 0) + by;
    if (count > 0) this.#waitedFor.set(clock, count);
    else this.#waitedFor.delete(clock);
    if (by > 0) this.#floor = Math.min(this.#floor, clock);
    else if (count === 0 && clock === this.#floor) {
      this.#floor = Math.min(Infinity, ...this.#waitedFor.keys());
    }
  }

  state(): CrowdState {
    return {
      members: [...this.#members].map(([worker, { clock, standing, awaySince }]) =>
        awaySince === undefined
          ? ([worker, clock, standing] as const)
          : ([worker, clock, standing, awaySince] as const),
      ),
    };
  }

  /** To one that is new. */
  replicate(state: CrowdState): void {
    for (const [worker, clock, standing, awaySince] of state.members) {
      const member: CrowdMember = { clock, standing };
      if (awaySince !== undefined) {
        member.awaySince = awaySince;
        this.#away++;
      }
      this.#members.set(worker, member);
      this.#count(member, 1);
    }
  }

  /** Continues after a restart of the server: members may come back. */
  restore(state: CrowdState): void {
    this.replicate({
      members: state.members.map(([worker, clock, standing]) => [worker, clock, standing, null]),
    });
  }
}
