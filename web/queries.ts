import { ERRORS, errorCode } from '../shared/errors.ts';
import { whenReleased } from './press.ts';

/** What views read from the server by REST: when it changes, and again until it has come. */

/** From a read that failed to the next. */
const RETRY_MS = 2_000;
/** In one sentence: all that one view of a run reads. The others are counted. */
const NAMED_MAX = 6;

export interface QueryOptions<T> {
  /** In the sentence "Could not read …". */
  readonly what: string;
  readonly read: () => Promise<T>;
  readonly show: (found: T) => void;
  /** The server has nothing of this name, or its release knows no such request. */
  readonly absent?: () => void;
}

/** All that one view reads, and the one sentence on what could not be read. */
export class Queries {
  readonly #say: (text: string) => void;
  readonly #again: () => void;
  /** By what could not be read: why. */
  readonly #failures = new Map<string, string>();
  readonly #timers = new Set<ReturnType<typeof setTimeout>>();
  readonly #readersMax: number;
  #readers = 0;
  /** Reads that wait until another one has ended. */
  readonly #turns: (() => void)[] = [];
  #isEnded = false;

  /**
   * @param say shows the sentence; it is empty when nothing fails.
   * @param again has the view say anew what it wants. It need not while nobody sees the page.
   * @param readersMax reads at the same time
   */
  constructor(say: (text: string) => void, again: () => void, readersMax = Infinity) {
    this.#say = say;
    this.#again = again;
    this.#readersMax = readersMax;
  }

  of<T>(options: QueryOptions<T>): Query<T> {
    return new Query(options, this);
  }

  get isEnded(): boolean {
    return this.#isEnded;
  }

  get isReading(): boolean {
    return this.#readers > 0;
  }

  /** Reads when it is its turn. */
  async inTurn<T>(read: () => Promise<T>): Promise<T> {
    if (this.#readers < this.#readersMax) this.#readers++;
    else await new Promise<void>((resolve) => this.#turns.push(resolve));
    try {
      return await read();
    } finally {
      const next = this.#turns.shift();
      if (next) next();
      else this.#readers--;
    }
  }

  end(): void {
    this.#isEnded = true;
    for (const timer of this.#timers) clearTimeout(timer);
    this.#timers.clear();
    this.#turns.length = 0;
  }

  /** @param why null: it was read. */
  told(what: string, why: string | null): void {
    if (why === null) this.#failures.delete(what);
    else this.#failures.set(what, why);
    const [first] = this.#failures.values();
    const names = firstOf([...this.#failures.keys()]);
    this.#say(first === undefined ? '' : `Could not read ${names}: ${first}. Trying again.`);
  }

  /** Has the view ask again, after `first`. */
  askIn(ms: number, first: () => void): void {
    const timer = setTimeout(() => {
      this.#timers.delete(timer);
      first();
      this.#again();
    }, ms);
    this.#timers.add(timer);
  }
}

export class Query<T> {
  readonly #options: QueryOptions<T>;
  readonly #all: Queries;
  /** What was wanted when the read that came last began. */
  #known: string | null = null;
  #wanted: string | null = null;
  #isReading = false;
  #isDue = false;
  #nextAt = Number.NEGATIVE_INFINITY;

  constructor(options: QueryOptions<T>, all: Queries) {
    this.#options = options;
    this.#all = all;
  }

  /**
   * Reads if this is another stamp than that of the last read that came.
   * @param everyMs at least so long after the last read began.
   */
  want(stamp: string, everyMs = 0): void {
    this.#wanted = stamp;
    if (this.#all.isEnded || this.#isReading || stamp === this.#known) return;
    const now = performance.now();
    if (now < this.#nextAt) {
      if (!this.#isDue) this.#askIn(this.#nextAt - now);
      return;
    }
    this.#nextAt = now + everyMs;
    void this.#read(stamp);
  }

  async #read(stamp: string): Promise<void> {
    const { what, read, show, absent } = this.#options;
    this.#isReading = true;
    const change = await this.#all.inTurn(read).then(
      (found) => () => show(found),
      (error: Error) => (isMissing(error) ? () => absent?.() : error),
    );
    this.#isReading = false;
    if (this.#all.isEnded) return;
    if (change instanceof Error) {
      this.#nextAt = performance.now() + RETRY_MS;
      this.#all.told(what, change.message);
      this.#askIn(RETRY_MS);
      return;
    }
    this.#known = stamp;
    this.#all.told(what, null);
    if (this.#wanted !== stamp) this.#askIn(Math.max(0, this.#nextAt - performance.now()));
    whenReleased(() => {
      if (!this.#all.isEnded) change();
    });
  }

  #askIn(ms: number): void {
    this.#isDue = true;
    this.#all.askIn(ms, () => {
      this.#isDue = false;
    });
  }
}

function firstOf(names: readonly string[]): string {
  const more = names.length - NAMED_MAX;
  const named = names.slice(0, NAMED_MAX).join(', ');
  return more > 0 ? `${named} and ${more} more` : named;
}

const isMissing = (error: Error) => ERRORS[errorCode(error)].http === 404;
