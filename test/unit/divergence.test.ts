import { describe, expect, test } from 'vitest';
import { Run } from '../../server/core/run.ts';
import type { PartialConfig } from '../../shared/config.ts';
import {
  createProblem,
  createRun,
  EXCHANGED,
  lossOf,
  parametersOf,
  TENSORS,
  VirtualWorker,
} from '../support/regression.ts';

/** A run that diverges goes back to good parameters with a lower learning rate, and gives up in the end. */

const problem = createProblem();
const nan = (payload: Float32Array) => {
  payload[0] = Number.NaN;
};
const huge = (payload: Float32Array) => payload.fill(3e38);

/** Pulls until there is a minibatch to push. */
function pullWork(run: Run, worker: VirtualWorker): void {
  const { evaluations } = run.metrics();
  let before = -1;
  while (before !== run.metrics().evaluations.length + run.generation) {
    before = run.metrics().evaluations.length + run.generation;
    worker.pull();
  }
  expect(evaluations.length).toBeLessThanOrEqual(run.metrics().evaluations.length);
}
const exchanged = (run: Run) => parametersOf(run).slice(0, EXCHANGED);
const bestOf = (run: Run) =>
  Float32Array.from(run.bestTensors().flatMap(({ values }) => [...values])).slice(0, EXCHANGED);

describe('non-finite gradients in a row', () => {
  test('take the run back to the best of its evaluations, with a quarter of its learning rate', () => {
    const run = createRun({ nonFiniteMax: 3, learningRate: 0.02 });
    const worker = new VirtualWorker(run, problem);
    worker.train(() => run.step === 12);
    const { generation } = run;
    run.takeEvents();
    for (let i = 0; i < 3; i++) {
      pullWork(run, worker);
      expect(worker.push(0, nan)).toMatchObject({
        outcome: 'rejected',
        code: 'DP_GRADIENT_NOT_FINITE',
      });
    }
    expect(run.phase).toBe('training');
    expect(run.step).toBe(12);
    expect(run.generation).toBe(generation + 1);
    expect(exchanged(run)).toEqual(bestOf(run));
    expect(run.learningRate).toBe(0.005);
    const [rollback] = run.summary(0).rollbacks;
    expect(rollback).toMatchObject({ step: 12, to: run.best!.step, learningRate: 0.005 });
    expect(rollback!.reason).toContain('3 in a row');
    expect(run.takeEvents()).toContainEqual({ kind: 'rollback', rollback });
    worker.train();
    expect(run.phase).toBe('finished');
  });

  test('before the first evaluation take it back to its initial parameters, of the same seed', () => {
    const run = createRun({ nonFiniteMax: 1, seed: 5, epochsMax: 6 });
    const worker = new VirtualWorker(run, problem);
    worker.pull();
    const initial = parametersOf(run);
    worker.train(() => run.step === 3);
    expect(parametersOf(run)).not.toEqual(initial);
    pullWork(run, worker);
    worker.push(0, nan);
    expect(run.summary(0).rollbacks).toMatchObject([{ step: 3, to: null }]);
    worker.pull();
    expect(parametersOf(run)).toEqual(initial);
    expect(run.step).toBe(3);
    // All minibatches are used, each once an epoch, those that were refused too.
    worker.train();
    expect(run.phase).toBe('finished');
    expect(new Set(worker.applied).size).toBe(30);
    expect(worker.applied.length).toBe(30);
  });

  test('that do not come in a row change nothing', () => {
    const run = createRun({ nonFiniteMax: 2 });
    const worker = new VirtualWorker(run, problem);
    worker.train(() => run.step === 2);
    for (let i = 0; i < 4; i++) {
      pullWork(run, worker);
      worker.push(0, nan);
      pullWork(run, worker);
      worker.push();
    }
    expect(run.summary(0).rollbacks).toEqual([]);
  });
});

test('at the initial parameters the learning rate is not blamed, and nothing is tried twice', () => {
  const run = createRun({ nonFiniteMax: 2 });
  const worker = new VirtualWorker(run, problem);
  for (let i = 0; i < 4; i++) {
    pullWork(run, worker);
    expect(worker.push(0, nan)!.message).toContain('before any update');
  }
  expect(run.phase).toBe('failed');
  expect(run.reason).toContain('learningRate has no part in it');
  expect(run.summary(0).rollbacks).toHaveLength(1);
});

