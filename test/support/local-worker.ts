import { expect } from 'vitest';
import type { Run } from '../../server/core/run.ts';
import { bytesOf, floatsOf } from '../../shared/codec.ts';
import type { PartialConfig } from '../../shared/config.ts';
import { createLayout } from '../../shared/layout.ts';
import type { Acknowledgement, Lease, LocalWork, Push } from '../../shared/protocol.ts';
import { random, STREAMS } from '../../shared/random.ts';
import { LocalSteps } from '../../worker/local-steps.ts';
import {
  createProblem,
  createRun,
  EXCHANGED,
  examplesOf,
  gradientOf,
  lossOf,
  parametersOf,
  TENSORS,
} from './regression.ts';

/** The production run and a worker's own steps, on least squares in plain arithmetic. */

export const problem = createProblem({ train: 400, validation: 10, test: 10 });
export const LONG = {
  evaluateEverySteps: 100_000,
  earlyStopping: { enabled: false },
  epochsMax: 2,
} as const;
export const TRAINED = EXCHANGED - 1;
const layout = createLayout(TENSORS);

interface Held {
  readonly lease: Lease;
  readonly step: number;
  readonly generation: number;
  readonly theta: Float32Array;
  readonly local: LocalWork | null;
}

/** A worker of a run with local steps, without sockets. */
export class LocalWorker {
  readonly key: string;
  readonly steps: LocalSteps;
  readonly used: string[] = [];
  run: Run;
  held: Held | null = null;
  #sequence = 0;

  constructor(run: Run, key: string) {
    this.key = key;
    this.run = run;
    this.steps = new LocalSteps(run.config, layout);
    this.join(run);
  }

  join(run: Run): void {
    this.run = run;
    const join = { experimentHash: 'hash', tensors: TENSORS, data: problem.summary };
    run.call({ call: 'join', worker: this.key, join, now: 0 });
  }

  /** @returns whether it has a lease. */
  pull(now = 0): boolean {
    const work = this.run.call({ call: 'assign', worker: this.key, ahead: 1, now });
    this.held = null;
    if (work.kind === 'initialise') {
      const draw = random(work.seed, STREAMS.parameters);
      const values = Float32Array.from({ length: EXCHANGED + 1 }, () => draw.normal() * 0.1);
      const { grant } = work;
      const call = { call: 'initialised', worker: this.key, grant, now } as const;
      this.run.call(call, bytesOf(values));
      return this.pull(now);
    }
    if (work.kind !== 'work') return false;
    if (work.evaluation) {
      const { id: evaluation, part } = work.evaluation;
      const loss = lossOf(problem, part, floatsOf(work.payload!.bytes));
      const told = { evaluation, loss, error: loss, examples: examplesOf(problem, part) };
      const result = { type: 'evaluated', run: this.run.id, ...told, metrics: {} } as const;
      this.run.call({ call: 'evaluated', worker: this.key, result, now });
      return this.pull(now);
    }
    const [lease] = work.leases;
    const theta = floatsOf(work.payload!.bytes).slice();
    const { step, local } = work;
    if (lease) this.held = { lease, step, generation: this.run.generation, theta, local };
    return lease !== undefined;
  }

  async push(computeMs = 1, now = 0): Promise<Acknowledgement> {
    const { lease, step, generation, theta, local } = this.held!;
    const { seed } = this.run.config;
    const { loss, payload } = local
      ? (await this.steps.take(lease, theta, local, async (minibatch, at) => {
          const given = gradientOf(problem, seed, minibatch, at);
          return { loss: given.loss, gradient: given.payload, discard: () => {} };
        }))!
      : gradientOf(problem, seed, lease, theta);
    const push: Push = {
      ...{ type: 'push', run: this.run.id, sequence: ++this.#sequence, lease: lease.id },
      ...{ step, generation, loss, computeMs, encoding: 'f32' },
      ...(local && { kind: local.push }),
    };
    const answer = this.run.call({ call: 'push', worker: this.key, push, now }, bytesOf(payload));
    this.steps.settled(answer.outcome);
    if (answer.outcome === 'applied' || answer.outcome === 'damped') {
      for (let i = lease.start; i < lease.start + lease.count; i++) {
        this.used.push(`${lease.epoch}:${i}`);
      }
    }
    return answer;
  }
}

export function begun(config: PartialConfig, workers: number) {
  const run = createRun({ ...LONG, ...config });
  return {
    run,
    workers: Array.from({ length: workers }, (_, i) => new LocalWorker(run, `w${i}/1`)),
  };
}

/** In rounds, or each after the other. */
export async function train({ run, workers }: ReturnType<typeof begun>, until = () => false) {
  while (!run.over && !until()) {
    const busy = workers.filter((worker) => worker.pull());
    if (busy.length === 0 && !run.over) throw new Error(`nothing to do in phase ${run.phase}`);
    for (const worker of busy) if (!run.over) await worker.push();
  }
}

export const trained = (run: Run) => parametersOf(run).slice(0, TRAINED);

export function isNear(seen: Float32Array, wanted: ArrayLike<number>, within: number): void {
  const largest = Math.max(...Array.from(wanted, Math.abs));
  for (const [i, value] of seen.entries()) {
    expect(Math.abs(value - wanted[i]!)).toBeLessThan(within * largest);
  }
}
