import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import type { RunState } from '../../server/core/run/state.ts';
import { Run } from '../../server/core/run.ts';
import type { NamedTensor } from '../../server/core/vectors.ts';
import { bytesOf } from '../../shared/codec.ts';
import type { PartialConfig } from '../../shared/config.ts';
import { random } from '../../shared/random.ts';
import { encodeRows } from '../../shared/rows.ts';
import {
  createProblem,
  createRun,
  EXCHANGED,
  lossOf,
  parametersOf,
  TENSORS,
  VirtualWorker,
} from '../support/regression.ts';

const problem = createProblem();
const stopEarly = { earlyStopping: { patience: 4 } } as const;

/** What a checkpoint keeps, through JSON and copies as on disk. */
function saved(run: Run): { state: RunState; tensors: NamedTensor[] } {
  return { state: JSON.parse(JSON.stringify(run.state(0))), tensors: run.tensors() };
}

describe('training time', () => {
  test('goes on in another process, stands still while the run is stopped, and ends with it', () => {
    const SECOND = 1000;
    const train = (run: Run, key: string, from: number, steps: number) => {
      const worker = new VirtualWorker(run, problem, key);
      for (let i = 0; i <= steps; i++) {
        if (worker.pull((from + i) * SECOND)) worker.push((from + i) * SECOND);
      }
    };
    const run = createRun({ stepsMax: 20, evaluateEverySteps: 1_000 });
    train(run, 'a/1', 50, 5);
    expect(run.seconds(55 * SECOND)).toBe(5);
    run.call({ call: 'stop', reason: 'enough' });
    expect(run.seconds(90 * SECOND)).toBe(5);
    run.call({ call: 'resume' });
    train(run, 'a/1', 100, 2);
    const state = JSON.parse(JSON.stringify(run.state(102 * SECOND)));
    const later = Run.restore(state, run.tensors());
    // The clock of another process; nobody has come yet.
    expect(later.seconds(9_000 * SECOND)).toBe(7);
    train(later, 'b/1', 10_000, 3);
    expect(later.seconds(10_003 * SECOND)).toBe(10);
    // Minibatches of 4 examples, one a second.
    expect(later.summary(10_003 * SECOND).examplesPerSecond).toBeCloseTo(4, 5);
    new VirtualWorker(later, problem, 'c/1').train();
    expect(later.phase).toBe('finished');
    expect(later.seconds(1e9)).toBe(later.seconds(2e9));
  });
});

describe('what a run says of itself', () => {
  test.each(['restore', 'retrain', 'continue'] as const)(
    'is the same after a restart, wherever it comes, with %s',
    (afterStop) => {
      const config = { ...stopEarly, earlyStopping: { patience: 2, afterStop } };
      for (let cut = 3; cut < 90; cut += 6) {
        const run = createRun(config);
        let done = 0;
        const worker = new VirtualWorker(run, problem, 'first/1');
        worker.train(() => done++ >= cut);
        const { state, tensors } = saved(run);
        const later = Run.restore(state, tensors);
        // Who is connected and how fast they are is of the moment.
        const lasting = (of: Run) => {
          const { workers, examplesPerSecond, secondsLeft, correction, ...rest } = of.summary(0);
          const { leases, evaluating, ...deeds } = of.workerTally('first/1');
          return { ...rest, correction: { ...correction, workers: null }, deeds };
        };
        expect(lasting(later), `after ${cut} calls`).toEqual(lasting(run));
        const vectors = run
          .replicaVectors()
          .map(([name, values]) => [name, values.slice()] as const);
        const replica = Run.replicate(structuredClone(run.replica()), new Map(vectors));
        expect(lasting(replica), `on a standby, after ${cut} calls`).toEqual(lasting(run));
        expect(run.step === 0).toBe(run.summary(0).staleness === null);
        expect(later.summary(0).examplesPerSecond).toBeNull();
      }
    },
  );

  test('its last step is never beyond the step that it tells as the limit', () => {
    for (const afterStop of ['retrain', 'continue'] as const) {
      const run = createRun({
        ...{ epochsMax: 30, minibatchSize: 4 },
        earlyStopping: { patience: 3, afterStop, continueStepsMax: 50 },
      });
      new VirtualWorker(run, problem).train();
      const { phase, step, stepsMax, epoch } = run.summary(0);
      expect(phase).toBe('finished');
      expect(step).toBeLessThanOrEqual(stepsMax!);
      const refit = run.step - run.summary(0).earlyStopping.stoppedAt!;
      expect(refit).toBeGreaterThan(0);
      const validated = run.metrics().evaluations.findLast(({ part }) => part === 'validation')!;
      expect(epoch).toBeGreaterThanOrEqual(validated.epoch);
    }
  });
});

