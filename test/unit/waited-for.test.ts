import { describe, expect, test } from 'vitest';
import { Run } from '../../server/core/run.ts';
import type { PartialConfig } from '../../shared/config.ts';
import { createProblem, createRun, VirtualWorker } from '../support/regression.ts';

/**
 * Nobody waits for a worker whose minibatch is gone. One falls silent while it computes, and its connection stays: at
 * whatever moment that is, in whatever mode, the others go on, and it takes part again when it comes back.
 */

const problem = createProblem({ train: 400, validation: 10, test: 10 });
const LEASE_SECONDS = 10;

const MODES = [
  { mode: 'async' },
  { mode: 'bounded', aheadMax: 0 },
  { mode: 'bounded', aheadMax: 2 },
  { mode: 'bounded', aheadMax: 1, depth: 2 },
  { mode: 'synchronous' },
  { mode: 'backup', spares: 1 },
  { mode: 'backup', quorum: 3, graceMs: 300 },
  { mode: 'buffered', bufferSize: 3 },
] as const satisfies readonly PartialConfig['consistency'][];

/** Three workers as a server has them: one that has nothing to do is asked again after a `wake` alone. */
class Cluster {
  run: Run;
  others: VirtualWorker[];
  silent: VirtualWorker;
  now = 0;
  readonly #waiting = new Set<VirtualWorker>();

  constructor(config: PartialConfig) {
    this.run = createRun({
      ...{ evaluateEverySteps: 4, leaseSeconds: LEASE_SECONDS, epochsMax: 50 },
      ...config,
    });
    const [silent, a, b] = ['s/1', 'a/1', 'b/1'].map((key) => this.#join(key));
    this.silent = silent!;
    this.others = [a!, b!];
  }

  #join(key: string): VirtualWorker {
    return new VirtualWorker(this.run, problem, key);
  }

