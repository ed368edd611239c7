import type { LostNote, RunEvent, Seen } from './calls.ts';
import { type RunFields, stepsLost } from './state.ts';

/**
 * Lives of the server that have held a run, and what was lost with them: updates that were applied after a checkpoint,
 * by a life that ended before the next one. Each life has numbers of its own, so that what was computed or leased in
 * one is never taken for something of another.
 */

/** More generations than one life of the server ever has. */
export const GENERATIONS_A_LIFE = 2 ** 20;
/** Steps after a checkpoint that a worker is believed to have seen: 20,000 a second for 8 minutes. */
const SEEN_AHEAD_MAX = 10_000_000;

/** @param lives of the server that have passed. */
export function passLives(fields: RunFields, lives: number): void {
  fields.generation += lives * GENERATIONS_A_LIFE;
  fields.firstGeneration = fields.generation;
}

/** A worker may believe what it likes. */
export function isBelievable({ restored }: RunFields, seen: Seen): boolean {
  return seen.step - restored.step <= SEEN_AHEAD_MAX;
}

/** @returns what is news in it; null: nothing. */
export function learnLost(fields: RunFields, seen: Seen): RunEvent | null {
  const { step, generation, firstGeneration } = fields.restored;
  // Lives before the checkpoint was written: what they lost was counted by those after them.
  if (seen.generation < firstGeneration || seen.generation >= fields.firstGeneration) return null;
  const life = Math.max(0, Math.floor((seen.generation - generation) / GENERATIONS_A_LIFE));
  const steps = seen.step - step;
  const before = fields.lost.find(([other]) => other === life)?.[1] ?? 0;
  if (steps <= before) return null;
  setLost(fields, life, steps);
  return { kind: 'lost', steps, restored: step };
}

export function recallLost(fields: RunFields, { base, lost, total }: LostNote): void {
  const { step, generation } = fields.restored;
  if (base.step === step && base.generation === generation) {
    for (const [life, steps] of lost) {
      const before = fields.lost.find(([other]) => other === life)?.[1] ?? 0;
      setLost(fields, life, Math.max(steps, before));
    }
  }
  // That life began with another checkpoint: what it learnt is of lives before the one of this checkpoint.
  fields.stepsLost += Math.max(0, total - stepsLost(fields));
}

function setLost(fields: RunFields, life: number, steps: number): void {
  const isKnown = fields.lost.some(([other]) => other === life);
  fields.lost = isKnown
    ? fields.lost.map((each) => (each[0] === life ? [life, steps] : each))
    : [...fields.lost, [life, steps]];
}

/** Lost steps that this life has not made up for yet. */
export function stepsBehind({ lost, restored, step }: RunFields): number {
  const ahead = Math.max(0, ...lost.map(([, steps]) => steps));
  return Math.max(0, restored.step + ahead - step);
}

/** How far a run has come, and all that it knows of lost steps: what the next life must not forget. */
export function runProgress(fields: RunFields): Seen & LostNote {
  const { step, generation, restored, lost } = fields;
  const base = { step: restored.step, generation: restored.generation };
  return { step, generation, base, lost, total: stepsLost(fields) };
}