describe('early stopping, Algorithm 7.1', () => {
  test('stops after `patience` evaluations without improvement and restores the best', () => {
    const run = createRun(stopEarly);
    new VirtualWorker(run, problem).train();
    const evaluations = run.metrics().evaluations.filter((e) => e.part === 'validation');
    const losses = evaluations.map((e) => e.loss!);
    const best = losses.indexOf(Math.min(...losses));
    expect(run.phase).toBe('finished');
    expect(losses.length - 1 - best).toBe(4);
    expect(run.best).toEqual(evaluations[best]);
    expect(lossOf(problem, 'validation', parametersOf(run))).toBe(losses[best]);
    expect(run.summary(0).test?.step).toBe(run.best?.step);
    expect(run.reason).toBe('validation loss has not improved for 4 evaluations');
  });

  test('the end of the epochs ends training as well, with an evaluation of the last step', () => {
    const run = createRun({ epochsMax: 2 });
    const worker = new VirtualWorker(run, problem);
    worker.train();
    expect(run.step).toBe(10);
    expect(run.metrics().evaluations.map((e) => [e.part, e.step])).toEqual([
      ['validation', 5],
      ['validation', 10],
      ['test', 10],
    ]);
    expect(new Set(worker.applied).size).toBe(10);
  });

  test('stepsMax ends training in the middle of an epoch', () => {
    const run = createRun({ stepsMax: 7 });
    new VirtualWorker(run, problem).train();
    expect(run.step).toBe(7);
    expect(run.reason).toBe('reached stepsMax 7');
  });
});

describe('what follows the stop', () => {
  test('`retrain`, Algorithm 7.2: fresh parameters, all data, the best step count', () => {
    const run = createRun({ earlyStopping: { patience: 4, afterStop: 'retrain' } });
    const worker = new VirtualWorker(run, problem);
    worker.train();
    const { stoppedAt } = run.summary(0).earlyStopping;
    const refit = worker.applied.filter((use) => use.endsWith('trainAndValidation'));
    expect(refit.length).toBe(run.best!.step);
    expect(run.step).toBe(stoppedAt! + run.best!.step);
    expect(run.phase).toBe('finished');
    expect(run.summary(0).test?.step).toBe(run.step);
    // From other first parameters than training had, on more data: not the restored ones.
    expect(parametersOf(run)).not.toEqual(run.bestTensors()[0]!.values);
  });

  test('`continue`, Algorithm 7.3: from the best, until the validation loss is below the training loss there', () => {
    const run = createRun({
      earlyStopping: { patience: 4, afterStop: 'continue', continueStepsMax: 5000 },
    });
    new VirtualWorker(run, problem).train();
    const { target } = run.summary(0).earlyStopping;
    expect(target).toBeCloseTo(lossOf(problem, 'train', bestOf(run)), 6);
    expect(lossOf(problem, 'validation', parametersOf(run))).toBeLessThan(target!);
    expect(run.reason).toMatch(/fell below the training loss/);
  });

  test('`continue` ends at its limit of steps when the target is never reached', () => {
    const run = createRun({
      earlyStopping: { patience: 4, afterStop: 'continue', continueStepsMax: 3 },
    });
    new VirtualWorker(run, problem).train();
    expect(run.reason).toBe('continued up to its limit of steps');
    expect(run.step).toBe(run.summary(0).earlyStopping.stoppedAt! + 3);
  });

  test.each(['restore', 'retrain', 'continue'] as const)(
    'the test part is looked at once, after all training (%s)',
    (afterStop) => {
      const run = createRun({ earlyStopping: { patience: 3, afterStop, continueStepsMax: 50 } });
      new VirtualWorker(run, problem).train();
      const parts = run.metrics().evaluations.map((e) => e.part);
      expect(parts.filter((part) => part === 'test').length).toBe(1);
      expect(parts.at(-1)).toBe('test');
    },
  );
});

function bestOf(run: Run): Float32Array {
  return Float32Array.from(run.bestTensors().flatMap((tensor) => [...tensor.values]));
}

