import type { RuleOptions } from '../../shared/optimizer.ts';
import type { CompensationUse } from './compensation.ts';

/** How the server makes one update. */
export interface StepOptions extends RuleOptions {
  /** Absent: the gradient is used as it is. */
  readonly compensation?: CompensationUse;
  /** The push is the result of local steps: the outer optimizer applies it. Absent: it is a gradient. */
  readonly outer?: boolean;
  /** Fragment that it moves, with `outer`. Absent: it moves all parameters. */
  readonly fragment?: number;
  /** Absent: the run has no groups. */
  readonly groups?: GroupStep;
}

/** What the groups of a run need of a step beside the rate of the run. */
export interface GroupStep {
  /** Updates that schedules have counted before this one. */
  readonly scheduleStep: number;
  /** The rate of this step as it would be without the schedule: warm-up, damping and divergence alone. */
  readonly unscheduledRate: number;
}
