import type { PartialConfig } from '../../shared/config.ts';
import { MODES } from '../simulate/modes.ts';

/** Corrections of `consistency.correction` that results compare, as far as this release has them. */

export interface Correction {
  readonly name: string;
  readonly paper: string;
  readonly config: PartialConfig;
}

const ALL: readonly Correction[] = [
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
export const AHEAD: readonly Correction[] = [
  {
    ...{ name: 'lookahead', paper: 'DANA, arXiv:1907.11612' },
    config: { consistency: { correction: 'lookahead' } },
  },
  {
    ...{ name: 'auto', paper: 'the default here' },
    config: { consistency: { correction: 'auto' } },
  },
];
