import { DownpourError } from '../../../shared/errors.ts';
import { mayThaw } from '../../../shared/groups.ts';
import type { LeasePart, Phase } from '../../../shared/protocol.ts';
import type { Evaluation } from '../../../shared/rest.ts';
import { createSchedule } from '../schedule.ts';
import { GRACE_MS, letGoOfInitial, pause, takeBackAll } from './attendance.ts';
import type { CallOf, RunEvent } from './calls.ts';
import {
  endingOf,
  epochOf,
  evaluateEveryOf,
  evaluationStepOf,
  initialSeedOf,
  isTraining,
  leasesOf,
  validates,
} from './course.ts';
import {
  beginEvaluation,
  capturesInUse,
  evaluationFrom,
  giveBack,
  isGood,
  mayRollBack,
  mustBeOfAll,
  validationCount,
} from './evaluations.ts';
import { fitGroups } from './groups.ts';
import { evaluates, hopelessWhy, refuseFrom, toHandOut } from './handed.ts';
import { nonFiniteText, nothingFiniteText } from './reasons.ts';
import type { Components, PendingEvaluation, RunFields, RunInternals } from './state.ts';
import type { RunView } from './view.ts';

/** What the run does when its phases say so. */
export interface PhaseConsequences {
  tell(event: RunEvent): void;
  /** Drops the pushes that wait for their step. */
  discard(): void;
}

/**
 * A run from phase to phase: what evaluations decide, what follows the end of training, and what divergence does. All
 * of it is called within a call of the run.
 */
export class Phases {
  readonly #run: RunView;
  readonly #inside: RunInternals;
  readonly #fields: RunFields;
  readonly #components: Components;
  readonly #then: PhaseConsequences;
  /** Some group is frozen up to a step. */
  readonly #mayThaw: boolean;

  /** @param inside of the run. */
  constructor(run: RunView, inside: RunInternals, then: PhaseConsequences) {
    this.#run = run;
    this.#inside = inside;
    this.#fields = inside.fields;
    this.#components = inside.components;
    this.#then = then;
    this.#mayThaw = mayThaw(run.config);
  }