describe('interrupted and resumed = uninterrupted, bit for bit', () => {
  const configs: [string, PartialConfig][] = [
    ['sgd', {}],
    [
      'nesterov, plateau',
      { optimizer: { kind: 'nesterov' }, schedule: { kind: 'plateau', patience: 1 } },
    ],
    ['adam, ema', { optimizer: { kind: 'adam' }, averaging: { kind: 'ema', decay: 0.9 } }],
    [
      'rmsprop, polyak',
      { optimizer: { kind: 'rmsprop' }, averaging: { kind: 'polyak', startStep: 3 } },
    ],
    ['retrain', { earlyStopping: { patience: 4, afterStop: 'retrain' } }],
    ['continue', { earlyStopping: { patience: 4, afterStop: 'continue', continueStepsMax: 60 } }],
    ['adagrad, clipped', { optimizer: { kind: 'adagrad' }, clip: { norm: 0.5 } }],
    [
      'momentum schedule',
      { optimizer: { kind: 'momentum' }, momentumSchedule: { values: [0.5, 0.9], steps: [12] } },
    ],
  ];

  test.each(configs)('%s, wherever it is interrupted', (_, config) => {
    const whole = createRun({ ...stopEarly, ...config });
    new VirtualWorker(whole, problem).train();
    const calls = whole.step + whole.metrics().evaluations.length;
    for (let cut = 0; cut < calls; cut += 3) {
      let run = createRun({ ...stopEarly, ...config });
      const first = new VirtualWorker(run, problem, 'first/1');
      let done = 0;
      first.train(() => done++ >= cut);
      const { state, tensors } = saved(run);
      run = Run.restore(state, tensors);
      new VirtualWorker(run, problem, 'second/2').train();
      expect(run.step, `cut at ${cut}`).toBe(whole.step);
      expect(parametersOf(run)).toEqual(parametersOf(whole));
      expect(run.best?.loss).toBe(whole.best?.loss);
      expect(run.metrics().evaluations.map((e) => e.loss)).toEqual(
        whole.metrics().evaluations.map((e) => e.loss),
      );
    }
  });
});

