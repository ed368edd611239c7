import type { ServeOptions } from '../server/main.ts';
import { DownpourError } from '../shared/errors.ts';
import { nearest } from '../shared/spelling.ts';

/** The options that programs give. */

/** What a server of a program and a plugin have of `serve`. */
export const SHARED_OPTIONS = [
  'token',
  'tokenFile',
  'workerToken',
  'observerToken',
  'tokensFile',
  'redis',
  'redisFiles',
  'limits',
  'pushLog',
  'tensorboard',
] as const satisfies readonly (keyof ServeOptions)[];

export type SharedOptions = Pick<ServeOptions, (typeof SHARED_OPTIONS)[number]>;

const ALONE = '`downpour serve` has it: run that beside the program';

/** Options of `downpour serve` that no program has, and what to do instead. */
export const OF_SERVE: Readonly<Record<string, string>> = {
  join: `${ALONE}, for browsers that open /join`,
  standbyOf: `${ALONE}, as the standby of another server`,
  peer: `${ALONE}, as one of two servers`,
  replication: ALONE,
  checkpointCopy: ALONE,
  copyTo: ALONE,
};

/**
 * A mistyped option would be passed over in silence, in JavaScript at least.
 * @param who has them, as a message begins. @param elsewhere options that are refused, and what to do instead.
 * @throws DownpourError DP_USAGE: an option is none.
 */
export function mustBeOptions(
  who: string,
  options: object,
  known: readonly string[],
  elsewhere: Readonly<Record<string, string>> = {},
): void {
  for (const [name, value] of Object.entries(options)) {
    if (value === undefined || known.includes(name)) continue;
    const near = nearest(name, known);
    const remedy =
      elsewhere[name] ?? (near ? `did you mean '${near}'?` : `known: ${known.join(', ')}`);
    throw new DownpourError('DP_USAGE', `${who} has no option '${name}'; ${remedy}`);
  }
}
