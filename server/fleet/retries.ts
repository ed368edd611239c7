import type { ErrorCode } from '../../shared/errors.ts';
import type { Push } from '../../shared/protocol.ts';
import type { Run } from '../core/run.ts';

/** Why a push of a minibatch that the worker holds may be rejected: it is to be pushed again. */
const TO_RETRY: ReadonlySet<string> = new Set<ErrorCode>([
  'DP_PUSH_STALE',
  'DP_GRADIENT_NOT_FINITE',
  'DP_GRADIENT_TOO_LARGE',
  'DP_PUSH_SHARE',
  'DP_DIVERGED',
]);

/** Judges whether rejected pushes of a worker are those that it sends as a rule. */
export class Retries {
  /** The run at the last push that was rejected and may be tried again, and how many more may be under way. */
  #last = { generation: -1, step: -1, left: 0 };

  /**
   * Whether the push was under way already, or computed at the parameters that came with the last rejection. So nobody
   * is rejected for nothing more often than the run has steps.
   * @param code of the rejection.
   */
  allow(run: Run, { generation, step }: Push, code: string): boolean {
    if (!TO_RETRY.has(code)) return false;
    const last = this.#last;
    const newer = generation - last.generation || step - last.step;
    const isNew = step <= run.step && (code === 'DP_PUSH_STALE' ? newer >= 0 : newer > 0);
    const left = isNew ? run.config.consistency.depth + 1 : last.left;
    if (left === 0) return false;
    this.#last = isNew
      ? { generation: run.generation, step: run.step, left: left - 1 }
      : { ...last, left: left - 1 };
    return true;
  }
}
