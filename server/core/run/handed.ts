import type { LeasePart } from '../../../shared/protocol.ts';
import { examplesOf } from './course.ts';
import type { Handed, RunInternals } from './state.ts';

/**
 * What one worker alone is asked for, and all others may wait for: an evaluation, the initial parameters. A worker whose
 * computation hangs while its connection lives would hold them up for good, so it has a time for it.
 */

export const toHandOut = (): Handed => ({
  ...{ worker: null, deadline: null },
  ...{ late: [], refused: [] },
});

/** Somebody else may have it. */
export function takeBack(task: Handed): void {
  task.worker = null;
  task.deadline = null;
}

/** An evaluation takes less than gradients of as many examples do. It has so many times as long, beside the time of a lease. */
const EVALUATION_SLACK = 10;
/** Initial parameters, whose time nobody has measured, have the time of so many leases. */
const INITIAL_LEASES = 10;

/** Examples that an evaluation of a part measures. */
export function examplesMeasured({ options, fields }: RunInternals, part: LeasePart): number {
  const { evaluateTraining } = options.config;
  return examplesOf(fields.data!, part) + (part === 'validation' ? evaluateTraining : 0);
}

/** How long a worker has for an evaluation, ms. Each worker that was late doubles it, since all may be slow. */
export function evaluationMsMax(inside: RunInternals, key: string, part: LeasePart): number {
  const { options, components } = inside;
  const minibatches = Math.ceil(examplesMeasured(inside, part) / options.config.minibatchSize);
  const leaseMs = leaseMsOf(inside);
  let slowest = components.roster.find(key)?.computeMsRecent ?? null;
  if (slowest === null) {
    for (const { computeMsRecent: ms } of components.roster.values()) {
      if (ms !== null) slowest = Math.max(slowest ?? 0, ms);
    }
  }
  const each = slowest === null ? leaseMs : EVALUATION_SLACK * slowest;
  return leaseMs + minibatches * each;
}

export const initialMsMax = (inside: RunInternals): number => INITIAL_LEASES * leaseMsOf(inside);

const leaseMsOf = ({ options }: RunInternals) => options.config.leaseSeconds * 1_000;

/**
 * Whether this worker may have it now, or has it. One that was late has to leave it to another, if there is one that will
 * ask for work: a computation that hangs never ends. One that has given what cannot be used would give the same again.
 */
export function mayHave({ components }: RunInternals, task: Handed, key: string): boolean {
  if (task.worker !== null) return task.worker === key;
  if (isRefused(task, key)) return false;
  if (!task.late.includes(key)) return true;
  for (const other of components.roster.keys()) {
    const { attached, overdue } = components.roster.of(other);
    if (attached && !overdue && !task.late.includes(other) && !isRefused(task, other)) return false;
  }
  return true;
}

const isRefused = ({ refused }: Handed, key: string) => refused.some(([other]) => other === key);

/** What its worker has given cannot be used. */
export function refuseFrom(task: Handed, why: string): void {
  if (task.worker !== null) task.refused = [...task.refused, [task.worker, why]];
  takeBack(task);
}

/** Why nobody can have it: all who are connected have given what cannot be used. Null: somebody can, or nobody is connected. */
export function hopelessWhy({ components }: RunInternals, task: Handed): string | null {
  const last = task.refused.at(-1);
  if (!last || task.worker !== null) return null;
  const here = [...components.roster.keys()].filter((key) => components.roster.of(key).attached);
  return here.length > 0 && here.every((key) => isRefused(task, key)) ? last[1] : null;
}

/** Whether an answer of this worker is used: it has the task, or had it and was late. */
export const evaluates = ({ worker, late }: Handed, key: string): boolean =>
  worker === key || late.includes(key);

/** It is this worker's from now on. @param ms that it has, if it did not have it already. */
export function handOut(task: Handed, worker: string, now: number, ms: () => number): void {
  if (task.worker === worker && task.deadline !== null) return;
  task.worker = worker;
  task.deadline = now + ms() * 2 ** task.late.length;
}

/** @returns who was late, so that somebody else may have it; null: nobody was. */
export function takeLate(task: Handed, now: number): string | null {
  const { worker, deadline, late } = task;
  if (worker === null || deadline === null || deadline > now) return null;
  task.late = late.includes(worker) ? late : [...late, worker];
  takeBack(task);
  return worker;
}
