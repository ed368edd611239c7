import { LIMITS } from './limits.ts';
import type { Log } from './log.ts';

/**
 * What has been said, so that one cause is said once, however often it comes: with each run of a study, each push, each try.
 * It forgets the cause that came last the longest ago when there are too many, which can then be said again.
 */
export class Said {
  readonly #causes = new Set<string>();

  isNew(cause: string): boolean {
    const isNew = !this.#causes.delete(cause);
    this.#causes.add(cause);
    if (this.#causes.size > LIMITS.logKindsMax) {
      this.#causes.delete(this.#causes.values().next().value!);
    }
    return isNew;
  }

  /** All is well again: what comes is new. */
  clear(): void {
    this.#causes.clear();
  }
}

/** What a line is about: without its numbers, which are of this step, this try, this file. */
export const causeOf = (line: string) => line.replace(/\d+/g, '*');

/** The same log, with each line once. */
export function onceEach(log: Log): Log {
  const said = new Said();
  return (line, facts) => {
    if (said.isNew(line)) log(line, facts);
  };
}
