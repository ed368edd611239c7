import { LIMITS } from '../../../shared/limits.ts';
import type { Assignment } from './calls.ts';
import { isTraining, workersMissingOf } from './course.ts';
import { askForSamples, type Worker } from './roster.ts';
import type { Inside, PendingEvaluation } from './state.ts';
import { payloadOf } from './vector.ts';

/** What a worker of a run that is not over is to do next. */

const WAIT = { kind: 'wait' } as const;

/** @param ahead minibatches that it may hold at once. */
export function workFor(inside: Inside, key: string, ahead: number, now: number): Assignment {
  const { options, fields, parts } = inside;
  const { leases, vector } = parts;
  const { grant, evaluation } = fields;
  const worker = parts.roster.of(key);
  if (grant) {
    if (grant.worker !== null && grant.worker !== key) return WAIT;
    grant.worker = key;
    const again = fields.startingAnew ? 1 : 0;
    const seed = options.config.seed + fields.initialisations - again;
    return { kind: 'initialise', grant: grant.id, seed };
  }
  if (!vector.parameters) return WAIT;
  if (evaluation && (evaluation.worker === null || evaluation.worker === key)) {
    return evaluationFor(inside, key, worker, evaluation);
  }
  if (!isTraining(fields) || fields.ending !== null || !leases) return WAIT;
  if (fields.step === 0 && workersMissingOf(inside) > 0) return WAIT;
  const { nextId } = leases;
  const given = leases.grant(key, Math.min(ahead, LIMITS.leasesPerWorkerMax), now);
  if (given.length === 0) return WAIT;
  askForSamples(worker, given, nextId, options.config.observe.everySteps);
  worker.sentGeneration = fields.generation;
  worker.sentStep = fields.step;
  const whole = wholeFor(inside, worker);
  return {
    kind: 'work',
    leases: given,
    evaluation: null,
    payload: whole ? payloadOf(whole) : vector.parameters.snapshot(options.config.compression.pull),
    shared: whole === null,
    step: fields.step,
    parts: { capture: null, whole: whole !== null },
  };
}

function evaluationFor(
  inside: Inside,
  key: string,
  worker: Worker,
  evaluation: PendingEvaluation,
): Assignment {
  const { leases, vector } = inside.parts;
  const { id, part, step, capture } = evaluation;
  evaluation.worker = key;
  evaluation.deadline = null;
  const values = vector.captured(capture);
  const whole = wholeFor(inside, worker, values);
  return {
    kind: 'work',
    leases: leases?.heldBy(key) ?? [],
    evaluation: { id, part },
    payload: payloadOf(whole ?? values),
    shared: false,
    step,
    parts: { capture, whole: whole !== null },
  };
}

/**
 * Frozen tensors travel once, with the first parameters that a worker gets.
 * @returns null: it has them.
 */
function wholeFor(
  { fields, parts: { vector } }: Inside,
  worker: Worker,
  exchanged?: Float32Array,
): Float32Array | null {
  const isFirst = worker.generation !== fields.generation;
  worker.generation = fields.generation;
  const isNeeded = isFirst && vector.layout!.frozenSize > 0;
  return isNeeded ? vector.mustParameters.whole(exchanged) : null;
}
