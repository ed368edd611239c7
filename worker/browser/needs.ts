import { DownpourError } from '../../shared/errors.ts';
import type { DataArguments } from '../experiment.ts';

/**
 * A page gets the data of an experiment as they were made once, where the server was started. What `data()` looked at of
 * the configuration is written down with them, so that a run with another configuration does not get them.
 */
export interface DataNeeds {
  /** Null: it did not look. */
  readonly seed: number | null;
  /** Those it looked at; null: there was none of that name. */
  readonly hyperparameters: Readonly<Record<string, number | string | boolean | null>>;
  /** It looked at all of them, so there must be no others. */
  readonly all: boolean;
}

type Watched = Pick<DataArguments, 'seed' | 'hyperparameters'>;

/** The same arguments, and what was looked at of them so far. */
export function watch<T extends Watched>(args: T): { readonly args: T; needs(): DataNeeds } {
  let seed: number | null = null;
  let all = false;
  const seen: Record<string, number | string | boolean | null> = {};
  const hyperparameters = new Proxy(args.hyperparameters, {
    get(target, name: string) {
      seen[name] = target[name] ?? null;
      return target[name];
    },
    has(target, name: string) {
      seen[name] = target[name] ?? null;
      return name in target;
    },
    ownKeys(target) {
      all = true;
      for (const [name, value] of Object.entries(target)) seen[name] = value;
      return Reflect.ownKeys(target);
    },
  });
  const watched = {
    ...args,
    hyperparameters,
    get seed() {
      seed = args.seed;
      return args.seed;
    },
  };
  return { args: watched, needs: () => ({ seed, hyperparameters: { ...seen }, all }) };
}

/** @throws DownpourError DP_DATA_MISMATCH: the data were made for another configuration. */
export function mustSuit(name: string, needs: DataNeeds, args: Watched): void {
  const differ = (what: string, made: unknown, wanted: unknown) =>
    new DownpourError(
      'DP_DATA_MISMATCH',
      `the data of '${name}' were made for pages with ${what} ${JSON.stringify(made)}, the run has ${JSON.stringify(wanted)}: use downpour work for this run`,
    );
  if (needs.seed !== null && needs.seed !== args.seed) throw differ('seed', needs.seed, args.seed);
  const looked = needs.all
    ? [...Object.keys(needs.hyperparameters), ...Object.keys(args.hyperparameters)]
    : Object.keys(needs.hyperparameters);
  for (const each of looked) {
    const made = needs.hyperparameters[each] ?? null;
    const wanted = args.hyperparameters[each] ?? null;
    if (made !== wanted) throw differ(`hyperparameters.${each}`, made, wanted);
  }
}
