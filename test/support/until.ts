import { setTimeout as wait } from 'node:timers/promises';
import { errorText } from '../../shared/errors.ts';

/**
 * Asks until `look` gives something; a server that is away is asked again.
 * @throws Error with what `look` threw last.
 * @param logs what to print when that takes too long.
 */
export async function until<T>(
  what: string,
  look: () => Looked<T> | Promise<Looked<T>>,
  { withinMs = 60_000, everyMs = 50, logs = () => '' }: UntilOptions = {},
): Promise<T> {
  const start = performance.now();
  let why = '';
  for (;;) {
    try {
      const seen = await look();
      if (seen) return seen;
    } catch (error) {
      why = `: ${errorText(error)}`;
    }
    if (performance.now() - start > withinMs) {
      throw new Error(`waited in vain until ${what}${why}\n${await logs()}`);
    }
    await wait(everyMs);
  }
}

type Looked<T> = T | null | undefined | false;

export interface UntilOptions {
  readonly withinMs?: number;
  readonly everyMs?: number;
  readonly logs?: () => string | Promise<string>;
}
