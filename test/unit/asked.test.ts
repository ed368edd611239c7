import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { Run } from '../../server/core/run.ts';
import { bytesOf } from '../../shared/codec.ts';
import type { PartialConfig } from '../../shared/config.ts';
import { DownpourError, type ErrorCode } from '../../shared/errors.ts';
import type { Observed } from '../../shared/observed.ts';
import type { Evaluated, Phase, Push } from '../../shared/protocol.ts';
import { createProblem, createRun, EXCHANGED, VirtualWorker } from '../support/regression.ts';

const problem = createProblem();
const COUNTS = { train: 20, validation: 10, test: 10, trainAndValidation: 30 };

const result = (run: Run, evaluation: number, examples: number, loss = 1e-9): Evaluated => ({
  ...{ type: 'evaluated', run: run.id, evaluation, loss, error: loss, examples, metrics: {} },
});

/** Works until an evaluation is to be done in this phase. @returns it. */
function untilEvaluation(run: Run, worker: VirtualWorker, phase: Phase) {
  const due = () => run.phase === phase && run.replica().fields.evaluation !== null;
  worker.train(due);
  expect(due(), `${phase} of ${run.phase}`).toBe(true);
  const assignment = run.call({ call: 'assign', worker: worker.key, ahead: 1, now: 0 });
  if (assignment.kind !== 'work' || !assignment.evaluation) throw new Error('no evaluation');
  return assignment.evaluation;
}

/** All that a run has come to, without the counts of what was refused. */
function lasting(run: Run): string {
  const { pushes, workers, seconds, ...state } = run.state(0);
  return JSON.stringify([state, run.finalTensors().map(({ values }) => [...values])]);
}

describe('a run that is stopped', () => {
  const cases: [Phase, PartialConfig][] = [
    ['training', { evaluateEverySteps: 4 }],
    ['measuring', { earlyStopping: { patience: 2, afterStop: 'continue' } }],
    ['refitting', { earlyStopping: { patience: 2, afterStop: 'continue' } }],
    ['testing', { earlyStopping: { patience: 2 } }],
  ];
  test.each(cases)(
    'stays so, whatever comes of its %s, and goes on as it would have',
    (phase, config) => {
      const whole = createRun(config);
      new VirtualWorker(whole, problem).train();
      const run = createRun(config);
      const worker = new VirtualWorker(run, problem);
      const { id, part } = untilEvaluation(run, worker, phase);
      run.call({ call: 'stop', reason: 'enough' });
      const before = lasting(run);
      run.call({
        call: 'evaluated',
        worker: worker.key,
        result: result(run, id, COUNTS[part]),
        now: 0,
      });
      expect(run.phase).toBe('stopped');
      expect(lasting(run)).toBe(before);
      const { state, tensors } = {
        state: JSON.parse(JSON.stringify(run.state(0))),
        tensors: run.tensors(),
      };
      const later = Run.restore(state, tensors);
      for (const each of [run, later]) {
        each.call({ call: 'resume' });
        expect(each.phase).toBe(phase);
        new VirtualWorker(each, problem, 'v/2').train();
        expect([each.phase, each.step, each.best]).toEqual(['finished', whole.step, whole.best]);
      }
    },
  );

  test('takes no parameters either, and asks for them again', () => {
    const run = createRun({});
    const worker = new VirtualWorker(run, problem);
    const assignment = run.call({ call: 'assign', worker: worker.key, ahead: 1, now: 0 });
    if (assignment.kind !== 'initialise') throw new Error('not asked');
    run.call({ call: 'stop', reason: 'enough' });
    run.call(
      { call: 'initialised', worker: worker.key, grant: assignment.grant, now: 0 },
      bytesOf(new Float32Array(EXCHANGED + 1).fill(1)),
    );
    expect([run.phase, run.hasParameters]).toEqual(['stopped', false]);
    run.call({ call: 'resume' });
    worker.train();
    expect(run.phase).toBe('finished');
  });
});

describe('only who was asked answers', () => {
  test('an evaluation: not a stranger, nor one in quarantine, nor for other examples', () => {
    const run = createRun({ evaluateEverySteps: 4, robust: { quarantineAfter: 1 } });
    const worker = new VirtualWorker(run, problem, 'w/1');
    const other = new VirtualWorker(run, problem, 'other/1');
    const { id, part } = untilEvaluation(run, worker, 'training');
    const before = lasting(run);
    for (const key of [other.key, 'nobody/7'])
      run.call({ call: 'evaluated', worker: key, result: result(run, id, COUNTS[part]), now: 0 });
    expect(lasting(run)).toBe(before);
    expect(
      codeOf(() =>
        run.call({ call: 'evaluated', worker: worker.key, result: result(run, id, 11), now: 0 }),
      ),
    ).toBe('DP_DATA_MISMATCH');
    expect(run.metrics().evaluations).toEqual([]);
    // Another one is asked.
    run.call({
      call: 'evaluated',
      worker: worker.key,
      result: result(run, id, COUNTS[part]),
      now: 0,
    });
    expect(run.metrics().evaluations).toEqual([]);
    expect(run.call({ call: 'assign', worker: other.key, ahead: 1, now: 0 })).toMatchObject({
      evaluation: { id },
    });
    run.call({
      call: 'evaluated',
      worker: other.key,
      result: result(run, id, COUNTS[part]),
      now: 0,
    });
    expect(run.metrics().evaluations).toHaveLength(1);
  });

  test('a sample: once for each lease that asks for one', () => {
    const run = createRun({ observe: { everySteps: 3 } });
    const worker = new VirtualWorker(run, problem);
    const stranger = new VirtualWorker(run, problem, 's/1');
    worker.train(() => run.step === 4);
    for (let i = 0; i < 5; i++) {
      run.call({ call: 'sampled', worker: stranger.key, observed: observed(run), now: 0 });
      run.call({ call: 'sampled', worker: worker.key, observed: observed(run), now: 0 });
    }
    expect(run.observed.samples).toHaveLength(1);
    worker.train(() => run.step >= 7);
    run.call({ call: 'sampled', worker: worker.key, observed: observed(run), now: 0 });
    expect(run.observed.samples).toHaveLength(2);
  });

  test('a push names no parameters that its worker was not sent, so staleness cannot be lied away', () => {
    const run = createRun({ consistency: { stalenessMax: 1 }, evaluateEverySteps: 1000 });
    const liar = new LyingWorker(run, problem, 'liar/1');
    const honest = new VirtualWorker(run, problem, 'w/1');
    honest.train(() => run.step === 1);
    liar.pull();
    honest.train(() => run.step === 4);
    liar.claim = run.step;
    expect(liar.push()).toMatchObject({
      outcome: 'rejected',
      code: 'DP_PUSH_STALE',
      message: expect.stringContaining('was sent none after step 1'),
    });
    expect(run.step).toBe(4);
    liar.claim = null;
    liar.pull();
    expect(liar.push()).toMatchObject({ outcome: 'applied' });
  });
});

