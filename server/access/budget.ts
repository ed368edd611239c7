import type { Connection } from '../../wire/connection.ts';

/**
 * Time of the main thread, which all else waits for meanwhile: how much of it one holder of a token may take with what
 * nobody asked it for. It is measured, so that no message and no question needs a price of its own.
 */

export interface BudgetTerms {
  /** Share of all time, 0 to 1. */
  readonly share: number;
  /** At once, after a pause. */
  readonly burstMs: number;
}

/** Who waits goes on when so much is there, so that timers are few. */
const WAKE_MS = 1;
/** Timers of Node end at 2^31 ms. */
const TIMER_MS_MAX = 60_000;

/** What one holder has left: a token bucket of milliseconds that may run into debt. */
/**
 * Nothing that anybody asks for takes the thread for longer at a time: then the whole process has stood still (a halted
 * process, a machine that slept), which nobody is to pay for.
 */
const STOOD_STILL_MS = 1_000;

export class Budget {
  readonly #terms: BudgetTerms;
  readonly #now: () => number;
  #leftMs: number;
  #at: number;
  /** Who waits for time, the longest waiting first. */
  readonly #line = new Set<() => void>();
  #timer: NodeJS.Timeout | null = null;

  /** @param now monotonic ms. */
  constructor(terms: BudgetTerms, now: () => number) {
    this.#terms = terms;
    this.#now = now;
    this.#leftMs = terms.burstMs;
    this.#at = now();
  }

  /** May be called of what has taken long already: then there is a debt. */
  charge(ms: number): void {
    this.#refill();
    this.#leftMs -= Math.min(ms, STOOD_STILL_MS);
  }

  /** Time is left. */
  get hasTime(): boolean {
    this.#refill();
    return this.#leftMs > 0;
  }

  /** Until there is time again, ms; 0: there is. */
  get waitMs(): number {
    const { share, burstMs } = this.#terms;
    return this.hasTime ? 0 : (Math.min(WAKE_MS, burstMs) - this.#leftMs) / share;
  }

  /** Calls back once, when it is this one's turn and there is time. */
  await(turn: () => void): void {
    this.#line.add(turn);
    this.#arm();
  }

  /** It waits no more. */
  leave(turn: () => void): void {
    this.#line.delete(turn);
    if (this.#line.size > 0 || !this.#timer) return;
    clearTimeout(this.#timer);
    this.#timer = null;
  }

  #refill(): void {
    const { share, burstMs } = this.#terms;
    const now = this.#now();
    this.#leftMs = Math.min(burstMs, this.#leftMs + (now - this.#at) * share);
    this.#at = now;
  }

  #arm(): void {
    if (this.#timer || this.#line.size === 0) return;
    const ms = Math.min(Math.max(1, this.waitMs), TIMER_MS_MAX);
    this.#timer = setTimeout(() => this.#serve(), ms);
    this.#timer.unref();
  }

  #serve(): void {
    this.#timer = null;
    for (const turn of this.#line) {
      if (!this.hasTime) break;
      this.#line.delete(turn);
      turn();
    }
    this.#arm();
  }
}

/** Those of all holders; beyond a number those that were asked for least recently are forgotten. */
export class Budgets {
  readonly #terms: BudgetTerms;
  readonly #now: () => number;
  readonly #countMax: number;
  readonly #budgets = new Map<string, Budget>();

  constructor(terms: BudgetTerms, now: () => number, countMax: number) {
    this.#terms = terms;
    this.#now = now;
    this.#countMax = countMax;
  }

  of(holder: string): Budget {
    const budget = this.#budgets.get(holder) ?? new Budget(this.#terms, this.#now);
    this.#budgets.delete(holder);
    this.#budgets.set(holder, budget);
    if (this.#budgets.size > this.#countMax) {
      this.#budgets.delete(this.#budgets.keys().next().value!);
    }
    return budget;
  }
}

/** More is charged although its message is not whole, and may never be: the beginning of a push takes less. */
const BEGUN_MS_MAX = 10;

/**
 * What reading one connection takes, charged to its holder. Work that was asked for is free. While its holder is in
 * debt the connection stands still after each message that was not; the connections of a holder go on by turns.
 */
export class Meter {
  readonly #budget: Budget;
  readonly #connection: Pick<Connection, 'halt' | 'goOn'>;
  readonly #now: () => number;
  readonly #halted: () => void;
  /** What has been dealt with since is neither charged nor free yet. */
  #from = 0;
  #pendingMs = 0;
  #stands = false;

  constructor(options: {
    readonly budget: Budget;
    readonly connection: Pick<Connection, 'halt' | 'goOn'>;
    readonly now: () => number;
    /** Is told when it stands still. */
    readonly halted: () => void;
  }) {
    this.#budget = options.budget;
    this.#connection = options.connection;
    this.#now = options.now;
    this.#halted = options.halted;
  }

  /** It stands still until its turn comes. */
  get stands(): boolean {
    return this.#stands;
  }

  /** Bytes are looked at from now on. */
  begin(): void {
    this.#from = this.#now();
  }

  /** All since the last message was for work that the server has asked for. */
  forgive(): void {
    this.#from = this.#now();
    this.#pendingMs = 0;
  }

  /** It was for something else, and nothing else comes. */
  end(): void {
    this.#note();
    this.#budget.charge(this.#pendingMs);
    this.#pendingMs = 0;
  }

  /** What reading takes beside the time that is measured, whatever it is for. */
  owe(ms: number): void {
    this.#budget.charge(ms);
  }

  /** It was for something else. @param freeMs of it, which are no more than everybody takes once. */
  charge(freeMs = 0): void {
    this.#note();
    this.#pendingMs = Math.max(0, this.#pendingMs - freeMs);
    this.end();
    if (this.#stands || this.#budget.hasTime) return;
    this.#stands = true;
    this.#connection.halt();
    this.#halted();
    this.#budget.await(this.#turn);
  }

  /** It was for a message that is not whole yet: what it is, is known later. */
  begun(): void {
    this.#note();
    if (this.#pendingMs > BEGUN_MS_MAX) this.charge();
  }

  /** The connection is gone. */
  leave(): void {
    this.#budget.leave(this.#turn);
  }

  #note(): void {
    const now = this.#now();
    this.#pendingMs += now - this.#from;
    this.#from = now;
  }

  readonly #turn = (): void => {
    this.#stands = false;
    this.#connection.goOn();
  };
}
