import type { RunConfig } from '../../../shared/config.ts';
import { Bounded } from './bounded.ts';
import { Buffered } from './buffered.ts';
import type { Mode } from './mode.ts';
import { Rounds } from './rounds.ts';

/** @returns null: asynchronous. */
export function createMode(consistency: RunConfig['consistency']): Mode | null {
  // Fields that runs of older releases lack have the values of the schema.
  const { mode, depth, aheadMax = 3, quorum = null, spares = 1 } = consistency;
  const { graceMs = 0, bufferSize = 10 } = consistency;
  switch (mode) {
    case 'bounded':
      return new Bounded(aheadMax, depth);
    case 'synchronous':
      return new Rounds({ quorum: null, spares: 0, graceMs: 0 });
    case 'backup':
      return new Rounds({ quorum, spares, graceMs });
    case 'buffered':
      return new Buffered(bufferSize);
    default:
      return null;
  }
}
