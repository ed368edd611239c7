import type { PartialConfig } from '../../shared/config.ts';
import { MODES } from '../simulate/modes.ts';

/** Corrections of `consistency.correction` and modes that results compare, as far as this release has them. */

export interface CorrectionArm {
  readonly name: string;
  readonly paper: string;
  readonly config: PartialConfig;
  /** Gradients in an update; absent: one. */
  readonly updateOf?: number;
}

const ALL: readonly CorrectionArm[] = [
  {
    name: 'none',
    paper: 'plain asynchronous SGD',
    config: { consistency: { correction: 'none' } },
  },
  {
    ...{ name: 'inverse', paper: 'staleness-aware, arXiv:1511.05950' },
    config: { consistency: { correction: 'inverse' } },
  },
  {
    ...{ name: 'clip', paper: 'gradients of norm 1 at most' },
    config: { consistency: { correction: 'none' }, clip: { norm: 1 } },
  },
  // Fields that only some releases have: the schema knows.
  ...(
    [
      ['delay', 'delay-adaptive, arXiv:2206.07638'],
      ['gap', 'gap-aware, arXiv:1909.10802'],
      ['compensated', 'DC-ASGD, arXiv:1609.08326'],
    ] as const
  )
    .filter(([name]) => Object.hasOwn(MODES, name))
    .map(([name, paper]) => ({
      ...{ name, paper },
      config: { consistency: { correction: name } } as unknown as PartialConfig,
    })),
];

/** For any optimizer. */
export const CORRECTIONS = ALL;

/** Where there is momentum. */
export const AHEAD: readonly CorrectionArm[] = [
  {
    ...{ name: 'lookahead', paper: 'DANA, arXiv:1907.11612' },
    config: { consistency: { correction: 'lookahead' } },
  },
  {
    ...{ name: 'slim', paper: 'DANA-Slim, the velocity on the worker' },
    config: { consistency: { correction: 'lookahead', velocity: 'worker' } },
  },
  {
    ...{ name: 'auto', paper: 'the default here' },
    config: { consistency: { correction: 'auto' } },
  },
];

/** FedBuff's own buffer. */
const BUFFER = 10;

/** Modes in which several gradients make an update. @param workers that take part. */
export const together = (workers: number): readonly CorrectionArm[] => [
  {
    ...{ name: 'synchronous', paper: 'one large minibatch', updateOf: workers },
    config: { consistency: { mode: 'synchronous' } },
  },
  {
    ...{ name: 'm-synchronous', paper: 'the first half, arXiv:2602.03802', updateOf: workers / 2 },
    config: { consistency: { mode: 'backup', quorum: workers / 2 } },
  },
  {
    ...{ name: 'buffered', paper: 'FedBuff, arXiv:2106.06639', updateOf: BUFFER },
    config: {
      consistency: { mode: 'buffered', bufferSize: BUFFER, damping: 'root', correction: 'none' },
    },
  },
];