  #wake(): void {
    this.#then.tell({ kind: 'wake' });
  }

  // Divergence.

  /**
   * A loss or gradient was not finite. @param readStep of its parameters. @param overflows it was, but its square was not.
   * @returns what the worker is told.
   */
  nonFinite(readStep: number, overflows: boolean): string {
    const fields = this.#fields;
    fields.nonFiniteInRow++;
    const { nonFiniteMax } = this.#run.config;
    const atStart = fields.initialLoss === null;
    const message = nonFiniteText(this.#inside, readStep, overflows);
    if (fields.nonFiniteInRow < nonFiniteMax) return message;
    const last = fields.rollbacks.at(-1);
    // The same parameters once more would give the same.
    const isAgain = atStart && last?.to === null && last.step === fields.step;
    if (isAgain) this.#fail(message);
    else this.diverged(message);
    return message;
  }

  /**
   * Goes back to the last parameters that are known to be good, with a lower learning rate, as often as the
   * configuration allows. Those are the best of the evaluations, since what came before the first sign of
   * divergence may be spoilt already; or the initial ones, when no evaluation was better than they are, and
   * in a `retrain`, which must not begin with trained ones. Steps, epochs and the order of examples go on.
   */
  diverged(reason: string): void {
    const fields = this.#fields;
    const { rollbacksMax, factor } = this.#run.config.divergence;
    if (fields.rollbacks.length >= rollbacksMax) {
      const after = rollbacksMax === 0 ? '' : `, after ${rollbacksMax} rollbacks`;
      this.#fail(`${reason}${after}`);
      return;
    }
    fields.nonFiniteInRow = 0;
    fields.rateFactor *= factor;
    fields.optimizerStart = fields.step;
    this.#components.observations.restartSmoothing();
    const { afterStop } = this.#run.config.earlyStopping;
    const isAnew = fields.phase === 'refitting' && afterStop === 'retrain';
    const best = isAnew || !isGood(fields.best, fields) ? null : fields.best;
    if (!best && !isAnew && this.#run.options.fork) {
      this.#fail(`${reason}; a fork has no initial parameters of its own to go back to`);
      return;
    }
    if (best) {
      this.#setParameters(best.capture);
      this.#resetOptimizer();
    } else {
      fields.startingAnew = true;
      this.#then.discard();
      fields.generation++;
      this.requestParameters();
    }
    const to = best?.evaluation.step ?? null;
    const rollback = { step: fields.step, to, learningRate: this.#run.learningRate, reason };
    fields.rollbacks = [...fields.rollbacks, rollback];
    this.#then.tell({ kind: 'rollback', rollback });
    this.#wake();
  }

  // Evaluations.

  /** What is due after an applied push: an evaluation, the end of a phase. */
  afterStep(): void {
    const fields = this.#fields;
    if (this.#mayThaw && fitGroups(this.#inside)) this.#wake();
    fields.ending = endingOf(this.#inside) ?? fields.ending;
    const at = evaluationStepOf(this.#inside);
    if (at >= fields.nextEvaluation) {
      const every = evaluateEveryOf(this.#inside);
      fields.nextEvaluation = (Math.floor(at / every) + 1) * every;
      fields.evaluationDue = validates(this.#inside);
    }
    this.#proceed();
  }

  /** Starts the evaluation that is due, or ends the phase, unless one is under way. */
  #proceed(): void {
    const fields = this.#fields;
    if (fields.evaluation || !isTraining(fields)) return;
    const { ending, lastEvaluatedStep, step } = fields;
    if (ending !== null && lastEvaluatedStep < step && validates(this.#inside)) {
      fields.evaluationDue = true;
    }
    if (fields.evaluationDue) {
      fields.evaluationDue = false;
      this.#evaluate('validation', 'validation', this.#capture('evaluated'));
    } else if (ending !== null) {
      if (fields.phase === 'training') this.#stopTraining(ending);
      else this.#conclude(ending);
    }
  }

  #capture(what: 'evaluated' | 'exchanged'): number {
    const id = ++this.#fields.captures;
    this.#components.vector.capture(id, what);
    return id;
  }

  /** @param step that the captured parameters belong to. */
  #evaluate(
    purpose: PendingEvaluation['purpose'],
    part: LeasePart,
    capture: number,
    step?: number,
  ): void {
    beginEvaluation(this.#inside, purpose, part, capture, step);
    this.#wake();
  }

  /** The parameters that were restored belong to the best step, refitted ones to the last. */
  evaluateTest(): void {
    const { best, step } = this.#fields;
    const isRestored = this.#run.config.earlyStopping.afterStop === 'restore';
    const of = isRestored ? best!.evaluation.step : step;
    this.#evaluate('test', 'test', this.#capture('exchanged'), of);
  }

  /** @returns whether it was asked for. */
  evaluated({ worker, result, now, at }: CallOf<'evaluated'>): boolean {
    const fields = this.#fields;
    const pending = fields.evaluation;
    if (this.#run.over || pending?.id !== result.evaluation) return false;
    // One that was late is used as well, if it is the first to answer.
    if (!evaluates(pending, worker)) return false;
    if (this.#run.quarantine(worker) !== null) return false;
    try {
      mustBeOfAll(this.#inside, pending, result);
    } catch (error) {
      giveBack(fields, worker);
      this.#wake();
      throw error;
    }
    this.goesOn(now);
    fields.evaluation = null;
    const evaluation = evaluationFrom(this.#inside, pending, result, now);
    this.#components.observations.evaluated(evaluation);
    this.#then.tell({ kind: 'evaluated', evaluation });
    this.#wake();
    if (pending.purpose === 'test') {
      fields.test = evaluation;
      fields.testedAt = at ?? null;
      this.#finish();
    } else if (pending.purpose === 'target') this.#continueFromBest(evaluation);
    else this.#validated(pending, evaluation);
    this.#components.vector.forget(pending.capture, capturesInUse(fields));
    return true;
  }

  #validated(pending: PendingEvaluation, evaluation: Evaluation): void {
    const fields = this.#fields;
    const { schedule, earlyStopping, observations, vector } = this.#components;
    const { loss, error } = evaluation;
    fields.lastEvaluatedStep = pending.step;
    if (fields.phase === 'refitting') {
      const { target } = fields;
      if (loss === null || target === null || loss >= target) this.#proceed();
      else {
        this.#conclude(
          `validation loss ${loss} fell below the training loss at the stop ${target}`,
        );
      }
      return;
    }
    const { metric, patience } = this.#run.config.earlyStopping;
    const value = (metric === 'loss' ? loss : error) ?? Number.NaN;
    if (!Number.isFinite(value) && mayRollBack(this.#inside, pending)) {
      this.diverged(`the validation ${metric} at step ${pending.step} is NaN or infinite`);
      return;
    }
    schedule.observe(value);
    const verdict = earlyStopping.observe(value, pending.step);
    if (verdict.improved) {
      const worse = fields.best;
      const { phaseStep, capture } = pending;
      fields.best = { evaluation, phaseStep, schedule: schedule.state(), capture };
      if (worse) vector.forget(worse.capture, capturesInUse(fields));
      this.#then.tell({ kind: 'best' });
    }
    const count = validationCount(observations);
    if (verdict.stop) {
      this.#stopTraining(`validation ${metric} has not improved for ${patience} evaluations`);
    } else if (fields.ending === null && this.#run.config.pauseAfter?.includes(count)) {
      this.stop(
        `paused after ${count} evaluations, as pauseAfter says; \`downpour resume\` goes on`,
      );
    } else this.#proceed();
  }

  // From phase to phase.

  /** There are parameters, and it is known what the data are. */
  begin(): void {
    const { epochsMax: epochs } = this.#run.config;
    this.#startPhase('training', { part: 'train', epochs, reason: 'training' });
  }

  #startPhase(
    phase: 'training' | 'refitting',
    options: { part: LeasePart; epochs: number | null; reason: string },
  ): void {
    const fields = this.#fields;
    this.#then.discard();
    fields.phaseStart = fields.step;
    fields.optimizerStart = fields.step;
    fields.ending = null;
    fields.evaluationDue = false;
    takeBackAll(this.#inside);
    this.#components.leases = leasesOf(this.#inside, options.part, options.epochs);
    fields.nextEvaluation = evaluateEveryOf(this.#inside);
    fitGroups(this.#inside);
    this.setPhase(phase, options.reason);
  }

  /** Training is over: what `afterStop` asks for follows. */
  #stopTraining(reason: string): void {
    const fields = this.#fields;
    fields.stoppedAt = fields.step;
    const { best } = fields;
    if (!best) {
      this.#fail(nothingFiniteText(this.#inside, reason));
      return;
    }
    const { afterStop } = this.#run.config.earlyStopping;
    fields.ending = reason;
    if (afterStop === 'restore') {
      this.#setParameters(best.capture);
      this.#conclude(reason);
    } else if (afterStop === 'continue') {
      this.setPhase('measuring', `${reason}; measuring the training loss at the best step`);
      this.#evaluate('target', 'train', best.capture, best.evaluation.step);
    } else {
      fields.scheduleOffset = 0;
      this.#components.schedule = createSchedule(this.#run.config.schedule, this.#run.config);
      this.#components.observations.restartSmoothing();
      this.#startPhase('refitting', {
        part: 'trainAndValidation',
        epochs: null,
        reason: `${reason}; retraining on all data for ${best.phaseStep} steps (Algorithm 7.2)`,
      });
      this.requestParameters();
    }
  }

  /** Algorithm 7.3: from the best parameters, on all data, down to the training loss there. */
  #continueFromBest({ loss }: Evaluation): void {
    const fields = this.#fields;
    const best = fields.best!;
    if (loss === null) {
      this.#fail('the training loss at the best step is not finite');
      return;
    }
    fields.target = loss;
    this.#setParameters(best.capture);
    this.#resetOptimizer();
    this.#components.schedule.restore(best.schedule);
    fields.scheduleOffset = best.phaseStep;
    this.#startPhase('refitting', {
      part: 'trainAndValidation',
      epochs: null,
      reason: `continuing on all data until the validation loss is below ${loss} (Algorithm 7.3)`,
    });
  }

  #setParameters(by: number | 'evaluated'): void {
    this.#then.discard();
    this.#components.vector.replace(by);
    this.#fields.generation++;
  }

  #resetOptimizer(): void {
    this.#components.vector.resetOptimizer();
    this.#components.correction.reset();
    this.#components.rateWatch.reset();
  }

  /** The parameters are the final ones; the test part is looked at once. */
  #conclude(reason: string): void {
    const fields = this.#fields;
    if (fields.phase === 'refitting') this.#setParameters('evaluated');
    fields.ending = reason;
    if (this.#run.config.testAtEnd && fields.data!.testCount > 0) {
      this.setPhase('testing', reason);
      this.evaluateTest();
    } else {
      fields.reason = reason;
      this.#finish();
    }
  }

  #finish(): void {
    this.#fields.epochAtEnd = epochOf(this.#inside);
    this.#components.leases = null;
    this.setPhase('finished', this.#fields.reason);
  }

  #fail(reason: string): void {
    pause(this.#inside);
    this.setPhase('failed', reason);
  }

  /** Asks a worker for fresh parameters. */
  requestParameters(): void {
    this.#fields.grant = { id: ++this.#fields.grantsGiven, ...toHandOut() };
    this.#components.vector.resetRows(initialSeedOf(this.#inside));
    this.#wake();
  }

  /** What a worker has given to begin with cannot be used: another one is asked, one that waits. */
  refuseInitial(worker: string, why: string): void {
    const { grant } = this.#fields;
    if (this.#run.over || grant?.worker !== worker) return;
    refuseFrom(grant, why);
    letGoOfInitial(this.#inside);
    this.failWithoutInitial();
    this.#wake();
  }

  /**
   * Experiment and seed say what the initial parameters are. Where no worker that is connected has any that can be used, no
   * other one will.
   * @param now at which those who have lost their connections may still come back; absent: none has.
   */
  failWithoutInitial(now?: number): void {
    const { grant } = this.#fields;
    if (this.#run.over || !grant || grant.worker !== null) return;
    const why = hopelessWhy(this.#inside, grant);
    if (why === null) grant.deadline = null;
    else if (now !== undefined && grant.deadline === null) grant.deadline = now + GRACE_MS;
    else if (now === undefined || now >= grant.deadline!) {
      this.#fail(`no connected worker has initial parameters that can be used: ${why}`);
    }
  }

  /** @param reason that people are told. */
  setPhase(to: Phase, reason: string): void {
    const fields = this.#fields;
    const from = fields.phase;
    fields.phase = to;
    fields.reason = reason;
    if (this.#run.over) {
      fields.seconds = this.#run.seconds(fields.nowMs);
      fields.startedMs = null;
    }
    this.#then.tell({ kind: 'phase', from, to });
    this.#wake();
  }

  /** `resume` goes on from here. A test of a finished run is given up. */
  stop(reason: string): void {
    const fields = this.#fields;
    if (this.#run.over) return;
    const { evaluation } = fields;
    if (fields.phase === 'testing' && !this.#components.leases) {
      // It had finished before somebody asked for the test: it is as it was.
      fields.evaluation = null;
      if (evaluation) this.#components.vector.forget(evaluation.capture, capturesInUse(fields));
      this.setPhase('finished', fields.reason);
      return;
    }
    fields.resumePhase = fields.phase;
    pause(this.#inside);
    this.setPhase('stopped', reason);
  }

  /** @throws DownpourError DP_RUN_FAILED, DP_RUN_ENDED. */
  resume(): void {
    const { phase, reason, resumePhase } = this.#fields;
    if (phase === 'failed') {
      throw new DownpourError(
        'DP_RUN_FAILED',
        `run ${this.#run.id} has failed: ${reason}; start a new one with another configuration`,
      );
    }
    if (phase === 'finished') {
      throw new DownpourError('DP_RUN_ENDED', `run ${this.#run.id} is finished: ${reason}`);
    }
    if (phase !== 'stopped') return;
    this.#components.robust.release();
    this.setPhase(resumePhase, 'resumed');
  }

  /** Something was done for it: its time runs, if it is not over. */
  goesOn(now: number): void {
    const fields = this.#fields;
    fields.nowMs = now;
    if (!this.#run.over && this.#run.hasParameters) fields.startedMs ??= now;
  }

  /** What was asked for when the checkpoint was taken is asked for again. */
  restorePending(): void {
    const fields = this.#fields;
    const { best } = fields;
    const phase = fields.phase === 'stopped' ? fields.resumePhase : fields.phase;
    if (phase === 'waiting' || fields.startingAnew) {
      if (!this.#run.hasParameters || fields.startingAnew) this.requestParameters();
    } else if (phase === 'refitting' && fields.initialisations === 1) {
      const retrain = this.#run.config.earlyStopping.afterStop === 'retrain';
      if (retrain) this.requestParameters();
    } else if (phase === 'measuring') {
      this.#evaluate('target', 'train', best!.capture, best!.evaluation.step);
    } else if (phase === 'testing') {
      this.evaluateTest();
    }
    if (phase === fields.phase) this.#proceed();
  }
}
