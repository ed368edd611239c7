import { DownpourError } from '../../../shared/errors.ts';
import type { Observed } from '../../../shared/observed.ts';
import { isOver } from '../../../shared/phases.ts';
import { checkAgreement, type Joining } from '../agreement.ts';
import { initialSeedOf } from './course.ts';
import { giveBack } from './evaluations.ts';
import { evaluationMsMax, handOut, takeBack, takeLate } from './handed.ts';
import { type RunInternals, secondsOf } from './state.ts';

/** Workers come and go, and what they have is taken back in time. Where others may have work then, it is told. */

/** A worker whose connection is lost has so long to come back before its work is given away. */
export const GRACE_MS = 5_000;

/** @throws DownpourError of `checkAgreement`. */
export function mustAgree({ options, fields, components }: RunInternals, worker: Joining): void {
  const { experiment, experimentHash, fork } = options;
  const { data, facts, originData } = fields;
  const origin = fork ? { run: fork.run, data: originData } : null;
  const takesOtherData = fork?.data === 'other';
  const own = { experiment, experimentHash, layout: components.vector.layout };
  checkAgreement({ ...own, data, facts, origin, takesOtherData }, worker);
}

/** It is here, perhaps again. @param now see `RunCall`. */
export function attend(inside: RunInternals, worker: string, now: number): void {
  const { fields, components } = inside;
  const record = components.roster.of(worker);
  record.attached = true;
  record.overdue = false;
  record.generation = -1;
  components.correction.arrived(worker);
  components.mode?.arrived(worker);
  components.leases?.extend(worker, now);
  const { evaluation } = fields;
  if (evaluation?.worker !== worker) return;
  evaluation.deadline = null;
  handOut(evaluation, worker, now, () => evaluationMsMax(inside, worker, evaluation.part));
}

/** @returns whether others may have work. */
export function detach(inside: RunInternals, worker: string, now: number): boolean {
  const { fields, components } = inside;
  const { evaluation } = fields;
  components.roster.detach(worker);
  components.robust.left(worker);
  components.correction.departed(worker, now);
  components.mode?.departed(worker, now);
  components.leases?.hasten(worker, now + GRACE_MS);
  if (evaluation?.worker === worker && evaluation.deadline !== null) {
    evaluation.deadline = Math.min(evaluation.deadline, now + GRACE_MS);
  }
  return takeGrant(inside, worker);
}

/** @returns whether others may have work. */
export function leave(inside: RunInternals, worker: string): boolean {
  const { fields, components } = inside;
  components.roster.detach(worker);
  components.robust.left(worker);
  components.correction.left(worker);
  components.mode?.left(worker);
  const leases = components.leases?.release(worker) ?? 0;
  const hadEvaluation = giveBack(fields, worker);
  return takeGrant(inside, worker) || hadEvaluation || leases > 0;
}

/** Another one may make the initial parameters. @returns whether this one was asked for them. */
function takeGrant(inside: RunInternals, worker: string): boolean {
  const { grant } = inside.fields;
  if (grant?.worker !== worker) return false;
  takeBack(grant);
  letGoOfInitial(inside);
  return true;
}

/** Who was asked for initial parameters gives no more of them: none of its rows stays, since the next one may have others. */
export function letGoOfInitial(inside: RunInternals): void {
  inside.components.vector.resetRows(initialSeedOf(inside));
}

/** Nobody's time ran. */
export function postpone({ fields, components }: RunInternals, ms: number): void {
  components.leases?.postpone(ms);
  components.mode?.postpone(ms);
  for (const task of [fields.evaluation, fields.grant]) {
    if (task?.deadline != null) task.deadline += ms;
  }
}

/** @param tell a line for the user. @returns whether others may have work. */
export function tick(inside: RunInternals, now: number, tell: (text: string) => void): boolean {
  const { options, fields, components } = inside;
  components.correction.tick(now);
  components.mode?.tick(now);
  let freed = components.leases?.expire(now, (worker) => overdue(components, worker)) ?? 0;
  const { evaluation, grant } = fields;
  for (const task of [evaluation, grant]) {
    const late = task && takeLate(task, now);
    if (!late) continue;
    freed++;
    if (task === grant) letGoOfInitial(inside);
    // Who is away has been told of already.
    if (components.roster.find(late)?.attached !== true) continue;
    const what =
      task === grant ? 'initial parameters' : `the evaluation of step ${evaluation!.step}`;
    tell(
      `worker ${late} is connected, but has not sent ${what} in time (it goes by what minibatches take, and by leaseSeconds ${options.config.leaseSeconds}): another worker is asked; if this repeats, restart that worker`,
    );
  }
  return freed > 0;
}

/**
 * No minibatch is out any more. A lease that is gone has no deadline that could show its worker late: those that compute
 * one now are not waited for until they ask again, which they may never do.
 */
export function takeBackAll({ components }: RunInternals): void {
  const { roster, leases } = components;
  for (const worker of roster.keys()) {
    if (leases && leases.release(worker) > 0) overdue(components, worker);
  }
}

/** A minibatch of it was taken back: nobody waits for it until it asks for work. */
function overdue({ roster, mode }: RunInternals['components'], worker: string): void {
  const record = roster.find(worker);
  if (record) record.overdue = true;
  mode?.late(worker);
}

/** All work is taken back; those that had it are here still. */
export function pause(inside: RunInternals): void {
  const { evaluation, grant } = inside.fields;
  takeBackAll(inside);
  if (evaluation) takeBack(evaluation);
  if (!grant) return;
  takeBack(grant);
  letGoOfInitial(inside);
}

/**
 * Keeps what a worker has sampled, where one of its leases has asked for it.
 * @returns whether one has. @throws DownpourError DP_LAYOUT_MISMATCH.
 */
export function takeSample(
  { options, fields, components }: RunInternals,
  worker: string,
  observed: Observed,
  now: number,
): boolean {
  const { roster, observations, vector, robust } = components;
  const record = roster.find(worker);
  if (isOver(fields.phase) || !vector.layout || !record || record.samplesDue === 0) return false;
  if (robust.quarantine(worker) !== null) return false;
  record.samplesDue--;
  const known = new Set(vector.layout.tensors.map(({ name }) => name));
  const strange = observed.tensors.find(({ name }) => !known.has(name));
  if (strange) {
    throw new DownpourError(
      'DP_LAYOUT_MISMATCH',
      `a sample is of tensor '${strange.name}', which run ${options.id} does not have`,
    );
  }
  observations.sampled(observed, secondsOf(fields, now));
  return true;
}
