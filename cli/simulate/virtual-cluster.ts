import { Run, type RunOptions } from '../../server/core/run.ts';
import { bytesOf, floatsOf } from '../../shared/codec.ts';
import { type PartialConfig, resolveConfig } from '../../shared/config.ts';
import type { DataSummary, Join, Lease, Part } from '../../shared/protocol.ts';
import { type Random, random } from '../../shared/random.ts';

/**
 * A run with any number of workers in virtual time: the server's own `Run` with its kernels, real gradients at the
 * parameters that each worker was sent, and a clock that jumps from one event to the next. Equal to the bit for
 * equal options.
 */

/** What the virtual workers train. */
export interface VirtualProblem {
  readonly tensors: Join['tensors'];
  readonly data: DataSummary;
  /** Initial parameters, shape [layout.size]. */
  initialise(seed: number): Float32Array;
  /**
   * @param parameters shape [exchangedSize], to be read during the call only.
   * @param payload where gradient and statistics go, shape [exchangedSize].
   * @param seed of this minibatch: dropout draws from it. @returns the loss.
   */
  gradient(lease: Lease, parameters: Float32Array, payload: Float32Array, seed: number): number;
  evaluate(part: Part, parameters: Float32Array): { loss: number; error: number };
}

export interface VirtualClusterOptions {
  readonly problem: VirtualProblem;
  readonly config: PartialConfig;
  readonly workers: number;
  /** How long one minibatch takes a worker, ms. */
  readonly computeMs: (draw: Random, worker: number) => number;
  /** How long an evaluation takes, ms. */
  readonly evaluationMs?: number;
  /** Of the compute times; the run has its own. */
  readonly seed: number;
  /** Is called after each applied update. */
  readonly onStep?: (run: Run, nowMs: number) => void;
}

/** Γ(100) with this mean: what like machines need for like work, CV 0.1. */
export const gammaMs =
  (meanMs: number, shape = 100) =>
  (draw: Random): number => {
    let sum = 0;
    for (let i = 0; i < shape; i++) sum -= Math.log(1 - draw.uniform());
    return (sum * meanMs) / shape;
  };

/** Memoryless, CV 1: shared machines that are interrupted at any moment. */
export const exponentialMs =
  (meanMs: number) =>
  (draw: Random): number =>
    -meanMs * Math.log(1 - draw.uniform());

interface VirtualWorker {
  readonly key: string;
  readonly index: number;
  /** Shape [exchangedSize]. */
  readonly payload: Float32Array;
  sequence: number;
  /** What it will say when the time has come; null: it has nothing to do. */
  act: ((nowMs: number) => void) | null;
}

const TICK_MS = 1_000;
/** Ends a simulation in which nothing happens any more. */
const STREAM = 77;