describe('pushes', () => {
  test('a push that is sent again is not applied again, even after a restart from a checkpoint', () => {
    const run = createRun({});
    const worker = new VirtualWorker(run, problem);
    worker.train(() => run.step === 3);
    const push = {
      type: 'push' as const,
      run: 'r',
      sequence: 3,
      lease: 3,
      step: 2,
      generation: 2,
      loss: 1,
      computeMs: 1,
      encoding: 'f32' as const,
    };
    const before = parametersOf(run);
    expect(
      run.call(
        { call: 'push', worker: worker.key, push, now: 0 },
        bytesOf(new Float32Array(EXCHANGED).fill(1)),
      ).outcome,
    ).toBe('duplicate');
    const { state, tensors } = saved(run);
    const restored = Run.restore(state, tensors);
    expect(
      restored.call(
        { call: 'push', worker: worker.key, push, now: 0 },
        bytesOf(new Float32Array(EXCHANGED).fill(1)),
      ).outcome,
    ).toBe('duplicate');
    expect(parametersOf(restored)).toEqual(before);
    expect(restored.step).toBe(3);
  });

  test('staleness is measured, bounded and reported; the rejected minibatch is done again', () => {
    const run = createRun({ consistency: { stalenessMax: 1 } });
    const quick = new VirtualWorker(run, problem, 'quick/1');
    quick.pull();
    const slow = new VirtualWorker(run, problem, 'slow/2');
    slow.pull();
    for (let i = 0; i < 2; i++) {
      quick.pull();
      quick.push();
    }
    const rejected = slow.push()!;
    expect(rejected).toMatchObject({ outcome: 'rejected', code: 'DP_PUSH_STALE', staleness: 2 });
    expect(rejected.message).toBe(
      'push read step 0, server is at 2; staleness 2 > stalenessMax 1: pull, then retry',
    );
    slow.pull();
    expect(slow.push()).toMatchObject({ outcome: 'applied', staleness: 0 });
  });

  test('damping divides the learning rate by the staleness', () => {
    const config = { consistency: { damping: 'inverse' as const }, learningRate: 0.1 };
    const [damped, plain] = [createRun(config), createRun({ learningRate: 0.1 })].map((run) => {
      const quick = new VirtualWorker(run, problem, 'quick/1');
      quick.pull();
      const slow = new VirtualWorker(run, problem, 'slow/2');
      slow.pull();
      for (let i = 0; i < 4; i++) {
        quick.pull();
        quick.push();
      }
      const before = parametersOf(run);
      const acknowledgement = slow.push()!;
      const after = parametersOf(run);
      return { acknowledgement, change: after[0]! - before[0]! };
    });
    expect(damped!.acknowledgement).toMatchObject({ outcome: 'damped', staleness: 4 });
    expect(plain!.acknowledgement).toMatchObject({ outcome: 'applied', staleness: 4 });
    expect(damped!.change / plain!.change).toBeCloseTo(1 / 4, 4);
  });

  test.each([Number.NaN, Infinity, -Infinity])('%d never reaches the parameters', (bad) => {
    for (const place of [0, FEATURE_BIAS, EXCHANGED - 1]) {
      const run = createRun({ nonFiniteMax: 3, divergence: { rollbacksMax: 0 } });
      const worker = new VirtualWorker(run, problem);
      worker.train(() => run.step === 2);
      const before = parametersOf(run);
      const spoil = (payload: Float32Array) => {
        payload[place] = bad;
      };
      for (let i = 1; i <= 3; i++) {
        worker.pull();
        expect(worker.push(0, spoil)).toMatchObject({
          outcome: 'rejected',
          code: 'DP_GRADIENT_NOT_FINITE',
        });
        expect(parametersOf(run)).toEqual(before);
        expect(run.phase).toBe(i < 3 ? 'training' : 'failed');
      }
    }
  });

  test('an update that overflows is undone, and a run that may not go back fails', () => {
    const run = createRun({ learningRate: 1e30, divergence: { rollbacksMax: 0 } });
    const worker = new VirtualWorker(run, problem);
    worker.pull();
    worker.pull();
    const acknowledgement = worker.push(0, (payload) => payload.fill(1e30));
    expect(acknowledgement).toMatchObject({ outcome: 'rejected', code: 'DP_DIVERGED' });
    expect(parametersOf(run).every(Number.isFinite)).toBe(true);
    expect(run.phase).toBe('failed');
  });

  test('a gradient of the wrong size is refused with both sizes', () => {
    const run = createRun({});
    const worker = new VirtualWorker(run, problem);
    worker.pull();
    worker.pull();
    const push = {
      type: 'push' as const,
      run: 'r',
      sequence: 1,
      lease: 1,
      step: 0,
      generation: 2,
      loss: 1,
      computeMs: 1,
      encoding: 'f32' as const,
    };
    expect(
      run.call({ call: 'push', worker: worker.key, push, now: 0 }, bytesOf(new Float32Array(3))),
    ).toMatchObject({
      outcome: 'rejected',
      code: 'DP_TENSOR_SIZE',
      message: "the gradient has 12 bytes; f32 of this run's layout of 7 elements needs 32",
    });
  });

  test('a minibatch that went to another worker is lost to the first', () => {
    const run = createRun({ leaseSeconds: 1 });
    const slow = new VirtualWorker(run, problem, 'slow/1');
    slow.pull();
    slow.pull();
    run.call({ call: 'tick', now: 1001 });
    const quick = new VirtualWorker(run, problem, 'quick/2');
    quick.pull(1001);
    expect(slow.push(1002)).toMatchObject({ outcome: 'rejected', code: 'DP_PUSH_LEASE_LOST' });
    expect(quick.push(1002)).toMatchObject({ outcome: 'applied' });
  });

  test('a push computed at parameters that a restart lost is refused', () => {
    const run = createRun({});
    const worker = new VirtualWorker(run, problem);
    worker.train(() => run.step === 2);
    const { state, tensors } = saved(run);
    worker.train(() => run.step === 4);
    const restored = Run.restore(state, tensors);
    restored.call({
      call: 'join',
      worker: worker.key,
      join: { experimentHash: 'hash', tensors: TENSORS, data: problem.summary },
      now: 0,
    });
    const work = restored.call({ call: 'assign', worker: worker.key, ahead: 1, now: 0 });
    const lease = work.kind === 'work' ? work.leases[0]!.id : -1;
    const push = {
      type: 'push' as const,
      run: 'r',
      sequence: 9,
      lease,
      step: 4,
      generation: 2,
      loss: 1,
      computeMs: 1,
      encoding: 'f32' as const,
    };
    expect(
      restored.call(
        { call: 'push', worker: worker.key, push, now: 0 },
        bytesOf(new Float32Array(EXCHANGED)),
      ),
    ).toMatchObject({
      outcome: 'rejected',
      code: 'DP_PUSH_STALE',
    });
  });
});

const FEATURE_BIAS = 6;

