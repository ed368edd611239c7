import { localOf, localOptimizer } from '../../../shared/local-steps.ts';
import { isOver } from '../../../shared/phases.ts';
import type { DataSummary, LeasePart } from '../../../shared/protocol.ts';
import { Leases } from '../leases.ts';
import { momentumAt } from '../schedule.ts';
import type { RunFields, RunInternals } from './state.ts';

/** Where a run is in its course: what follows from its fields and its components, and is written down nowhere. */

/** Minibatches are given out and pushed. */
export function isTraining({ phase }: Pick<RunFields, 'phase'>): boolean {
  return phase === 'training' || phase === 'refitting';
}

/** Updates of the present phase. */
export function phaseStepOf({ step, phaseStart }: Pick<RunFields, 'step' | 'phaseStart'>): number {
  return step - phaseStart;
}

/** Updates that schedules count. */
export function scheduleStepOf(
  fields: Pick<RunFields, 'step' | 'phaseStart'> & Partial<Pick<RunFields, 'scheduleOffset'>>,
): number {
  return phaseStepOf(fields) + (fields.scheduleOffset ?? 0);
}

/** Learning rate of the next update, before damping. */
export function learningRateOf({ fields, components }: RunInternals): number {
  return components.schedule.rate(scheduleStepOf(fields)) * fields.rateFactor;
}

/** Momentum of the update rule of gradients where no schedule changes it; null: it has none. */
export function ownMomentumOf({ options }: RunInternals): number | null {
  const optimizer = localOptimizer(options.config);
  return 'momentum' in optimizer ? optimizer.momentum : null;
}

/** Momentum of the next update. */
export function momentumOf(inside: RunInternals): number | null {
  const { momentumSchedule } = inside.options.config;
  const scheduled = momentumAt(momentumSchedule, scheduleStepOf(inside.fields));
  return scheduled ?? ownMomentumOf(inside);
}

export function epochOf({ fields, components }: RunInternals): number {
  const { leases, observations } = components;
  return leases?.epoch ?? fields.epochAtEnd ?? observations.evaluations.at(-1)?.epoch ?? 0;
}

/** Why the phase ends with the update that was made; null: it goes on. */
export function endingOf(inside: RunInternals): string | null {
  const { options, fields, components } = inside;
  const { stepsMax, epochsMax, earlyStopping } = options.config;
  const phaseStep = phaseStepOf(fields);
  if (fields.phase === 'refitting') {
    if (phaseStep < refitStepsMaxOf(inside)) return null;
    return earlyStopping.afterStop === 'retrain'
      ? 'refitted for the best step count'
      : 'continued up to its limit of steps';
  }
  if (stepsMax !== null && phaseStep >= stepsMax) return `reached stepsMax ${stepsMax}`;
  return components.leases!.exhausted ? `reached epochsMax ${epochsMax}` : null;
}

/** Counted like `evaluateEveryOf`: an epoch is of so many minibatches, however many make an update. */
export function evaluationStepOf({ options, fields, components }: RunInternals): number {
  const isByEpochs = options.config.evaluateEverySteps === null;
  return isByEpochs ? components.leases!.completed : phaseStepOf(fields);
}

/** Minibatches that made an update in this phase, on average. */
function minibatchesPerStepOf({ options, fields, components }: RunInternals): number {
  const { mode, leases, collection } = components;
  const steps = phaseStepOf(fields);
  const isOne = !mode?.collects && !localOf(options.config);
  if (isOne || !leases || steps === 0) return 1;
  return Math.max(1, (leases.completed - collection.shares) / steps);
}

/** Between two evaluations at the mean speed so far, s; null: unknown. */
export function evaluationSecondsOf(inside: RunInternals, seconds: number): number | null {
  const { options, fields, components } = inside;
  if (fields.step === 0 || !components.leases) return null;
  const isByEpochs = options.config.evaluateEverySteps === null;
  const steps = evaluateEveryOf(inside) / (isByEpochs ? minibatchesPerStepOf(inside) : 1);
  return (steps * seconds) / fields.step;
}

/** Updates between two evaluations, or minibatches of an epoch. */
export function evaluateEveryOf({ options, components }: RunInternals): number {
  return options.config.evaluateEverySteps ?? components.leases!.perEpoch;
}

export function examplesOf(data: DataSummary, part: LeasePart): number {
  const { trainCount, validationCount, testCount } = data;
  if (part === 'trainAndValidation') return trainCount + validationCount;
  return { train: trainCount, validation: validationCount, test: testCount }[part];
}

/** Minibatches of a phase that begins. @param epochs that it has; null: no end. */
export function leasesOf(
  { options, fields, components }: RunInternals,
  part: LeasePart,
  epochs: number | null,
): Leases {
  const { minibatchSize, leaseSeconds } = options.config;
  return new Leases({
    part,
    exampleCount: examplesOf(fields.data!, part),
    minibatchSize,
    epochStart: components.leases ? components.leases.epoch + 1 : 0,
    epochs,
    leaseMs: leaseSeconds * 1000,
    idStart: components.leases?.nextId ?? 1,
  });
}

/** `retrain` trains on the validation data too, so there is nothing to validate on. */
export function validates({ options, fields }: RunInternals): boolean {
  return fields.phase !== 'refitting' || options.config.earlyStopping.afterStop === 'continue';
}

/** Updates that a refit has at most. */
function refitStepsMaxOf({ options, fields }: RunInternals): number {
  const { afterStop, continueStepsMax } = options.config.earlyStopping;
  const best = fields.best!.phaseStep;
  return afterStop === 'retrain' ? best : (continueStepsMax ?? best);
}

/** Steps of all phases; null: nothing limits them. */
export function stepsMaxOf(inside: RunInternals): number | null {
  const { options, fields } = inside;
  const { stepsMax, epochsMax, minibatchSize } = options.config;
  // A refit begins after the first phase, and its limit is the run's to the end.
  if (fields.phaseStart > 0 && fields.best) return fields.phaseStart + refitStepsMaxOf(inside);
  const byEpochs =
    epochsMax !== null && fields.data
      ? Math.ceil(
          (epochsMax * Math.ceil(fields.data.trainCount / minibatchSize)) /
            minibatchesPerStepOf(inside),
        )
      : Infinity;
  const limit = Math.min(stepsMax ?? Infinity, byEpochs);
  return Number.isFinite(limit) ? limit : null;
}

/** Before the first update: so many more must come before it begins. */
export function workersMissingOf({ options, fields, components }: RunInternals): number {
  const { workersMin } = options.config;
  if (workersMin === 1 || fields.step > 0 || isOver(fields.phase)) return 0;
  return Math.max(0, workersMin - components.roster.attached);
}

/** The seed of the initial parameters that are asked for now. */
export function initialSeedOf({ options, fields }: RunInternals): number {
  const again = fields.startingAnew ? 1 : 0;
  return options.config.seed + fields.initialisations - again;
}
