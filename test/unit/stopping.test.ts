import { expect, test } from 'vitest';
import { runFacts } from '../../cli/output/progress.ts';
import type { RunSummary } from '../../shared/rest.ts';
import { stoppingText } from '../../shared/stopping.ts';
import { createProblem, createRun, VirtualWorker } from '../support/regression.ts';

const text = (run: object, earlyStopping: object = {}) =>
  stoppingText(
    {
      ...{ phase: 'training', stepsMax: null, ...run },
      earlyStopping: {
        ...{ enabled: true, metric: 'loss', patience: 5, patienceLeft: 3, afterStop: 'restore' },
        ...{ stoppedAt: null, target: null, refitSteps: null, ...earlyStopping },
      },
    } as RunSummary,
    String,
  );

test('what ends training is told as the run is configured', () => {
  expect(text({})).toBe(
    '3 of 5 evaluations without a lower validation loss are left before training stops; then the best parameters are restored',
  );
  expect(text({ stepsMax: 900 }, { metric: 'error', patience: 1, patienceLeft: 1 })).toMatch(
    /^1 of 1 evaluation without a lower validation error .* at step 900 at the latest; then/,
  );
  expect(text({ stepsMax: 900 }, { enabled: false, afterStop: 'retrain' })).toMatch(
    /^Early stopping is off: training ends at step 900; then it retrains/,
  );
  expect(text({}, { enabled: false })).toMatch(/^Early stopping is off: .* its last epoch; then/);
});

test('of what has stopped nothing is told as if it were still to come', () => {
  expect(text({ phase: 'finished' }, { stoppedAt: 40 })).toBe(
    'Training stopped at step 40; the best parameters were restored',
  );
  expect(text({ phase: 'refitting' }, { stoppedAt: 40, afterStop: 'continue' })).toMatch(
    /^Training stopped at step 40; then it continues from the best/,
  );
  expect(text({ phase: 'failed' })).not.toMatch(/left|then/);
});

test.each([true, false])(
  '`status` says patience only where it counts: early stopping %s',
  (enabled) => {
    const run = createRun({ epochsMax: 4, earlyStopping: { enabled, patience: 3 } });
    const worker = new VirtualWorker(run, createProblem());
    worker.train(() => run.step === 3);
    const lines = () => runFacts({ ...run.summary(0), checkpoint: null } as RunSummary).join('\n');
    expect(lines().includes('left before training stops')).toBe(enabled);
    worker.train();
    expect(run.phase).toBe('finished');
    expect(lines()).not.toMatch(/left before|ends at/);
    expect(lines()).toContain('Training stopped at step');
  },
);
