import type { RunOptions } from '../../server/core/run/state.ts';
import { Run } from '../../server/core/run.ts';
import { bytesOf, floatsOf } from '../../shared/codec.ts';
import { type PartialConfig, resolveConfig } from '../../shared/config.ts';
import { encodeFacts, packTransform } from '../../shared/data-facts.ts';
import { measuredOf } from '../../shared/message-fields.ts';
import type {
  Acknowledgement,
  DataSummary,
  Join,
  Lease,
  LeasePart,
  Push,
} from '../../shared/protocol.ts';
import { permutation, random, STREAMS } from '../../shared/random.ts';
import { PlacedTensors } from './placed-tensors.ts';

/**
 * Least squares in plain arithmetic: a model small enough that tests of the run need no TensorFlow,
 * and real enough to train, to overfit and to stop early.
 */
export const FEATURES = 6;
export const TENSORS: Join['tensors'] = [
  { name: 'weights', shape: [FEATURES, 1], role: 'trainable' },
  { name: 'bias', shape: [1], role: 'trainable' },
  { name: 'mean', shape: [1], role: 'statistics', momentum: 0.9 },
  { name: 'offset', shape: [1], role: 'frozen' },
];
export const EXCHANGED = FEATURES + 2;

/** What workers tell of the data, as the payload of `join`. */
export const FACTS = encodeFacts({
  transform: packTransform({ kind: 'global', scale: 1, mean: [0.25], deviation: [1 / 3] }),
  inputs: { kind: 'float64', shape: [FEATURES] },
  targets: { kind: 'float64', shape: [] },
  classCount: null,
  ...{ classes: null, inputNames: null, targetNames: ['y'] },
});

export interface Problem {
  readonly inputs: readonly Float64Array[];
  readonly targets: readonly number[];
  readonly summary: DataSummary;
  /** Other names for `TENSORS`. */
  readonly tensors?: Join['tensors'];
}

/** Noisy linear data; few examples, so that the model can overfit. */
export function createProblem(counts = { train: 20, validation: 10, test: 10 }): Problem {
  const draw = random(3, 3);
  const inputs: Float64Array[] = [];
  const targets: number[] = [];
  for (let i = 0; i < counts.train + counts.validation + counts.test; i++) {
    const x = Float64Array.from({ length: FEATURES }, () => draw.normal());
    inputs.push(x);
    targets.push(x[0]! - 2 * x[1]! + 0.5 + 0.5 * draw.normal());
  }
  return {
    inputs,
    targets,
    summary: {
      trainCount: counts.train,
      validationCount: counts.validation,
      testCount: counts.test,
      fingerprint: 'f00d',
      source: 'noisy linear data',
    },
  };
}

export function createRun(config: PartialConfig, id = 'r'): Run {
  const options: RunOptions = {
    id,
    experiment: 'regression',
    experimentHash: 'hash',
    config: resolveConfig({ minibatchSize: 4, learningRate: 0.05, epochsMax: 100 }, config),
    createdAt: '2026-01-01T00:00:00.000Z',
  };
  return new Run(options);
}

function range(problem: Problem, part: LeasePart): { start: number; count: number } {
  const { trainCount, validationCount, testCount } = problem.summary;
  if (part === 'train') return { start: 0, count: trainCount };
  if (part === 'validation') return { start: trainCount, count: validationCount };
  if (part === 'trainAndValidation') return { start: 0, count: trainCount + validationCount };
  return { start: trainCount + validationCount, count: testCount };
}

/** In a part. */
export const examplesOf = (problem: Problem, part: LeasePart) => range(problem, part).count;

/** Gradient and statistics of one minibatch, and its loss. */
export function gradientOf(problem: Problem, seed: number, lease: Lease, theta: Float32Array) {
  const { start, count } = range(problem, lease.part);
  const order = permutation(seed, STREAMS.epoch + lease.epoch, count);
  const payload = new Float32Array(EXCHANGED);
  let loss = 0;
  for (let k = lease.start; k < lease.start + lease.count; k++) {
    const x = problem.inputs[start + order[k]!]!;
    const error = predict(x, theta) - problem.targets[start + order[k]!]!;
    loss += (error * error) / lease.count;
    for (let j = 0; j < FEATURES; j++) payload[j]! += (2 * error * x[j]!) / lease.count;
    payload[FEATURES]! += (2 * error) / lease.count;
    payload[FEATURES + 1]! += x[0]! / lease.count;
  }
  return { payload, loss };
}

export function lossOf(problem: Problem, part: LeasePart, theta: Float32Array): number {
  const { start, count } = range(problem, part);
  let loss = 0;
  for (let i = start; i < start + count; i++) {
    loss += (predict(problem.inputs[i]!, theta) - problem.targets[i]!) ** 2 / count;
  }
  return loss;
}

function predict(x: Float64Array, theta: Float32Array): number {
  let sum = theta[FEATURES]!;
  for (let j = 0; j < FEATURES; j++) sum += theta[j]! * x[j]!;
  return sum;
}

/** A worker without sockets: does what `Run.assign` says, one thing a call. */
export class VirtualWorker {
  readonly key: string;
  readonly #run: Run;
  readonly #problem: Problem;
  #sequence = 0;
  #read: { step: number; generation: number; theta: Float32Array } | null = null;
  readonly #placed: PlacedTensors;
  /** Elements of each payload that was pulled, and of each that was pushed. */
  readonly pulled: number[] = [];
  readonly pushed: number[] = [];
  #leases: Lease[] = [];
  readonly acknowledgements: Acknowledgement[] = [];
  /** Each minibatch whose push was applied, as `epoch:start:part`. */
  readonly applied: string[] = [];