describe('joining', () => {
  const join = { experimentHash: 'hash', tensors: TENSORS, data: problem.summary };

  test.each([
    [{ ...join, experimentHash: 'other' }, 'DP_EXPERIMENT_MISMATCH'],
    [{ ...join, tensors: TENSORS.slice(0, 3) }, 'DP_LAYOUT_MISMATCH'],
    [{ ...join, data: { ...join.data, fingerprint: 'beef' } }, 'DP_DATA_MISMATCH'],
    [{ ...join, data: { ...join.data, trainCount: 21 } }, 'DP_DATA_MISMATCH'],
  ])('a worker that differs from the run is refused (%#)', (other, code) => {
    const run = createRun({});
    run.call({ call: 'join', worker: 'first/1', join, now: 0 });
    expect(() => run.call({ call: 'join', worker: 'second/2', join: other, now: 0 })).toThrow(
      expect.objectContaining({ code }),
    );
  });

  test('the grant to create parameters passes on when its worker dies', () => {
    const run = createRun({});
    run.call({ call: 'join', worker: 'a/1', join, now: 0 });
    run.call({ call: 'join', worker: 'b/2', join, now: 0 });
    expect(run.call({ call: 'assign', worker: 'a/1', ahead: 1, now: 0 })).toMatchObject({
      kind: 'initialise',
    });
    expect(run.call({ call: 'assign', worker: 'b/2', ahead: 1, now: 0 })).toEqual({ kind: 'wait' });
    run.call({ call: 'detach', worker: 'a/1', now: 0 });
    expect(run.takeEvents()).toContainEqual({ kind: 'wake' });
    expect(run.call({ call: 'assign', worker: 'b/2', ahead: 1, now: 0 })).toMatchObject({
      kind: 'initialise',
    });
  });

  test.each([
    ['of the wrong size', new Float32Array(EXCHANGED), 'DP_TENSOR_SIZE'],
    ['not finite', new Float32Array(EXCHANGED + 1).fill(Number.NaN), 'DP_GRADIENT_NOT_FINITE'],
  ])(
    'initial parameters that are %s are refused, and those that wait are woken',
    (_, values, code) => {
      const run = createRun({});
      run.call({ call: 'join', worker: 'a/1', join, now: 0 });
      run.call({ call: 'join', worker: 'b/2', join, now: 0 });
      const asked = run.call({ call: 'assign', worker: 'a/1', ahead: 1, now: 0 });
      if (asked.kind !== 'initialise') throw new Error(asked.kind);
      expect(run.call({ call: 'assign', worker: 'b/2', ahead: 1, now: 0 })).toEqual({
        kind: 'wait',
      });
      run.takeEvents();
      const { grant } = asked;
      expect(() =>
        run.call({ call: 'initialised', worker: 'a/1', grant, now: 0 }, bytesOf(values)),
      ).toThrow(expect.objectContaining({ code }));
      expect(run.takeEvents()).toEqual([{ kind: 'wake' }]);
      expect(run.call({ call: 'assign', worker: 'b/2', ahead: 1, now: 0 })).toMatchObject({
        kind: 'initialise',
      });
    },
  );

  describe('initial parameters that cannot be used', () => {
    const NAN = bytesOf(new Float32Array(EXCHANGED + 1).fill(0.1).with(2, Number.NaN));
    const enter = (run: Run, ...workers: string[]) => {
      for (const worker of workers) run.call({ call: 'join', worker, join, now: 0 });
    };
    const ask = (run: Run, worker: string, now = 0) =>
      run.call({ call: 'assign', worker, ahead: 1, now });
    const give = (run: Run, worker: string) => {
      const asked = ask(run, worker);
      if (asked.kind !== 'initialise') throw new Error(asked.kind);
      const call = { call: 'initialised', worker, grant: asked.grant, now: 0 } as const;
      expect(() => run.call(call, NAN)).toThrow(/hold NaN in tensor '\w+'/);
    };
    const reason =
      /^no connected worker has initial parameters that can be used: the initial parameters of worker a\/1 hold NaN in tensor '/;

    test('of the only worker fail the run, and the reason names the tensor', () => {
      const run = createRun({});
      enter(run, 'a/1');
      give(run, 'a/1');
      expect(run.phase).toBe('failed');
      expect(run.reason).toMatch(reason);
      expect(ask(run, 'a/1')).toEqual({ kind: 'end' });
    });

    test('are not asked for again, and do no harm where another worker has better ones', () => {
      const run = createRun({});
      enter(run, 'a/1', 'b/2');
      give(run, 'a/1');
      expect(ask(run, 'a/1')).toEqual({ kind: 'wait' });
      expect(run.phase).toBe('waiting');
      const other = new VirtualWorker(run, problem, 'b/2');
      expect(other.pull()).toBe(true);
      expect(run.phase).toBe('training');
      expect(ask(run, 'a/1')).toMatchObject({ kind: 'work' });
    });

    test('fail the run when the last worker that might have better ones leaves', () => {
      const run = createRun({});
      enter(run, 'a/1', 'b/2');
      give(run, 'a/1');
      run.call({ call: 'leave', worker: 'b/2' });
      expect(run.phase).toBe('failed');
      expect(run.reason).toMatch(reason);
    });

    test('leave one whose connection is lost the time to come back', () => {
      const run = createRun({});
      enter(run, 'a/1', 'b/2');
      give(run, 'a/1');
      run.call({ call: 'detach', worker: 'b/2', now: 1_000 });
      run.call({ call: 'tick', now: 2_000 });
      run.call({ call: 'tick', now: 6_000 });
      expect(run.phase).toBe('waiting');
      run.call({ call: 'join', worker: 'b/2', join, now: 6_500 });
      run.call({ call: 'tick', now: 9_000 });
      expect(ask(run, 'b/2', 9_000)).toMatchObject({ kind: 'initialise' });
      run.call({ call: 'detach', worker: 'b/2', now: 10_000 });
      run.call({ call: 'tick', now: 11_000 });
      run.call({ call: 'tick', now: 16_000 });
      expect(run.phase).toBe('failed');
    });

    test.each<[string, (run: Run) => void]>([
      ['leaves', (run) => run.call({ call: 'leave', worker: 'a/1' })],
      ['loses its connection', (run) => run.call({ call: 'detach', worker: 'a/1', now: 1 })],
      ['is late', (run) => run.call({ call: 'tick', now: 10_000 })],
      [
        'is stopped',
        (run) => {
          run.call({ call: 'stop', reason: 'enough' });
          run.call({ call: 'resume' });
        },
      ],
    ])('of a worker that %s leave no rows to the next one', (_, goes) => {
      const run = createRun({ leaseSeconds: 1, tables: { word: { rows: 10, width: 2 } } });
      enter(run, 'a/1', 'b/2');
      const asked = ask(run, 'a/1');
      if (asked.kind !== 'initialise') throw new Error(asked.kind);
      const rows = [{ keys: Uint32Array.of(3), values: Float32Array.of(1, 2) }];
      const call = { call: 'initialRows', worker: 'a/1', grant: asked.grant } as const;
      expect(run.call(call, encodeRows(run.tables!.shapes, rows, 'f32'))).toBe(true);
      expect(run.tables!.facts()[0]!.pretrained).toBe(1);
      goes(run);
      const other = new VirtualWorker(run, problem, 'b/2');
      expect(other.pull(10_000)).toBe(true);
      expect(run.phase).toBe('training');
      expect(run.tables!.facts()[0]).toMatchObject({ rows: 0, pretrained: 0 });
    });

    test('are asked of who was late once all others have refused', () => {
      const run = createRun({ leaseSeconds: 1 });
      enter(run, 'a/1', 'b/2');
      expect(ask(run, 'b/2')).toMatchObject({ kind: 'initialise' });
      run.call({ call: 'tick', now: 10_000 });
      give(run, 'a/1');
      expect(run.phase).toBe('waiting');
      expect(ask(run, 'b/2', 10_000)).toMatchObject({ kind: 'initialise' });
    });
  });

  test('an evaluation passes on when its worker does not come back', () => {
    const run = createRun({ epochsMax: 1 });
    const worker = new VirtualWorker(run, problem);
    worker.train(() => run.step === 5);
    run.call({ call: 'join', worker: 'b/2', join, now: 0 });
    expect(run.call({ call: 'assign', worker: worker.key, ahead: 1, now: 0 })).toMatchObject({
      evaluation: { part: 'validation' },
    });
    expect(run.call({ call: 'assign', worker: 'b/2', ahead: 1, now: 0 })).toEqual({ kind: 'wait' });
    run.call({ call: 'detach', worker: worker.key, now: 0 });
    run.call({ call: 'tick', now: 5000 });
    expect(run.call({ call: 'assign', worker: 'b/2', ahead: 1, now: 0 })).toMatchObject({
      evaluation: { part: 'validation' },
    });
  });

  test.each([
    ['that computes a minibatch for good', (run: Run) => run.call({ call: 'tick', now: 10_000 })],
    ['whose minibatch was taken back', () => {}],
  ])('an evaluation comes back to who was late with it, past a worker %s', (_, runOut) => {
    const run = createRun({ epochsMax: 9, evaluateEverySteps: 5, leaseSeconds: 10 });
    const worker = new VirtualWorker(run, problem);
    const assign = (key: string, now: number) =>
      run.call({ call: 'assign', worker: key, ahead: 1, now });
    const evaluation = { evaluation: { part: 'validation' } };
    worker.train(() => run.step === 4);
    run.call({ call: 'join', worker: 'hung/2', join, now: 0 });
    expect(assign('hung/2', 0)).toMatchObject({ kind: 'work', leases: [{}] });
    runOut(run);
    worker.train(() => run.step === 5);
    expect(assign(worker.key, 10_000)).toMatchObject(evaluation);
    run.call({ call: 'detach', worker: worker.key, now: 10_000 });
    run.call({ call: 'tick', now: 20_000 });
    run.call({ call: 'join', worker: worker.key, join, now: 20_000 });
    expect(assign(worker.key, 20_000)).toMatchObject(evaluation);
    // It computes after all.
    run.call({ call: 'tick', now: 200_000 });
    expect(assign('hung/2', 200_000)).toMatchObject(evaluation);
  });

  test('an evaluation is left to another that has nothing to do, by who was late with it', () => {
    const run = createRun({ epochsMax: 1 });
    const worker = new VirtualWorker(run, problem);
    worker.train(() => run.step === 5);
    run.call({ call: 'join', worker: 'b/2', join, now: 0 });
    const assign = (key: string) => run.call({ call: 'assign', worker: key, ahead: 1, now: 9_999 });
    expect(assign(worker.key)).toMatchObject({ evaluation: { part: 'validation' } });
    expect(assign('b/2')).toEqual({ kind: 'wait' });
    run.call({ call: 'detach', worker: worker.key, now: 0 });
    run.call({ call: 'tick', now: 5000 });
    run.call({ call: 'join', worker: worker.key, join, now: 5000 });
    expect(assign(worker.key)).toEqual({ kind: 'wait' });
    expect(assign('b/2')).toMatchObject({ evaluation: { part: 'validation' } });
  });

  test('frozen tensors travel once, with the first parameters', () => {
    const run = createRun({});
    const worker = new VirtualWorker(run, problem);
    worker.pull();
    const first = run.call({ call: 'assign', worker: worker.key, ahead: 1, now: 0 });
    const second = run.call({ call: 'assign', worker: worker.key, ahead: 1, now: 0 });
    expect(first.kind === 'work' && first.payload!.bytes.length).toBe(4 * (EXCHANGED + 1));
    expect(second.kind === 'work' && second.payload!.bytes.length).toBe(4 * EXCHANGED);
  });

  test('a worker that has the parameters of a step is sent them no more', () => {
    const run = createRun({});
    const worker = new VirtualWorker(run, problem);
    worker.pull();
    worker.pull();
    const { step, generation } = run;
    const sent = (to: { generation: number; step: number }) => {
      const connection = { session: 's', base: -1, pulls: 0, ...to };
      const work = run.call({
        ...{ call: 'assign', worker: worker.key, ahead: 1, now: 0, to: connection },
      });
      return work.kind === 'work' ? work.payload !== null : null;
    };
    expect(sent({ generation, step })).toBe(false);
    expect(sent({ generation, step: step - 1 })).toBe(true);
    expect(sent({ generation: generation - 1, step })).toBe(true);
    // A new connection has nothing.
    expect(sent({ generation: -1, step: -1 })).toBe(true);
  });
});