test('a validation part that gives no finite value is not blamed on the learning rate', () => {
  const run = createRun({ stepsMax: 3, divergence: { rollbacksMax: 0 } });
  const worker = new VirtualWorker(run, problem);
  worker.train(() => run.step === 3);
  const assignment = run.call({ call: 'assign', worker: 'e/2', ahead: 1, now: 0 });
  if (assignment.kind !== 'work' || !assignment.evaluation) throw new Error('no evaluation');
  const values = { loss: null, error: null, examples: 10, metrics: {} };
  const { id } = assignment.evaluation;
  run.call({
    call: 'evaluated',
    worker: 'e/2',
    result: { type: 'evaluated', run: 'r', evaluation: id, ...values },
    now: 0,
  });
  expect(run.phase).toBe('failed');
  expect(run.reason).toMatch(
    /the training loss is [\d.]+, so look at the values of the validation part/,
  );
});

test('an update that overflows takes the run back, and its minibatch is done again', () => {
  const run = createRun({ learningRate: 4, clip: { norm: null }, epochsMax: 2 });
  const worker = new VirtualWorker(run, problem);
  pullWork(run, worker);
  expect(worker.push(0, huge)).toMatchObject({ outcome: 'rejected', code: 'DP_DIVERGED' });
  expect(parametersOf(run).every(Number.isFinite)).toBe(true);
  expect(run.phase).toBe('training');
  expect(run.summary(0).rollbacks.length).toBe(1);
});

describe('where gradients explode', () => {
  const named = (name: string) => ({
    ...problem,
    tensors: TENSORS.map((tensor, i) => (i === 0 ? { ...tensor, name } : tensor)),
  });
  /** The reason of a rollback after 10 updates, and one whose gradient is so many times as long as it was. */
  const reasonOf = (name: string, times: number, config: PartialConfig = {}) => {
    const run = createRun({ nonFiniteMax: 1, learningRate: 0.001, ...config });
    const worker = new VirtualWorker(run, named(name));
    worker.train(() => run.step === 10);
    pullWork(run, worker);
    worker.push(0, (payload) => {
      for (const [i, x] of payload.entries()) payload[i] = times * x;
    });
    pullWork(run, worker);
    worker.push(0, nan);
    return { reason: run.summary(0).rollbacks[0]!.reason, points: run.metrics().training };
  };

  test.each(['lstm_LSTM1/recurrent_kernel', 'recurrent_kernel', 'rnn/recurrent_kernel_1'])(
    'the advice for a model with %s is to clip at the usual norm first',
    (name) => {
      const { reason } = reasonOf(name, 1000);
      const [, seen, usual, advised] =
        /gradient was (\S+), and (\S+) in the median .* set clip\.norm to about (\S+) first/.exec(
          reason,
        )!;
      expect(advised).toBe(usual);
      expect(Number(seen)).toBeGreaterThan(100 * Number(usual));
      // Two digits of what one minibatch of this problem gives.
      expect(Number(usual)).toBeGreaterThan(0.5);
      expect(Number(usual)).toBeLessThan(20);
    },
  );

  test.each([
    ['other models', 'dense/kernel', 1000, {}],
    ['a name that only begins so', 'recurrent_kernels/kernel', 1000, {}],
    ['a recurrent model whose gradient is as long as before', 'lstm/recurrent_kernel', 1, {}],
    ['a recurrent model that clips already', 'lstm/recurrent_kernel', 1000, { clip: { norm: 1 } }],
  ] as const)('%s get the advice of all', (_, name, times, config) => {
    const { reason } = reasonOf(name, times, config);
    expect(reason).toMatch(/: lower learningRate, (set|lower) clip\.norm, or look for bad values/);
    expect(reason).not.toContain('steps of a sequence');
  });

  test('an update that overflows says so too, at the first update not', () => {
    const run = createRun({ learningRate: 4, optimizer: { kind: 'sgd' } });
    const worker = new VirtualWorker(run, named('gru/recurrent_kernel'));
    pullWork(run, worker);
    expect(worker.push(0, huge)!.message).toContain(
      ': lower learningRate, or clip.norm (now none)',
    );
    const later = createRun({ learningRate: 4, optimizer: { kind: 'sgd' } });
    const other = new VirtualWorker(later, named('gru/recurrent_kernel'));
    for (let i = 0; i < 3; i++) {
      pullWork(later, other);
      other.push(0, (payload) => payload.fill(0.001));
    }
    pullWork(later, other);
    expect(other.push(0, huge)!.message).toMatch(
      /overflow .* set clip\.norm to about 0\.00\d+ first/,
    );
  });
});

