import type { Acknowledgement, Push } from '../../shared/protocol.ts';

/**
 * What is counted since this process began, for Prometheus: there a counter that falls is one of a new process.
 * So what a restart restores of a run (`pushes` of its summary) is none of it, and is not counted again.
 */

/** Counts of values by upper bounds. */
export class Counted {
  /** Rising; beyond the last there is one more count. */
  readonly bounds: readonly number[];
  /** Entry i counts the values at most bound i and above the bound before it. */
  readonly counts: number[];
  sum = 0;

  constructor(bounds: readonly number[]) {
    this.bounds = bounds;
    this.counts = new Array<number>(bounds.length + 1).fill(0);
  }

  add(value: number): void {
    let i = 0;
    while (i < this.bounds.length && value > this.bounds[i]!) i++;
    this.counts[i]!++;
    this.sum += value;
  }
}

/** Steps; most runs have a staleness of about the number of their workers. */
const STALENESS = [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512];
/** Seconds, three a decade. */
const GRADIENT = [
  0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60, 120,
];
const APPLY = [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1];
const WRITE = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120];
const LAG = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10];

/** Counts the pushes of one run. */
export class PushCounts {
  readonly outcomes = { applied: 0, damped: 0, duplicate: 0, rejected: 0 };
  /** Steps, of those applied. */
  readonly staleness = new Counted(STALENESS);
  /** What workers say that the gradient took them, of those applied. */
  readonly gradientSeconds = new Counted(GRADIENT);
  /** From the whole push to its answer, of all; others wait meanwhile. */
  readonly applySeconds = new Counted(APPLY);

  answered(push: Push, { outcome, staleness }: Acknowledgement, seconds: number): void {
    this.outcomes[outcome]++;
    this.applySeconds.add(seconds);
    if (outcome !== 'applied' && outcome !== 'damped') return;
    this.staleness.add(staleness);
    this.gradientSeconds.add(push.computeMs / 1000);
  }
}

/** Counts the checkpoints of one run. */
export class WriteCounts {
  /** From the copy of the moment until all of it is on disk. */
  readonly seconds = new Counted(WRITE);
  /** Checkpoints and records that could not be written; each is tried again. */
  failed = 0;
}

const LAG_EVERY_MS = 250;

/** How late timers are: as late is whatever else waits for the only thread. */
export class Lag {
  readonly seconds = new Counted(LAG);
  readonly #timer: NodeJS.Timeout;

  /** @param now monotonic, ms. */
  constructor(now: () => number) {
    let due = now() + LAG_EVERY_MS;
    this.#timer = setInterval(() => {
      this.seconds.add(Math.max(0, now() - due) / 1000);
      due = now() + LAG_EVERY_MS;
    }, LAG_EVERY_MS);
    this.#timer.unref();
  }

  close(): void {
    clearInterval(this.#timer);
  }
}