describe('the test part', () => {
  test('is looked at once, by the final parameters, also after a restart', () => {
    const run = createRun({ ...stopEarly, testAtEnd: false });
    const worker = new VirtualWorker(run, problem);
    expect(() => run.call({ call: 'test' })).toThrow(/has no parameters yet/);
    expect(worker.pull(0)).toBe(true);
    expect(() => run.call({ call: 'test' })).toThrow(
      /is training: the test part is for the final parameters/,
    );
    worker.train();
    expect(run.summary(0)).toMatchObject({ phase: 'finished', test: null });
    const { state, tensors } = saved(run);
    const later = Run.restore(state, tensors);
    later.call({ call: 'test' });
    expect(later.phase).toBe('testing');
    new VirtualWorker(later, problem, 'b/1').train();
    const { test: seen, phase, reason } = later.summary(0);
    expect({ phase, reason }).toEqual({ phase: 'finished', reason: run.reason });
    expect(seen).toMatchObject({ step: run.best!.step, part: 'test' });
    expect(seen!.loss).toBe(lossOf(problem, 'test', parametersOf(run)));
    expect(() => later.call({ call: 'test' })).toThrow(/was looked at .* it counts once/);
    const again = saved(later);
    expect(() => Run.restore(again.state, again.tensors).call({ call: 'test' })).toThrow(
      /it counts once/,
    );
  });
});

