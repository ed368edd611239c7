import type { RuleOptions } from '../../shared/optimizer.ts';
import type { CompensationUse } from './compensation.ts';

/** How the server makes one update. */
export interface StepOptions extends RuleOptions {
  /** Absent: the gradient is used as it is. */
  readonly compensation?: CompensationUse;
  /** The push is the result of local steps: the outer optimizer applies it. Absent: it is a gradient. */
  readonly outer?: boolean;
}
