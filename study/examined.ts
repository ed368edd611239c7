import type { Answers } from '../shared/answers.ts';

/** What the members of an ensemble answered to the same examples. */

/** A model and its answers to examples that it has not learnt from. */
export interface Member {
  /** The name of its run. */
  readonly name: string;
  readonly label: string;
  /** The cost of one answer, where the cheapest member's is 1. */
  readonly cost: number;
  /** Trained elements. */
  readonly parameters: number;
  readonly answers: Answers;
  /** For an average in training, the index of the member that is the same training without it. */
  readonly raw?: number;
}

/** The same examples for all. */
export interface Examined {
  readonly members: readonly Member[];
  /** Stand for themselves, in no combination: means of parameters. */
  readonly averages: readonly Member[];
  /** What a controller sees of each example, shape [examples, width]; null: it cannot be asked. */
  readonly features: Features | null;
}

export interface Features {
  readonly values: Float32Array;
  readonly width: number;
}
