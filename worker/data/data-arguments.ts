import type { RunConfig } from '../../shared/config.ts';

/** What `data` of an experiment is given. */
export interface DataArguments {
  /** Where data lies on this worker, absolute: `DOWNPOUR_DATA`, or `data` in the working folder. */
  readonly folder: string;
  readonly seed: number;
  readonly hyperparameters: Readonly<RunConfig['hyperparameters']>;
  /** One line for the user. */
  readonly log: (line: string) => void;
}
