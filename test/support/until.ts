import { setTimeout as wait } from 'node:timers/promises';

/**
 * Asks until `look` gives something; a server that is away is asked again.
 * @param logs what to print when that takes too long.
 */
export async function until<T>(
  what: string,
  look: () => Promise<T | null | undefined | false>,
  { withinMs = 60_000, everyMs = 50, logs = () => '' }: UntilOptions = {},
): Promise<T> {
  const start = performance.now();
  for (;;) {
    const seen = await look().catch(() => null);
    if (seen) return seen;
    if (performance.now() - start > withinMs) {
      throw new Error(`waited in vain until ${what}\n${await logs()}`);
    }
    await wait(everyMs);
  }
}

export interface UntilOptions {
  readonly withinMs?: number;
  readonly everyMs?: number;
  readonly logs?: () => string | Promise<string>;
}