  #act(worker: VirtualWorker): void {
    if (!worker.pull(this.now)) this.#waiting.add(worker);
    else worker.push(this.now);
    this.hear();
  }

  /** Wakes those that wait where the run says so. */
  hear(): void {
    if (this.run.takeEvents().some(({ kind }) => kind === 'wake')) this.#waiting.clear();
  }

  #turn(workers: readonly VirtualWorker[]): void {
    this.now += 250;
    for (const worker of workers) if (!this.#waiting.has(worker)) this.#act(worker);
    this.run.call({ call: 'tick', now: this.now });
    this.hear();
  }

  /** One of the others has a validation to do, the second one of the run; the silent worker computes. */
  begin(evaluation: 1 | 2 = 2): (loss: number | null) => void {
    const { run, silent, others } = this;
    const [evaluator, other] = others;
    const isDue = () =>
      run.state(this.now).evaluationDue && run.metrics().evaluations.length === evaluation - 1;
    for (let i = 0; i < 1_000 && !isDue(); i++) {
      this.now += 250;
      for (const worker of [silent, ...others]) {
        if (!isDue() && !this.#waiting.has(worker)) this.#act(worker);
      }
    }
    const key = evaluator!.key;
    const work = run.call({ call: 'assign', worker: key, ahead: 2, now: this.now });
    if (work.kind !== 'work' || !work.evaluation) throw new Error(`no evaluation: ${work.kind}`);
    this.hear();
    for (let i = 0; i < 10 && !silent.pull(this.now); i++) this.#act(other!);
    expect(silent.holds).toBeGreaterThan(0);
    const { id } = work.evaluation;
    return (loss) => {
      const result = {
        ...({ type: 'evaluated', run: 'r', evaluation: id, loss, error: loss } as const),
        ...{ examples: 10, metrics: {} },
      };
      run.call({ call: 'evaluated', worker: key, result, now: this.now });
      this.hear();
    };
  }

  /** What the silent worker was asked for when it hung. */
  asked: { readonly id: number; readonly examples: number; readonly at: number } | null = null;

  /** All train until the silent one is asked for an evaluation of this part, which it does not answer. */
  hangsWith(wanted: 'validation' | 'train' | 'test'): void {
    const { run, silent, others } = this;
    const isDue = () =>
      run.state(this.now).evaluationDue || ['measuring', 'testing'].includes(run.phase);
    for (let i = 0; i < 4_000 && !this.asked; i++) {
      this.now += 250;
      if (isDue()) this.#evaluates(wanted);
      for (const worker of [silent, ...others]) {
        if (!isDue() && !this.#waiting.has(worker)) this.#act(worker);
      }
    }
    if (!this.asked) throw new Error(`no evaluation of ${wanted}: ${run.phase}`);
    run.takeEvents();
  }

  /** Those of another part than the wanted one it answers, the second one so badly that training stops. */
  #evaluates(wanted: 'validation' | 'train' | 'test'): void {
    const { run, silent, now } = this;
    const work = run.call({ call: 'assign', worker: silent.key, ahead: 2, now });
    if (work.kind !== 'work' || !work.evaluation) throw new Error(`no evaluation: ${work.kind}`);
    const { id, part } = work.evaluation;
    const { trainCount: train, validationCount: validation, testCount: test } = problem.summary;
    const examples = { train, validation, test, trainAndValidation: train + validation }[part];
    this.asked = part === wanted ? { id, examples, at: now } : null;
    if (!this.asked) {
      const loss = run.metrics().evaluations.length === 0 ? 0.5 : WORSE;
      const result = {
        ...({ type: 'evaluated', run: 'r', evaluation: id, loss, error: loss } as const),
        ...{ examples, metrics: {} },
      };
      run.call({ call: 'evaluated', worker: silent.key, result, now });
    }
    this.hear();
  }

  /** The others leave, as they do when a run is stopped, and others come. */
  replaceOthers(): void {
    for (const { key } of this.others) this.run.call({ call: 'leave', worker: key });
    this.others = ['c/1', 'd/1'].map((key) => this.#join(key));
  }

  /** The server is killed, or its standby takes over. Those that are there come back. */
  restart(): void {
    const { run, now } = this;
    this.run = Run.restore(JSON.parse(JSON.stringify(run.state(now))), run.tensors());
    this.others = ['c/1', 'd/1'].map((key) => this.#join(key));
    this.#waiting.clear();
  }

  /** The others alone. */
  goOn(until: () => boolean, seconds: number): boolean {
    for (let i = 0; i < 4 * seconds && !until(); i++) this.#turn(this.others);
    return until();
  }

  together(until: () => boolean, seconds: number): boolean {
    for (let i = 0; i < 4 * seconds && !until(); i++) this.#turn([this.silent, ...this.others]);
    return until();
  }
}

const stops = (afterStop: 'restore' | 'retrain' | 'continue'): PartialConfig => ({
  earlyStopping: { patience: 1, afterStop, continueStepsMax: 40 },
});
const WORSE = 1e9;
const appliedOf = (run: Run, key: string) => run.workerTally(key).pushes.applied;

const MOMENTS: readonly (readonly [
  name: string,
  config: PartialConfig,
  happens: (cluster: Cluster) => void,
])[] = [
  ['training goes on', {}, (cluster) => cluster.begin()(0.5)],
  [
    'training ends, and the best is restored',
    stops('restore'),
    (cluster) => cluster.begin()(WORSE),
  ],
  [
    '`continue` begins to measure, and refits',
    stops('continue'),
    (cluster) => cluster.begin()(WORSE),
  ],
  ['`retrain` begins', stops('retrain'), (cluster) => cluster.begin()(WORSE)],
  ['it goes back to the best', {}, (cluster) => cluster.begin()(null)],
  ['it goes back to the start', {}, (cluster) => cluster.begin(1)(null)],
  [
    'it is stopped and resumed at once',
    {},
    (cluster) => {
      cluster.begin()(0.5);
      cluster.run.call({ call: 'stop', reason: 'by a test' });
      cluster.run.call({ call: 'resume' });
      cluster.hear();
    },
  ],
  [
    'it is stopped, the others leave, and it is resumed',
    {},
    (cluster) => {
      cluster.begin()(0.5);
      cluster.run.call({ call: 'stop', reason: 'by a test' });
      cluster.replaceOthers();
      cluster.run.call({ call: 'resume' });
      cluster.hear();
    },
  ],
  [
    'the server is killed in training',
    {},
    (cluster) => {
      cluster.begin()(0.5);
      cluster.restart();
    },
  ],
  [
    'the server is killed while it measures',
    stops('continue'),
    (cluster) => {
      cluster.begin()(WORSE);
      expect(cluster.run.phase).toBe('measuring');
      cluster.restart();
    },
  ],
  [
    'the server is killed after a refit has begun',
    stops('continue'),
    (cluster) => {
      cluster.begin()(WORSE);
      cluster.goOn(() => cluster.run.phase === 'refitting', 5);
      cluster.restart();
    },
  ],
];

describe.each(MODES.map((mode) => [mode] as const))('%j: a worker is silent when', (mode) => {
  const clusterOf = (config: PartialConfig) => new Cluster({ ...config, consistency: mode });

  test.each(MOMENTS)('%s', (_, config, happens) => {
    const cluster = clusterOf(config);
    happens(cluster);
    const { run } = cluster;
    const from = run.step;
    const isPast = () => run.over || run.step >= from + 20;
    // A minibatch that is needed still is waited for as long as its lease lasts.
    expect(cluster.goOn(isPast, 6 * LEASE_SECONDS), `step ${run.step}, ${run.phase}`).toBe(true);
  });

  test.each(['continue', 'retrain'] as const)(
    '%s begins: nothing waits for it, not even for a lease',
    (afterStop) => {
      const cluster = clusterOf(stops(afterStop));
      cluster.begin()(WORSE);
      const { run } = cluster;
      expect(cluster.goOn(() => run.phase === 'refitting', 3)).toBe(true);
      const from = run.step;
      expect(cluster.goOn(() => run.over || run.step >= from + 3, LEASE_SECONDS / 2)).toBe(true);
      // It was only slow: its push is refused, and it takes part again.
      expect(cluster.silent.push(cluster.now)).toMatchObject({ outcome: 'rejected' });
      const { key } = cluster.silent;
      const before = appliedOf(run, key);
      expect(cluster.together(() => run.over || appliedOf(run, key) > before, 20)).toBe(true);
    },
  );
});

/** A worker that is asked for something, and whose computation hangs: it answers pings, and nothing else. */
describe.each(MODES.map((mode) => [mode] as const))('%j: a worker hangs', (mode) => {
  const clusterOf = (config: PartialConfig = {}) => new Cluster({ ...config, consistency: mode });
  /** What a minibatch takes virtual workers, as they say. */
  const COMPUTE_MS = 1;

  test.each([
    ['validation', {}],
    ['the target of `continue`', stops('continue')],
    ['the test part', { testAtEnd: true, epochsMax: 1 }],
  ] as const)('with an evaluation: %s', (what, config) => {
    const cluster = clusterOf(config);
    if (what !== 'validation') cluster.hangsWith(what.includes('test') ? 'test' : 'train');
    else cluster.hangsWith('validation');
    const { run, silent, asked } = cluster;
    const { examples, id } = asked!;
    const others = () => cluster.others.map(({ key }) => run.workerTally(key).evaluating);
    // Ten times what gradients of as many examples take, and the time of a lease.
    const minibatches = Math.ceil(examples / run.config.minibatchSize);
    const allowedMs = 1_000 * LEASE_SECONDS + 10 * COMPUTE_MS * minibatches;
    const until = (ms: number) => {
      cluster.now = ms;
      run.call({ call: 'tick', now: ms });
      const events = run.takeEvents();
      for (const { key } of cluster.others) {
        run.call({ call: 'assign', worker: key, ahead: 1, now: ms });
      }
      return events;
    };
    until(asked!.at + allowedMs - 1);
    expect(others()).toEqual([false, false]);
    expect(run.workerTally(silent.key).evaluating).toBe(true);
    const events = until(asked!.at + allowedMs);
    expect(others()).toEqual([true, false]);
    expect(events).toContainEqual({
      kind: 'late',
      text: expect.stringMatching(/^worker s\/1 is connected, but has not sent the evaluation of/),
    });
    // It is not asked again while there are others, and what it answers in the end is used once.
    expect(
      run.call({ call: 'assign', worker: silent.key, ahead: 1, now: cluster.now }),
    ).not.toEqual(expect.objectContaining({ evaluation: { id, part: expect.anything() } }));
    const result = {
      ...({ type: 'evaluated', run: 'r', evaluation: id, loss: 0.5, error: 0.5 } as const),
      ...{ examples, metrics: {} },
    };
    const answer = (worker: string) =>
      run.call({ call: 'evaluated', worker, result, now: cluster.now });
    // Until then it reads rows of tables as they were when the evaluation began.
    expect(run.evaluatedCapture(silent.key, id)).not.toBeNull();
    expect(run.evaluatedCapture('stranger/1', id)).toBeNull();
    expect(answer('stranger/1')).toBe(false);
    expect(answer(silent.key)).toBe(true);
    expect(answer(cluster.others[0]!.key)).toBe(false);
  });

  test('with the initial parameters', () => {
    const run = createRun({ consistency: mode, leaseSeconds: LEASE_SECONDS });
    const [silent, other] = ['s/1', 'a/1'].map((key) => new VirtualWorker(run, problem, key));
    const asks = (key: string, now: number) =>
      run.call({ call: 'assign', worker: key, ahead: 1, now }).kind;
    expect(asks(silent!.key, 0)).toBe('initialise');
    const allowedMs = 10_000 * LEASE_SECONDS;
    run.call({ call: 'tick', now: allowedMs - 1 });
    expect(asks(other!.key, allowedMs - 1)).toBe('wait');
    run.call({ call: 'tick', now: allowedMs });
    expect(run.takeEvents().map(({ kind }) => kind)).toEqual(
      expect.arrayContaining(['late', 'wake']),
    );
    expect(asks(silent!.key, allowedMs)).toBe('wait');
    expect(other!.pull(allowedMs)).toBe(true);
    expect(run.phase).toBe('training');
  });

  test('one that is alone and only slow is waited for twice as long each time', () => {
    const run = createRun({ consistency: mode, leaseSeconds: LEASE_SECONDS });
    const { key } = new VirtualWorker(run, problem, 's/1');
    const asks = (now: number) => run.call({ call: 'assign', worker: key, ahead: 1, now }).kind;
    let now = 0;
    for (const times of [1, 2, 2]) {
      expect(asks(now)).toBe('initialise');
      run.takeEvents();
      now += times * 10_000 * LEASE_SECONDS;
      run.call({ call: 'tick', now: now - 1 });
      expect(run.takeEvents()).toEqual([]);
      run.call({ call: 'tick', now });
      expect(run.takeEvents()).toContainEqual({ kind: 'wake' });
    }
  });
});