  /** @param facts null: of an older release, which tells none. */
  constructor(run: Run, problem: Problem, key = 'w/1', facts: Uint8Array | null = FACTS) {
    this.#run = run;
    this.#problem = problem;
    this.#placed = new PlacedTensors(TENSORS, run.config);
    this.key = key;
    const own = {
      experimentHash: 'hash',
      tensors: problem.tensors ?? TENSORS,
      data: problem.summary,
    };
    run.call(
      { call: 'join', worker: key, join: facts ? { ...own, facts: 'json' } : own, now: 0 },
      facts ?? undefined,
    );
  }

  /** Minibatches that it has not pushed, the oldest first. */
  protected get leases(): readonly Lease[] {
    return this.#leases;
  }

  /** How many these are. */
  get holds(): number {
    return this.#leases.length;
  }

  /** Gives initial values beside those of the vector. */
  protected begin(_grant: number): void {}

  /** Has pushed once before, in another life of the run. */
  skip(): void {
    this.#sequence++;
  }

  /** Takes the newest parameters and work. @returns whether there was any. */
  pull(now = 0, ahead = 2): boolean {
    const assignment = this.#run.call({ call: 'assign', worker: this.key, ahead, now });
    this.#leases = [];
    if (assignment.kind === 'initialise') {
      const draw = random(assignment.seed, STREAMS.parameters);
      const values = Float32Array.from({ length: EXCHANGED + 1 }, () => draw.normal() * 0.1);
      this.#placed.place(this.#run.frozenGroups ?? []);
      this.begin(assignment.grant);
      this.#run.call(
        { call: 'initialised', worker: this.key, grant: assignment.grant, now },
        bytesOf(this.#placed.packed(values, EXCHANGED + 1)),
      );
      return true;
    }
    if (assignment.kind !== 'work') return false;
    if (assignment.evaluation) {
      const { id, part } = assignment.evaluation;
      const theta = this.#took(floatsOf(assignment.payload!.bytes));
      const loss = measuredOf(lossOf(this.#problem, part, theta));
      const examples = range(this.#problem, part).count;
      this.#run.call({
        call: 'evaluated',
        worker: this.key,
        result: {
          type: 'evaluated',
          run: this.#run.id,
          evaluation: id,
          loss,
          error: loss,
          examples,
          metrics: {},
        },
        now,
      });
      return true;
    }
    this.#read = {
      step: assignment.step,
      generation: this.#run.generation,
      theta: this.#took(floatsOf(assignment.payload!.bytes)),
    };
    this.#leases = assignment.leases;
    return true;
  }

  /** @returns trainable tensors and statistics, as a model without groups has them. */
  #took(payload: Float32Array): Float32Array {
    this.pulled.push(payload.length);
    this.#placed.place(this.#run.frozenGroups ?? []);
    return this.#placed.took(payload);
  }

  /** Computes and pushes one minibatch at the parameters that were pulled last. */
  push(now = 0, change?: (payload: Float32Array) => void): Acknowledgement | null {
    const lease = this.#leases.shift();
    const read = this.#read;
    if (!lease || !read) return null;
    const seed = this.#run.config.seed;
    const { payload: gradient, loss } = gradientOf(this.#problem, seed, lease, read.theta);
    change?.(gradient);
    const payload = this.#placed.packed(gradient, this.#placed.exchangedSize);
    this.pushed.push(payload.length);
    const header = this.tell({
      type: 'push',
      run: this.#run.id,
      sequence: ++this.#sequence,
      lease: lease.id,
      step: read.step,
      generation: read.generation,
      loss: measuredOf(loss),
      computeMs: 1,
      encoding: 'f32',
    });
    if (!header) return null;
    const dressed = this.dress(header, bytesOf(payload), lease);
    const acknowledgement = this.#run.call(
      { call: 'push', worker: this.key, push: dressed.push, now },
      dressed.payload,
    );
    this.acknowledgements.push(acknowledgement);
    if (acknowledgement.outcome === 'applied' || acknowledgement.outcome === 'damped') {
      this.applied.push(`${lease.epoch}:${lease.start}:${lease.part}`);
    }
    return acknowledgement;
  }

  /** A push with what it has beside the gradient of the model. */
  protected dress(
    push: Push,
    payload: Uint8Array,
    _lease: Lease,
  ): { readonly push: Push; readonly payload: Uint8Array } {
    return { push, payload };
  }

  /** The header of a push as it is sent; null: not at all. */
  protected tell(push: Push): Push | null {
    return push;
  }

  /** Pulls and pushes until the run is over or `until` says so. */
  train(until: () => boolean = () => false): void {
    for (let i = 0; i < 100_000; i++) {
      if (this.#run.over || until()) return;
      if (!this.pull()) throw new Error(`nothing to do in phase ${this.#run.phase}`);
      if (this.#run.over || until()) return;
      this.push();
    }
    throw new Error(`the run does not end; phase ${this.#run.phase} at step ${this.#run.step}`);
  }
}

/** The parameters as they are: trainable, statistics and frozen. */
export function parametersOf(run: Run): Float32Array {
  const tensors = run.finalTensors();
  return Float32Array.from(tensors.flatMap((tensor) => [...tensor.values]));
}
