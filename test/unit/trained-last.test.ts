import { expect, test } from 'vitest';
import { Run } from '../../server/core/run.ts';
import type { PartialConfig } from '../../shared/config.ts';
import { kindOfModel, measurementsOf } from '../../shared/trained-last.ts';
import {
  createProblem,
  createRun,
  lossOf,
  parametersOf,
  VirtualWorker,
} from '../support/regression.ts';

const problem = createProblem();

/** What is told of the parameters of each kind, against what these parameters give. */
function measured(run: Run, kind: 'best' | 'final' | 'last', isOfThatMoment = true) {
  const { phase, best, test, earlyStopping, testedAt } = run.summary(0);
  const course = {
    phase,
    config: run.config,
    best,
    test,
    testedAt,
    stoppedAt: earlyStopping.stoppedAt,
  };
  const step = kind === 'best' ? best!.step : run.step;
  const tensors = kind === 'best' ? run.bestTensors() : run.finalTensors();
  const theta = Float32Array.from(tensors.flatMap(({ values }) => [...values]));
  return { theta, ...measurementsOf(course, { kind, step }, isOfThatMoment) };
}

const averaged = { averaging: { kind: 'ema', decay: 0.9 } } as const;
const AFTER: readonly (readonly [string, PartialConfig])[] = [
  ['restore', {}],
  ['restore, averaged', averaged],
  ['retrain', { earlyStopping: { afterStop: 'retrain' } }],
  ['retrain, averaged', { ...averaged, earlyStopping: { afterStop: 'retrain' } }],
  ['continue', { earlyStopping: { afterStop: 'continue', continueStepsMax: 5000 } }],
  ['continue, never there', { earlyStopping: { afterStop: 'continue', continueStepsMax: 3 } }],
  [
    'continue, averaged',
    { ...averaged, earlyStopping: { afterStop: 'continue', continueStepsMax: 9 } },
  ],
];

test.each(AFTER)('what is told beside parameters was measured with these (%s)', (name, own) => {
  const config = { ...own, earlyStopping: { patience: 4, ...own.earlyStopping } };
  const restored = name.startsWith('restore');
  for (const testAtEnd of [true, false]) {
    let run = createRun({ ...config, testAtEnd });
    new VirtualWorker(run, problem).train();
    if (!testAtEnd) {
      // Looked at later, by another process.
      run = Run.restore(JSON.parse(JSON.stringify(run.state(0))), run.tensors());
      run.call({ call: 'test' });
      new VirtualWorker(run, problem, 'later/1').train();
    }
    expect(kindOfModel(run)).toBe('final');
    for (const kind of ['best', 'final', 'last'] as const) {
      const { theta, best, test: tested, step, learntValidation } = measured(run, kind);
      expect(best !== null, kind).toBe(kind === 'best' || restored);
      if (best) {
        expect(lossOf(problem, 'validation', theta)).toBe(best.loss);
        expect(step).toBe(best.step);
      }
      expect(tested !== null, kind).toBe(kind !== 'best' || restored);
      if (tested) {
        expect(lossOf(problem, 'test', theta)).toBe(tested.loss);
        expect(step).toBe(tested.step);
      }
      expect(learntValidation).toBe(!restored && kind !== 'best');
    }
    // Nobody knows when it was written: nothing is claimed.
    expect(measured(run, 'last', false)).toMatchObject({ best: null, test: null });
  }
});

test('a run that was stopped in the middle of refitting stands by its best parameters', () => {
  const run = createRun({ earlyStopping: { patience: 4, afterStop: 'retrain' } });
  new VirtualWorker(run, problem).train(
    () => run.phase === 'refitting' && run.step > run.best!.step + 8,
  );
  run.call({ call: 'stop', reason: 'enough' });
  expect(kindOfModel(run)).toBe('best');
  const { theta, best, test: tested, learntValidation } = measured(run, 'best');
  expect(lossOf(problem, 'validation', theta)).toBe(best!.loss);
  expect([tested, learntValidation]).toEqual([null, false]);
  expect(measured(run, 'last')).toMatchObject({ best: null, test: null, learntValidation: true });
  run.call({ call: 'resume' });
  new VirtualWorker(run, problem, 'later/1').train();
  expect(kindOfModel(run)).toBe('final');
  expect(parametersOf(run)).not.toEqual(theta);
});

test('a test that is stopped leaves the run finished, with its final parameters', () => {
  const run = createRun({ earlyStopping: { patience: 4, afterStop: 'retrain' }, testAtEnd: false });
  new VirtualWorker(run, problem).train();
  const { reason } = run;
  run.call({ call: 'test' });
  const worker = new VirtualWorker(run, problem, 'slow/1');
  run.call({ call: 'assign', worker: worker.key, ahead: 2, now: 0 });
  run.call({ call: 'stop', reason: 'its data are others' });
  expect([run.phase, run.reason, kindOfModel(run)]).toEqual(['finished', reason, 'final']);
  expect(Run.restore(JSON.parse(JSON.stringify(run.state(0))), run.tensors()).phase).toBe(
    'finished',
  );
  run.call({ call: 'test' });
  new VirtualWorker(run, problem, 'later/1').train();
  expect(measured(run, 'final').test?.loss).toBe(lossOf(problem, 'test', parametersOf(run)));
});
