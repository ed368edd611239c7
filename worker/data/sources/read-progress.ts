/** Lines about how far a long reading has come: none for what takes no time. */

const TELL_AFTER_MS = 2_000;
const TELL_EVERY_MS = 5_000;

export class ReadProgress {
  readonly #log: ((line: string) => void) | undefined;
  readonly #name: string;
  readonly #what: string;
  readonly #total: number;
  #told = performance.now() + TELL_AFTER_MS - TELL_EVERY_MS;

  /** @param total null: it is not known */
  constructor(
    log: ((line: string) => void) | undefined,
    name: string,
    what: string,
    total: number | null,
  ) {
    this.#log = log;
    this.#name = name;
    this.#what = what;
    this.#total = total ?? Number.NaN;
  }

  /** May be called for each row. */
  tell(done: number): void {
    if (this.#log === undefined) return;
    const now = performance.now();
    if (now - this.#told < TELL_EVERY_MS) return;
    this.#told = now;
    const share = Number.isNaN(this.#total)
      ? `${done} ${this.#what}`
      : `${Math.floor((100 * done) / Math.max(1, this.#total))} % of ${this.#total} ${this.#what}`;
    this.#log(`${this.#name}: ${share} read`);
  }
}
