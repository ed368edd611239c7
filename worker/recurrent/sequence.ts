import type { Tensor } from '../tf.ts';

/** What a recurrence over all steps of a sequence is given. Shapes: T steps, B examples, H units, G gates. */

export interface RecurrenceInputs {
  /** The input's part of the gates, shape [T, B, G·H]; T is at least 1. */
  readonly z: Tensor;
  /** Recurrent, shape [H, G·H], or as its cell says. */
  readonly weights: Tensor;
  /** The states at the beginning, each of shape [B, H]; null: zeros. */
  readonly initial: readonly Tensor[] | null;
  /** 1 where a step counts, 0 where it leaves the states as they are; shape [T, B, 1], float32. Null: all count. */
  readonly mask: Tensor | null;
  /** What the output of the step before is multiplied with, shape [B, H]; null: nothing. It has no gradient. */
  readonly dropout: Tensor | null;
}

export interface RecurrenceOptions {
  /** From the last step to the first. */
  readonly backwards: boolean;
  /** The outputs of all steps, in the order in which they are computed; else the last one. */
  readonly sequences: boolean;
  /** The states after the last step as well. */
  readonly states: boolean;
}

/** An LSTM or a GRU whose candidate is activated by tanh. */
export interface WasmCell {
  readonly kind: 'lstm' | 'gru';
  /** The gates are activated by `hardSigmoid`, not by `sigmoid`. */
  readonly hard: boolean;
}