test('stop hands everything back, and resume goes on where it was', () => {
  const run = createRun(stopEarly);
  const whole = createRun(stopEarly);
  new VirtualWorker(whole, problem).train();
  const worker = new VirtualWorker(run, problem);
  worker.train(() => run.step === 8);
  run.call({ call: 'stop', reason: 'by a user' });
  expect(run.call({ call: 'assign', worker: worker.key, ahead: 1, now: 0 })).toEqual({
    kind: 'end',
  });
  run.call({ call: 'resume' });
  worker.train();
  expect(parametersOf(run)).toEqual(parametersOf(whole));
  expect(() => run.call({ call: 'resume' })).toThrow(
    expect.objectContaining({ code: 'DP_RUN_ENDED' }),
  );
});

test('moving statistics are merged exactly, whatever the staleness', () => {
  const run = createRun({ stepsMax: 40 });
  const workers = [1, 2, 3, 4].map((i) => new VirtualWorker(run, problem, `w/${i}`));
  workers[0]!.pull();
  const seen: number[] = [];
  const record = (payload: Float32Array) => void seen.push(payload[EXCHANGED - 1]!);
  const draw = random(5, 5);
  while (run.step < 40) {
    const worker = workers[draw.below(4)]!;
    if (draw.uniform() < 0.5) worker.pull();
    else if (worker.push(0, record)?.outcome === 'rejected') seen.pop();
  }
  let expected = Math.fround(runInitialMean(run));
  for (const [t, value] of seen.entries()) {
    const keep = Math.min(0.9, (1 + t) / (10 + t));
    expected = Math.fround(keep * expected + (1 - keep) * value);
  }
  expect(run.finalTensors().find((t) => t.name === 'mean')!.values[0]).toBeCloseTo(expected, 5);
});