/** Trains to the end. @returns the run and how long it took, in virtual ms. */
export function simulateRun(options: VirtualClusterOptions): { run: Run; nowMs: number } {
  const { problem, computeMs, evaluationMs = 0 } = options;
  const config = resolveConfig(options.config);
  const told: RunOptions = {
    id: 'virtual',
    experiment: 'virtual',
    experimentHash: 'virtual',
    config,
    createdAt: '2026-01-01T00:00:00.000Z',
  };
  const run = new Run(told);
  const draw = random(options.seed, STREAM);
  const exchanged = problem.tensors
    .filter(({ role }) => role !== 'frozen')
    .reduce((sum, { shape }) => sum + shape.reduce((product, d) => product * d, 1), 0);
  const workers = Array.from({ length: options.workers }, (_, index): VirtualWorker => {
    const payload = new Float32Array(exchanged);
    return { key: `w${index}/1`, index, payload, sequence: 0, act: null };
  });
  const queue = new EventQueue<VirtualWorker>();
  const idle = new Set<VirtualWorker>();
  let nowMs = 0;

  const begin = (worker: VirtualWorker): void => {
    const assignment = run.call({ call: 'assign', worker: worker.key, ahead: 1, now: nowMs });
    if (assignment.kind === 'end') return;
    if (assignment.kind === 'wait') {
      idle.add(worker);
      return;
    }
    if (assignment.kind === 'initialise') {
      const { grant, seed } = assignment;
      worker.act = (now) =>
        run.call(
          { call: 'initialised', worker: worker.key, grant, now },
          bytesOf(problem.initialise(seed)),
        );
      queue.push(nowMs, worker);
      return;
    }
    const { evaluation, step } = assignment;
    const parameters = floatsOf(assignment.payload.bytes);
    if (evaluation) {
      const { id, part } = evaluation;
      const { loss, error } = problem.evaluate(part, parameters);
      const { trainCount, validationCount, testCount } = problem.data;
      const counts = { train: trainCount, validation: validationCount, test: testCount };
      const examples = { ...counts, trainAndValidation: trainCount + validationCount }[part];
      worker.act = (now) =>
        run.call({
          call: 'evaluated',
          worker: worker.key,
          result: {
            type: 'evaluated',
            run: run.id,
            evaluation: id,
            loss,
            error,
            examples,
            metrics: {},
          },
          now,
        });
      queue.push(nowMs + evaluationMs, worker);
      return;
    }
    const lease = assignment.leases[0]!;
    const { generation } = run;
    const seed = (worker.index + 1) * 1_000_003 + worker.sequence;
    const loss = problem.gradient(lease, parameters, worker.payload, seed);
    const duration = computeMs(draw, worker.index);
    worker.act = (now) => {
      const before = run.step;
      run.call(
        {
          call: 'push',
          worker: worker.key,
          push: {
            type: 'push',
            run: run.id,
            sequence: ++worker.sequence,
            lease: lease.id,
            step,
            generation,
            loss: Number.isFinite(loss) ? loss : null,
            computeMs: duration,
            encoding: 'f32',
          },
          now,
        },
        bytesOf(worker.payload),
      );
      if (run.step > before) options.onStep?.(run, now);
    };
    queue.push(nowMs + duration, worker);
  };

  for (const { key } of workers) {
    const { tensors, data } = problem;
    run.call({
      call: 'join',
      worker: key,
      join: { experimentHash: 'virtual', tensors, data },
      now: 0,
    });
  }
  for (const worker of workers) begin(worker);
  let ticked = 0;
  while (!run.over) {
    const next = queue.pop();
    if (!next) throw new Error(`nothing happens any more in phase ${run.phase}`);
    const { at, item: worker } = next;
    nowMs = at;
    for (; ticked + TICK_MS <= nowMs; ticked += TICK_MS)
      run.call({ call: 'tick', now: ticked + TICK_MS });
    worker.act?.(nowMs);
    worker.act = null;
    const woken = run.takeEvents().some(({ kind }) => kind === 'wake');
    begin(worker);
    if (!woken) continue;
    const waiting = [...idle];
    idle.clear();
    for (const other of waiting)
      if (other !== worker) begin(other);
      else idle.add(other);
  }
  return { run, nowMs };
}

/** Earliest first; of those at one time, the one that came first. */
class EventQueue<T> {
  readonly #items: { readonly at: number; readonly order: number; readonly item: T }[] = [];
  #order = 0;

  push(at: number, item: T): void {
    const items = this.#items;
    const entry = { at, order: this.#order++, item };
    let i = items.push(entry) - 1;
    while (i > 0) {
      const parent = (i - 1) >> 1;
      if (!isBefore(entry, items[parent]!)) break;
      items[i] = items[parent]!;
      i = parent;
    }
    items[i] = entry;
  }

  pop(): { readonly at: number; readonly item: T } | undefined {
    const items = this.#items;
    const first = items[0];
    const last = items.pop();
    if (!first || !last || items.length === 0) return first;
    let i = 0;
    for (;;) {
      let child = 2 * i + 1;
      if (child >= items.length) break;
      const right = items[child + 1];
      if (right && isBefore(right, items[child]!)) child++;
      if (!isBefore(items[child]!, last)) break;
      items[i] = items[child]!;
      i = child;
    }
    items[i] = last;
    return first;
  }
}

type Timed = { readonly at: number; readonly order: number };
const isBefore = (a: Timed, b: Timed) => a.at < b.at || (a.at === b.at && a.order < b.order);