test('a validation value that is not finite takes the run back once, however late it comes', () => {
  const run = createRun({ evaluateEverySteps: 3, earlyStopping: { patience: 50 } });
  const trainer = new VirtualWorker(run, problem, 'trainer/1');
  const evaluator = new VirtualWorker(run, problem, 'evaluator/2');
  trainer.train(() => run.best !== null && run.step === 6);
  const evaluate = (loss: number | null) => {
    const assignment = run.call({ call: 'assign', worker: evaluator.key, ahead: 1, now: 0 });
    if (assignment.kind !== 'work' || !assignment.evaluation) throw new Error('no evaluation');
    const { id } = assignment.evaluation;
    const values = { loss, error: loss, examples: 10, metrics: {} };
    return () =>
      run.call({
        call: 'evaluated',
        worker: evaluator.key,
        result: { type: 'evaluated', run: 'r', evaluation: id, ...values },
        now: 0,
      });
  };
  evaluate(null)();
  expect(run.summary(0).rollbacks).toMatchObject([{ step: 6, to: 3 }]);
  expect(run.summary(0).rollbacks[0]!.reason).toContain('validation loss at step 6');
  expect(exchanged(run)).toEqual(bestOf(run));
  // The next one is under way when the gradients go wrong: it is of parameters that are gone already.
  trainer.train(() => run.step === 9);
  const late = evaluate(null);
  const { nonFiniteMax } = run.config;
  for (let i = 0; i < nonFiniteMax; i++) {
    trainer.pull();
    trainer.push(0, nan);
  }
  expect(run.summary(0).rollbacks.length).toBe(2);
  late();
  expect(run.summary(0).rollbacks.length).toBe(2);
  expect(run.phase).toBe('training');
});

test('what was computed before the rollback is not applied after it', () => {
  const run = createRun({ nonFiniteMax: 1 });
  const worker = new VirtualWorker(run, problem, 'a/1');
  const other = new VirtualWorker(run, problem, 'b/2');
  worker.train(() => run.step === 7);
  pullWork(run, worker);
  other.pull();
  worker.push(0, nan);
  const before = parametersOf(run);
  expect(other.push()).toMatchObject({ outcome: 'rejected', code: 'DP_PUSH_STALE' });
  expect(parametersOf(run)).toEqual(before);
  other.pull();
  expect(other.push()).toMatchObject({ outcome: 'applied' });
});

test("the optimizer's state begins anew: Adam's first update after it has the size of the rate", () => {
  const config: PartialConfig = {
    optimizer: { kind: 'adam' },
    learningRate: 0.04,
    nonFiniteMax: 1,
  };
  const run = createRun({ ...config, evaluateEverySteps: 50, earlyStopping: { patience: 99 } });
  const worker = new VirtualWorker(run, problem);
  worker.train(() => run.step === 120);
  pullWork(run, worker);
  worker.push(0, nan);
  const before = exchanged(run);
  pullWork(run, worker);
  worker.push();
  const after = exchanged(run);
  const change = Math.abs(after[0]! - before[0]!);
  expect(change).toBeGreaterThan(0.009);
  expect(change).toBeLessThan(0.011);
});