class LyingWorker extends VirtualWorker {
  claim: number | null = null;

  protected override tell(push: Push): Push {
    return { ...push, step: this.claim ?? push.step };
  }
}

const histogram = { low: 0, high: 1, counts: [1] };
const observed = (run: Run): Observed => ({
  ...{ type: 'observed', run: run.id, step: run.step, updateSteps: 1, samples: 1, costMs: 1 },
  tensors: [
    {
      ...{ name: 'weights', weights: histogram, gradients: histogram, updates: null },
      ...{ gradientNorm: 1, updateRatio: null, elements: 1, never: 0, rare: 0 },
    },
  ],
  layers: [],
});

function codeOf(action: () => unknown): ErrorCode | null {
  try {
    action();
  } catch (error) {
    if (error instanceof DownpourError) return error.code;
    throw error;
  }
  return null;
}

const CONFIGS: PartialConfig[] = [
  { evaluateEverySteps: 3, epochsMax: 6, observe: { everySteps: 2 } },
  {
    earlyStopping: { patience: 1, afterStop: 'continue', continueStepsMax: 6 },
    evaluateEverySteps: 2,
  },
  {
    earlyStopping: { patience: 1, afterStop: 'retrain' },
    evaluateEverySteps: 2,
    robust: { quarantineAfter: 2 },
  },
];

test('nothing that a worker sends without having been asked changes what a run comes to', () => {
  fc.assert(
    fc.property(
      fc.constantFrom(...CONFIGS),
      fc.array(fc.tuple(fc.nat({ max: 11 }), fc.nat({ max: 3 })), { minLength: 5, maxLength: 60 }),
      (config, steps) => {
        const run = createRun(config);
        const workers = ['a/1', 'b/1'].map((key) => new VirtualWorker(run, problem, key));
        const joined = new VirtualWorker(run, problem, 's/1');
        for (const [what, which] of steps) {
          const worker = workers[which % 2]!;
          if (what === 0) run.call({ call: 'stop', reason: 'by a user' });
          else if (what === 1 && run.phase === 'stopped') run.call({ call: 'resume' });
          else if (what < 5) worker.pull();
          else if (what < 7) worker.push();
          const stranger = [joined.key, 'unknown/1', 's/2', 'a/2'][which]!;
          const { fields, parts } = run.replica();
          const { evaluation, grant } = fields;
          const asked = evaluation?.worker ?? grant?.worker;
          // Whoever has been asked may answer; of a run that is over, nobody.
          if (!run.over) expect(asked).not.toBe(stranger);
          const from = run.over && asked ? asked : stranger;
          const before = lasting(run);
          const lease = parts.leases?.held[0]?.lease.id ?? 1;
          const push: Push = {
            ...{ type: 'push', run: run.id, sequence: 1000 + run.step, lease, step: run.step },
            ...{ generation: run.generation, loss: 0, computeMs: 1, encoding: 'f32' },
          };
          const size = EXCHANGED;
          for (const act of [
            () =>
              run.call({
                call: 'evaluated',
                worker: from,
                result: result(run, evaluation?.id ?? 1, COUNTS[evaluation?.part ?? 'validation']),
                now: 0,
              }),
            () =>
              run.call({
                call: 'evaluated',
                worker: from,
                result: result(run, evaluation?.id ?? 1, 3),
                now: 0,
              }),
            () =>
              run.call(
                { call: 'initialised', worker: from, grant: grant?.id ?? 1, now: 0 },
                bytesOf(new Float32Array(size + 1).fill(1)),
              ),
            () =>
              run.call(
                { call: 'push', worker: stranger, push, now: 0 },
                bytesOf(new Float32Array(size).fill(1)),
              ),
            () => run.call({ call: 'sampled', worker: stranger, observed: observed(run), now: 0 }),
          ]) {
            codeOf(act);
          }
          if (run.hasParameters) expect(lasting(run)).toBe(before);
        }
      },
    ),
    { numRuns: 150 },
  );
});