/** The statistics that `VirtualWorker` created for the run's seed. */
function runInitialMean(run: Run): number {
  const draw = random(run.config.seed, 1);
  let value = 0;
  for (let i = 0; i < EXCHANGED; i++) value = draw.normal() * 0.1;
  return value;
}

/** Invariants 1, 2, 4, 7 and 8 under any interleaving of four workers that fail at will. */
test('no interleaving of workers breaks an invariant', () => {
  fc.assert(
    fc.property(fc.integer({ min: 0, max: 1e6 }), fc.nat(3), (seed, bound) => {
      let run = createRun({
        epochsMax: 4,
        leaseSeconds: 1,
        consistency: { stalenessMax: bound },
        earlyStopping: { enabled: false },
      });
      const draw = random(seed, 11);
      let incarnations = 0;
      const hire = () => new VirtualWorker(run, problem, `w/${++incarnations}`);
      let workers = [hire(), hire(), hire(), hire()];
      const uses: string[] = [];
      let now = 0;
      let step = 0;
      for (let i = 0; i < 3000 && !run.over; i++) {
        now += draw.below(200);
        const at = draw.below(4);
        const worker = workers[at]!;
        const event = draw.uniform();
        if (event < 0.45) worker.pull(now);
        else if (event < 0.93) {
          const acknowledgement = worker.push(now);
          if (acknowledgement?.outcome === 'applied') {
            expect(acknowledgement.staleness).toBeLessThanOrEqual(bound);
            uses.push(worker.applied.at(-1)!);
          }
        } else if (event < 0.95) run.call({ call: 'tick', now });
        else if (event < 0.97) {
          run.call({ call: 'detach', worker: worker.key, now });
          workers[at] = hire();
        } else if (event < 0.99) {
          run.call({ call: 'leave', worker: worker.key });
          workers[at] = hire();
        } else if (run.hasParameters) {
          const { state, tensors } = saved(run);
          run = Run.restore(state, tensors);
          expect(run.step).toBe(step);
          workers = workers.map(() => hire());
        }
        expect(run.step).toBeGreaterThanOrEqual(step);
        step = run.step;
      }
      if (run.hasParameters) expect(parametersOf(run).every(Number.isFinite)).toBe(true);
      expect(new Set(uses).size).toBe(uses.length);
      if (run.phase === 'finished') expect(uses.length).toBe(20);
    }),
    { numRuns: 150 },
  );
});
