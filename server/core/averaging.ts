import type { RunConfig } from '../../shared/config.ts';
import { type Memory, regionBytes } from '../../shared/memory.ts';
import type { Kernels } from './kernels.ts';

/**
 * An average of the parameters over steps: what is evaluated and kept instead of the last ones.
 * Deep Learning §8.7.3. One pass over memory a step, nothing allocated.
 */
export interface Average {
  /**
   * Parameters after an update are there to be taken in.
   * @param phaseStep of that update, from 1. @returns whether they count.
   */
  begin(phaseStep: number): boolean;
  /**
   * Takes in elements [start, end) of them, each once. @param parameters shape [n], with a room in its
   * memory. @param start a multiple of 4, and `end` too unless it is n.
   */
  take(parameters: Float32Array, start: number, end: number): void;
  /** The update that has begun does not count after all. What was taken in of it stays. */
  withdraw(): void;
  /** The average, shape [n]; live. Meaningless while `count` is 0. */
  readonly values: Float32Array;
  /** Updates that were taken in. */
  readonly count: number;
  /** Live state by symbol, each of shape [n], `values` among them: what a checkpoint must keep. */
  readonly slots: Readonly<Record<string, Float32Array>>;
  /** The rest of what a checkpoint must keep. */
  state(): AverageState;
  /** Continues from a checkpoint, once the slots are set. */
  restore(state: AverageState): void;
  /** Forgets all, as for fresh parameters. */
  reset(): void;
}

export interface AverageState {
  readonly count: number;
}

/** Where the kernels of `server/kernels` do the work. */
export interface AverageRoom {
  readonly memory: Memory;
  readonly kernels: Kernels;
}

/** Symbols of the `slots` of an average. */
export function averageSymbols({ kind }: RunConfig['averaging']): readonly string[] {
  return { none: [], ema: ['a'], polyak: ['a', 'c'] }[kind];
}

/** What `createAverage` takes of a memory. */
export function averageBytes(config: RunConfig['averaging'], n: number): number {
  return averageSymbols(config).length * regionBytes(4 * n);
}

/** @param room absent: in plain TypeScript, the reference. @returns null: none is wanted. */
export function createAverage(
  config: RunConfig['averaging'],
  n: number,
  room?: AverageRoom,
): Average | null {
  switch (config.kind) {
    case 'none':
      return null;
    case 'ema':
      return exponential(config.decay, n, room);
    case 'polyak':
      return polyak(config.startStep, n, room);
  }
}

/** A slot and its address, 0 outside of a memory. */
function createSlot(n: number, room?: AverageRoom): { values: Float32Array; address: number } {
  if (!room) return { values: new Float32Array(n), address: 0 };
  const address = room.memory.take(4 * n);
  return { values: room.memory.floats(address, n), address };
}

/**
 * a ← d a + (1 − d) θ with d = min(decay, (1 + t) / (10 + t)) after t updates, and a = θ after the
 * first. With d = decay from the start, half of the average after 700 steps at 0.999 would still be
 * the first parameters, and early evaluations would judge those; like this it reaches back over
 * about the last tenth of the run, until `decay` is the shorter memory. (Dividing by 1 − decayᵗ
 * instead, as Adam does, would weight the first steps, the worst ones, like all others.)
 */
function exponential(decay: number, n: number, room?: AverageRoom): Average {
  const { values: a, address } = createSlot(n, room);
  let count = 0;
  let d = 0;
  return {
    values: a,
    slots: { a },
    get count() {
      return count;
    },
    begin() {
      d = count === 0 ? 0 : Math.min(decay, (1 + count) / (10 + count));
      count++;
      return true;
    },
    withdraw() {
      count--;
    },
    take(theta, start, end) {
      if (room) {
        const at = 4 * start;
        room.kernels.ema(address + at, theta.byteOffset + at, end - start, d, 1 - d);
      } else for (let i = start; i < end; i++) a[i] = d * a[i]! + (1 - d) * theta[i]!;
    },
    state: () => ({ count }),
    restore(state) {
      count = state.count;
    },
    reset() {
      a.fill(0);
      count = 0;
    },
  };
}

/**
 * The plain mean of the parameters at `startStep` and all later steps (Polyak and Juditsky 1992):
 * a ← a + (θ − a) / t with the t-th. After a million steps an addition is too small for float32 to
 * hold (measured: a mean of parameters that drift by 5 % was 1.8 % off), so c keeps what rounding
 * takes from a.
 */
function polyak(startStep: number, n: number, room?: AverageRoom): Average {
  const { values: a, address } = createSlot(n, room);
  const { values: c, address: rest } = createSlot(n, room);
  let count = 0;
  return {
    values: a,
    slots: { a, c },
    get count() {
      return count;
    },
    begin(phaseStep) {
      if (phaseStep < startStep) return false;
      count++;
      return true;
    },
    withdraw() {
      count--;
    },
    take(theta, start, end) {
      if (room) {
        const at = 4 * start;
        const { byteOffset } = theta;
        room.kernels.polyak(address + at, rest + at, byteOffset + at, end - start, 1 / count);
        return;
      }
      for (let i = start; i < end; i++) {
        const before = a[i]! + c[i]!;
        const mean = before + (theta[i]! - before) / count;
        const stored = Math.fround(mean);
        a[i] = stored;
        c[i] = mean - stored;
      }
    },
    state: () => ({ count }),
    restore(state) {
      count = state.count;
    },
    reset() {
      a.fill(0);
      c.fill(0);
      count = 0;
    },
  };
}
