import { LIMITS } from '../../../shared/limits.ts';
import type { Snapshot } from '../snapshot.ts';
import type { Assignment, SentTo } from './calls.ts';
import { initialSeedOf, isTraining, workersMissingOf } from './course.ts';
import { evaluationMsMax, handOut, initialMsMax, mayHave } from './handed.ts';
import { localWorkFor, minibatchesFor } from './local.ts';
import { askForSamples, type RosterWorker } from './roster.ts';
import type { PendingEvaluation, RunInternals } from './state.ts';
import { payloadOf } from './vector.ts';

/** What a worker of a run that is not over is to do next. */

const WAIT = { kind: 'wait' } as const;

/** @param ahead minibatches that it may hold at once. @param to its connection; null: nobody is sent the work. */
export function workFor(
  inside: RunInternals,
  key: string,
  ahead: number,
  now: number,
  to: SentTo | null,
): Assignment {
  const { options, fields, components } = inside;
  const { leases, vector, mode, sent } = components;
  const { grant, evaluation } = fields;
  const worker = components.roster.of(key);
  worker.overdue = false;
  if (grant) {
    if (!mayHave(inside, grant, key)) return WAIT;
    handOut(grant, key, now, () => initialMsMax(inside));
    return { kind: 'initialise', grant: grant.id, seed: initialSeedOf(inside) };
  }
  if (!vector.parameters) return WAIT;
  if (evaluation && mayHave(inside, evaluation, key)) {
    handOut(evaluation, key, now, () => evaluationMsMax(inside, key, evaluation.part));
    return evaluationFor(inside, worker, evaluation, key, to);
  }
  if (!isTraining(fields) || fields.ending !== null || !leases) return WAIT;
  if (fields.step === 0 && workersMissingOf(inside) > 0) return WAIT;
  if (mode?.mayPull(key) === false) return WAIT;
  const { nextId } = leases;
  const most = Math.min(ahead, LIMITS.leasesPerWorkerMax);
  const given = leases.grant(key, most, now, minibatchesFor(inside, worker));
  if (given.length === 0) {
    mode?.idle(key);
    return WAIT;
  }
  if (mode) {
    mode.given(key);
    // It may have waited for longer than a minibatch takes.
    leases.extend(key, now);
  }
  if (sent.isUsed) keepSent(inside, key);
  askForSamples(worker, given, nextId, options.config.observe.everySteps);
  worker.sentGeneration = fields.generation;
  worker.sentStep = fields.step;
  const { step, generation } = fields;
  const whole = wholeFor(inside, worker);
  // It needs what has become of the fragment that it has pushed.
  const pushed = worker.fragment;
  const local = localWorkFor(inside, worker);
  const isByFragments = local?.fragment !== undefined;
  const hasBase = whole === null && to?.base === generation;
  const isKnown = whole === null && to?.generation === generation && to.step === step;
  let fragment: number | null = null;
  let payload: Snapshot | null = null;
  let pull: number | null = null;
  if (!isKnown || (isByFragments && !hasBase)) {
    if (isByFragments && hasBase) fragment = pushed;
    const { pull: encoding } = options.config.compression;
    payload = whole ? payloadOf(whole) : vector.parameters.snapshot(encoding);
    pull = vector.sendParts(to, null, whole !== null, fragment);
  }
  const what = { evaluation: null, payload, fragment, step, local, pull };
  return { kind: 'work', leases: given, ...what };
}

function evaluationFor(
  inside: RunInternals,
  worker: RosterWorker,
  evaluation: PendingEvaluation,
  key: string,
  to: SentTo | null,
): Assignment {
  const { leases, vector, mode } = inside.components;
  const { id, part, step, capture } = evaluation;
  mode?.idle(key);
  const values = vector.captured(capture);
  const whole = wholeFor(inside, worker, values);
  return {
    kind: 'work',
    leases: leases?.heldBy(key) ?? [],
    evaluation: { id, part },
    payload: payloadOf(whole ?? values),
    fragment: null,
    step,
    local: null,
    pull: vector.sendParts(to, capture, whole !== null, null),
  };
}

/** The worker is sent the parameters as they are: they are kept for its push. */
function keepSent({ fields, components }: RunInternals, key: string): void {
  const { step, generation } = fields;
  const isHere = (other: string) => components.roster.find(other)?.attached === true;
  const kept = components.sent.send(key, { step, generation }, isHere);
  if (kept) components.vector.remember(kept);
}

/**
 * Frozen tensors travel once, with the first parameters that a worker gets.
 * @returns null: it has them.
 */
function wholeFor(
  { fields, components: { vector } }: RunInternals,
  worker: RosterWorker,
  exchanged?: Float32Array,
): Float32Array | null {
  const isFirst = worker.generation !== fields.generation;
  worker.generation = fields.generation;
  const isNeeded = isFirst && vector.layout!.frozenSize > 0;
  return isNeeded ? vector.mustParameters.whole(exchanged) : null;
}