describe('a gradient whose square is infinite in float32', () => {
  const large = (payload: Float32Array) => {
    payload[0] = 1e25;
  };
  const pushed = (config: PartialConfig) => {
    const run = createRun({ nonFiniteMax: 100, ...config });
    const worker = new VirtualWorker(run, problem);
    worker.train(() => run.step === 3);
    pullWork(run, worker);
    const before = exchanged(run);
    const answer = worker.push(0, large);
    return { run, worker, answer, before };
  };

  test.each(['adagrad', 'rmsprop', 'adadelta', 'adam', 'adamw'] as const)(
    'is rejected by %s, which would never move that parameter again',
    (kind) => {
      const { run, worker, answer, before } = pushed({ optimizer: { kind } });
      expect(answer).toMatchObject({ outcome: 'rejected', code: 'DP_GRADIENT_NOT_FINITE' });
      expect(answer!.message).toContain('its square, which the optimizer keeps, is infinite');
      expect(exchanged(run)).toEqual(before);
      pullWork(run, worker);
      expect(worker.push()).toMatchObject({ outcome: 'applied' });
      expect(exchanged(run)[0]).not.toBe(before[0]);
    },
  );

  test('so is one by Adagrad of which a few squares have an infinite sum; others forget them', () => {
    for (const [kind, outcome] of [
      ['adagrad', 'rejected'],
      ['adam', 'applied'],
    ] as const) {
      const run = createRun({ nonFiniteMax: 100, optimizer: { kind } });
      const worker = new VirtualWorker(run, problem);
      worker.train(() => run.step === 3);
      for (let i = 0; i < 6; i++) {
        pullWork(run, worker);
        const answer = worker.push(0, (payload) => {
          payload[0] = 9e18;
        });
        expect(answer?.outcome).toBe(outcome);
      }
      pullWork(run, worker);
      const before = exchanged(run);
      expect(worker.push()?.outcome).toBe('applied');
      if (kind === 'adagrad') expect(exchanged(run)[0]).not.toBe(before[0]);
    }
  });

  test.each([
    ['an optimizer that keeps none', { learningRate: 1e-26 }],
    ['clip.norm', { optimizer: { kind: 'adam' }, clip: { norm: 1 } }],
    ['clip.value', { optimizer: { kind: 'adam' }, clip: { value: 1 } }],
  ] satisfies [string, PartialConfig][])('is applied with %s', (_, config) => {
    const { run, answer, before } = pushed(config);
    expect(answer).toMatchObject({ outcome: 'applied' });
    expect(exchanged(run)[0]).not.toBe(before[0]);
    expect(exchanged(run).every(Number.isFinite)).toBe(true);
  });
});

test('it gives up after so many rollbacks, and says so', () => {
  const run = createRun({ nonFiniteMax: 2, divergence: { rollbacksMax: 3, factor: 0.5 } });
  const worker = new VirtualWorker(run, problem);
  worker.train(() => run.step === 8);
  for (let i = 0; !run.over; i++) {
    expect(i).toBeLessThan(20);
    pullWork(run, worker);
    worker.push(0, nan);
  }
  expect(run.phase).toBe('failed');
  expect(run.reason).toMatch(/NaN or infinite .*, after 3 rollbacks/);
  const rates = run.summary(0).rollbacks.map(({ learningRate }) => learningRate);
  expect(rates).toEqual([0.025, 0.0125, 0.00625]);
});

test.each([0, 3, 7])('what has been decided at step %d survives a restart', (step) => {
  const config: PartialConfig = { nonFiniteMax: 1, epochsMax: 8, optimizer: { kind: 'adam' } };
  const finish = (interrupted: boolean) => {
    let run = createRun(config);
    let worker = new VirtualWorker(run, problem, 'a/1');
    worker.pull();
    worker.train(() => run.step === step);
    pullWork(run, worker);
    worker.push(0, nan);
    if (interrupted) {
      const state = JSON.parse(JSON.stringify(run.state(0)));
      run = Run.restore(state, run.tensors());
      worker = new VirtualWorker(run, problem, 'b/2');
    }
    worker.train();
    return run;
  };
  const [one, two] = [finish(false), finish(true)];
  expect(two.phase).toBe('finished');
  expect(two.summary(0).rollbacks).toEqual(one.summary(0).rollbacks);
  expect(two.learningRate).toBe(one.learningRate);
  expect(parametersOf(two)).toEqual(parametersOf(one));
});

describe('a learning rate that is far too high', () => {
  const config: PartialConfig = {
    ...{ learningRate: 30, epochsMax: 150 },
    divergence: { factor: 0.1 },
  };

  test('ends a run that may not go back', () => {
    const run = createRun({
      ...config,
      divergence: { rollbacksMax: 0 },
      earlyStopping: { patience: 40 },
    });
    new VirtualWorker(run, problem).train();
    expect(run.phase).toBe('failed');
  });

  test.each(['restore', 'retrain', 'continue'] as const)(
    'is lowered until training converges (%s)',
    (afterStop) => {
      const run = createRun({ ...config, earlyStopping: { patience: 40, afterStop } });
      new VirtualWorker(run, problem).train();
      expect(run.phase).toBe('finished');
      expect(run.summary(0).rollbacks.length).toBeGreaterThan(0);
      expect(run.summary(0).rollbacks.length).toBeLessThanOrEqual(5);
      // Predicting nothing gives 5.5, and few examples overfit.
      expect(lossOf(problem, 'test', parametersOf(run))).toBeLessThan(3);
    },
  );
});
