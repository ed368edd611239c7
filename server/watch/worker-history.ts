import type { Timeline, WorkerSummary } from '../../shared/rest.ts';
import { WARM_UP_SECONDS } from '../core/curves.ts';

/** What each worker did of late, sampled once a second: its states, and how many examples it took. */

type WorkerState = WorkerSummary['state'];

interface Past {
  readonly worker: string;
  /** When each state began, ms, ascending. */
  readonly states: { state: WorkerState; at: number }[];
  /** Counts of the last seconds. */
  readonly examples: { examples: number; at: number }[];
  /** When its first examples were seen, ms; null: it has none yet. */
  beganAt: number | null;
  seenAt: number;
}

const KEPT_MS = 600_000;
const SPEED_MS = 10_000;
const WARM_UP_MS = 1000 * WARM_UP_SECONDS;
/** States that are kept of one worker. A worker that changes each second would have 600. */
const STATES_MAX = 300;

export class WorkerHistory {
  readonly #pasts = new Map<string, Past>();

  /** @param now monotonic ms. @param workers all that are known, once a second. */
  note(now: number, workers: readonly WorkerSummary[]): void {
    for (const { worker, incarnation, state, examples } of workers) {
      const key = `${worker}/${incarnation}`;
      let past = this.#pasts.get(key);
      if (!past) {
        // Forgotten, or gone before anybody looked.
        if (state === 'gone') continue;
        past = { worker, states: [], examples: [], beganAt: null, seenAt: now };
        this.#pasts.set(key, past);
      }
      past.seenAt = now;
      if (past.states.at(-1)?.state !== state) past.states.push({ state, at: now });
      // The one before the window is kept: it tells what was at its beginning.
      while (
        past.states.length > STATES_MAX ||
        (past.states[1] && past.states[1].at < now - KEPT_MS)
      ) {
        past.states.shift();
      }
      if (examples > 0) {
        past.beganAt ??= now;
        if (now - past.beganAt <= WARM_UP_MS) past.examples.length = 0;
      }
      past.examples.push({ examples, at: now });
      while (past.examples[0]!.at < now - SPEED_MS) past.examples.shift();
    }
    for (const [key, { seenAt, states }] of this.#pasts) {
      const gone = states.at(-1)?.state === 'gone' && states.at(-1)!.at < now - KEPT_MS;
      if (gone || seenAt < now - KEPT_MS) this.#pasts.delete(key);
    }
  }

  /**
   * Examples a second over the last ten, without the warm-up; 0 for one that has gone or begins anew with another run;
   * null: it was not seen twice since then.
   */
  speed({ worker, incarnation }: Pick<WorkerSummary, 'worker' | 'incarnation'>): number | null {
    const past = this.#pasts.get(`${worker}/${incarnation}`);
    const first = past?.examples[0];
    const last = past?.examples.at(-1);
    if (past?.states.at(-1)?.state === 'gone') return 0;
    if (!first || !last || last.at === first.at) return null;
    return Math.max(0, (last.examples - first.examples) / ((last.at - first.at) / 1000));
  }

  timeline(now: number): Timeline {
    return {
      seconds: KEPT_MS / 1000,
      workers: [...this.#pasts].map(([key, { worker, states }]) => ({
        worker,
        incarnation: key.slice(worker.length + 1),
        states: states.map(({ state, at }) => ({
          state,
          secondsAgo: Math.min(KEPT_MS, Math.max(0, now - at)) / 1000,
        })),
      })),
    };
  }
}
