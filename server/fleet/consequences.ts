import type { Log } from '../../shared/log.ts';
import type { Keeper } from '../checkpoints/keeper.ts';
import type { RunEvent } from '../core/run/calls.ts';
import type { Run } from '../core/run.ts';
import type { RunAsides } from './asides.ts';
import type { Listing } from './listing.ts';

export interface ConsequencesOptions {
  /** Monotonic, ms. */
  readonly now: () => number;
  readonly log: Log;
  readonly keeper: Pick<
    Keeper,
    'onPhase' | 'onBest' | 'onRollback' | 'onLost' | 'onEvaluation' | 'onStep'
  >;
  readonly asides: Pick<RunAsides, 'evaluated'>;
  readonly listing: Pick<Listing<Run>, 'touch'>;
  readonly workers: { wake(run: Run): void };
  /** Runs that are not over; kept up to date here. */
  readonly unfinished: Set<Run>;
  /** Calls back after so many ms. */
  readonly later: (ms: number, act: () => void) => void;
  /** The server still has this run: neither is it removed, nor another one there by its name. */
  readonly isHere: (run: Run) => boolean;
  readonly isClosing: () => boolean;
}

/** What follows from calls of runs: what must be written down, who may have work now, when time itself is a call. */
export class Consequences {
  readonly #options: ConsequencesOptions;
  /** For what modes of consistency wait for, one of a run. */
  readonly #alarms = new WeakMap<Run, { readonly at: number }>();

  constructor(options: ConsequencesOptions) {
    this.#options = options;
  }

  /**
   * Carries out what follows from calls of a run. Call once they are answered.
   * @param touched false: time alone has gone by.
   */
  of(run: Run, touched: boolean): void {
    const { keeper, listing, now, workers } = this.#options;
    const events = run.takeEvents();
    if (touched || events.length > 0) listing.touch(run);
    let wake = false;
    for (const event of events) {
      if (event.kind === 'wake') wake = true;
      else this.#carryOut(run, event);
    }
    if (touched) keeper.onStep(run, now());
    this.#setAlarm(run);
    if (!wake) return;
    workers.wake(run);
    // One for whom there was nothing may have been the last that a step waited for.
    this.of(run, false);
  }

  #carryOut(run: Run, event: Exclude<RunEvent, { kind: 'wake' }>): void {
    const { asides, isHere, keeper, log, unfinished } = this.#options;
    if (event.kind === 'phase') {
      const line = `run ${run.id}: ${event.from} → ${event.to} at step ${run.step}: ${run.reason}`;
      const bad = event.to === 'failed' ? ({ level: 'error' } as const) : {};
      log(line, { run: run.id, step: run.step, ...bad });
      if (run.over) unfinished.delete(run);
      else if (isHere(run)) unfinished.add(run);
      keeper.onPhase(run);
    } else if (event.kind === 'best') keeper.onBest(run);
    else if (event.kind === 'rollback') {
      const { step, to, learningRate, reason } = event.rollback;
      const where = to === null ? 'its initial parameters' : `the best ones, of step ${to}`;
      log(
        `run ${run.id} diverged at step ${step} and goes back to ${where}, with learning rate ${learningRate}: ${reason}`,
        { level: 'warn', run: run.id, step, code: 'DP_DIVERGED' },
      );
      keeper.onRollback(run);
    } else if (event.kind === 'correction') {
      log(`run ${run.id}: ${event.text}`, { run: run.id, step: run.step });
    } else if (event.kind === 'late') {
      log(`run ${run.id}: ${event.text}`, { level: 'warn', run: run.id, step: run.step });
    } else if (event.kind === 'lost') {
      const { steps, restored } = event;
      log(
        `run ${run.id}: ${steps} steps after step ${restored} are lost with an earlier life of the server, ${run.stepsLost} in all`,
        { level: 'warn', run: run.id, step: restored },
      );
      keeper.onLost(run);
    } else {
      asides.evaluated(run.id, event.evaluation);
      keeper.onEvaluation(run);
    }
  }

  /** The run is called at the moment that its mode waits for. */
  #setAlarm(run: Run): void {
    const { isClosing, isHere, later, now } = this.#options;
    const { deadline } = run;
    if (deadline === null || this.#alarms.get(run)?.at === deadline) return;
    const alarm = { at: deadline };
    this.#alarms.set(run, alarm);
    // Timers may ring a moment early.
    later(Math.max(0, Math.ceil(deadline - now()) + 1), () => {
      if (this.#alarms.get(run) !== alarm || !isHere(run)) return;
      this.#alarms.delete(run);
      if (run.deadline === null || isClosing()) return;
      run.call({ call: 'tick', now: now() });
      this.of(run, true);
    });
  }
}
