import type { PartialConfig } from '../../shared/config.ts';
import type { Plot } from '../../study/plot.ts';
import type { Estimate } from '../../study/statistics.ts';
import { type ComputeLaw, parseLaw } from '../simulate/laws.ts';
import {
  simulateRun,
  type VirtualClusterOptions,
  type VirtualOutcome,
} from '../simulate/virtual-cluster.ts';

/** A result of a paper that one command repeats: what it says, and what came out here. */

export interface Result {
  /** As `downpour paper` has it. */
  readonly name: string;
  /** One line for `--list`. */
  readonly title: string;
  /** Whose claim it is, with where to read it. */
  readonly paper: string;
  readonly claim: string;
  /** What it is repeated on. */
  readonly setting: string;
  /** On 2 cores, with the seeds that `seeds` has. */
  readonly minutes: number;
  readonly seeds: number;
  repeat(lab: Lab): Promise<PaperFinding>;
}

/** `partly` and `no`: the text says what is not so. `not separated`: more seeds would tell. */
export type PaperVerdict = 'holds' | 'partly' | 'no' | 'not separated';

export interface PaperFinding {
  readonly verdict: PaperVerdict;
  /** What came out, in sentences with numbers. */
  readonly text: string;
  readonly headings: readonly string[];
  readonly rows: readonly (readonly string[])[];
  readonly plots: Readonly<Record<string, Plot>>;
  /** Every single run, for a file of comma-separated values. */
  readonly runs: readonly Readonly<Record<string, string | number | null>>[];
}

/** What a repetition is given. */
export interface Lab {
  /** Seeds of each arm. */
  readonly seeds: readonly number[];
  /** Smaller than the paper's comparison needs: shows that it works, and nothing else. */
  readonly quick: boolean;
  readonly signal: AbortSignal;
  /** One line that stays. */
  note(line: string): void;
  /** How far it is. @param share 0 … 1. */
  progress(share: number, text: string): void;
}

/** Text of a mean by seed, with its 95 % interval; one seed has none. */
export function spread(value: Estimate, digits = 2): string {
  const mean = value.mean.toFixed(digits);
  if (value.distinct < 2) return mean;
  return `${mean} ± ${((value.high - value.low) / 2).toFixed(digits)}`;
}

/**
 * Whether two arms differ: the mean difference by seed, with its interval.
 * @param difference of equal seeds. @returns 0: the interval has 0 in it, or there is none.
 */
export function separated({ low, high }: Estimate): -1 | 0 | 1 {
  if (low > 0) return 1;
  return high < 0 ? -1 : 0;
}

/** One simulation of a laboratory. @throws the signal's reason. */
export function trial(
  lab: Lab,
  options: Omit<VirtualClusterOptions, 'compute' | 'signal'> & {
    readonly law: string | ComputeLaw;
  },
): Promise<VirtualOutcome> {
  const { law, ...rest } = options;
  const compute = typeof law === 'string' ? parseLaw(law) : law;
  return simulateRun({ ...rest, compute, signal: lab.signal });
}

/** Does one after the other, and says how far it is. */
export async function each<T, R>(
  lab: Lab,
  items: readonly T[],
  text: (item: T) => string,
  work: (item: T) => Promise<R>,
): Promise<R[]> {
  const results: R[] = [];
  for (const [i, item] of items.entries()) {
    lab.signal.throwIfAborted();
    lab.progress(i / items.length, text(item));
    results.push(await work(item));
  }
  return results;
}

/** Trains for so many updates and stops for nothing else. */
export const updates = (steps: number): PartialConfig => ({
  ...{ stepsMax: steps, epochsMax: null, evaluateEverySteps: steps },
  earlyStopping: { enabled: false, afterStop: 'restore' },
});
