import { expect, test } from 'vitest';
import { NAMES_MAX, NORMS_MIN, ROBUST_WINDOW, Robust } from '../../server/core/robust.ts';
import { type PartialConfig, resolveConfig } from '../../shared/config.ts';
import { createProblem, createRun, VirtualWorker } from '../support/regression.ts';

/** What a worker that is broken, or means harm, can do to a run, and what it can't. */

const problem = createProblem();
const nan = (payload: Float32Array) => {
  payload[0] = Number.NaN;
};
const huge = (payload: Float32Array) => {
  payload.fill(1e6);
};

/** An honest worker and a bad one, the honest one ahead by `steps`. */
function pair(config: PartialConfig, steps = 30) {
  const run = createRun({ epochsMax: 200, earlyStopping: { enabled: false }, ...config });
  const good = new VirtualWorker(run, problem, 'good/1');
  const bad = new VirtualWorker(run, problem, 'bad/1');
  good.train(() => run.step >= steps);
  const turn = (worker: VirtualWorker, change?: (payload: Float32Array) => void, now = 0) => {
    for (let i = 0; i < 5; i++) {
      worker.pull(now);
      const acknowledgement = worker.push(now, change);
      if (acknowledgement) return acknowledgement;
    }
    throw new Error('no minibatch to push');
  };
  return { run, good, bad, turn };
}

test('a push above normMax is rejected before clipping, and changes nothing', () => {
  const { run, good, bad, turn } = pair({ robust: { normMax: 1000 }, clip: { norm: 1 } });
  const { step } = run;
  expect(turn(bad, huge)).toMatchObject({ outcome: 'rejected', code: 'DP_GRADIENT_TOO_LARGE' });
  expect(run.step).toBe(step);
  expect(turn(good)).toMatchObject({ outcome: 'applied' });
});

test('so is one of too many times the running median, once enough norms are known', () => {
  const { bad, turn } = pair({ robust: { normMedianMax: 10 } }, NORMS_MIN - 1);
  expect(turn(bad, (payload) => payload.fill(50))).toMatchObject({ outcome: 'applied' });
  const later = pair({ robust: { normMedianMax: 10 } });
  const refused = later.turn(later.bad, huge);
  expect(refused).toMatchObject({ outcome: 'rejected', code: 'DP_GRADIENT_TOO_LARGE' });
  expect(refused.message).toContain('times the median');
});

test('when the gradients of all grow, the median follows and training goes on', () => {
  const robust = new Robust(resolveConfig({ robust: { normMedianMax: 10 } }));
  for (let i = 0; i < ROBUST_WINDOW; i++) expect(robust.refuse('a/1', 1, 0)).toBeNull();
  let refused = 0;
  while (robust.refuse('a/1', 100, 0)) refused++;
  expect(refused).toBeLessThanOrEqual(ROBUST_WINDOW / 2 + 1);
});

test('a worker whose pushes are bad again and again is shut out, however it is started anew', () => {
  for (const change of [nan, huge]) {
    const { run, good, bad, turn } = pair({ robust: { normMax: 1000, quarantineAfter: 3 } });
    for (let i = 0; i < 3; i++) {
      turn(good);
      expect(run.quarantine('bad/1')).toBeNull();
      expect(turn(bad, change).outcome).toBe('rejected');
    }
    expect(run.quarantine('bad/1')).toContain('3 bad pushes in a row');
    expect(run.quarantine('bad/2')).toContain('3 bad pushes in a row');
    expect(run.quarantine('good/1')).toBeNull();
    expect(turn(bad)).toMatchObject({ outcome: 'rejected', code: 'DP_QUARANTINED' });
    expect(() => new VirtualWorker(run, problem, 'bad/2')).toThrow(
      'rejects everything from this worker',
    );
    expect(run.phase).toBe('training');
    expect(run.summary(0).rollbacks).toEqual([]);
    run.call({ call: 'stop', reason: 'to mend it' });
    run.call({ call: 'resume' });
    expect(run.quarantine('bad/1')).toBeNull();
  }
});

test('a good push in between begins the count anew', () => {
  const { run, good, bad, turn } = pair({ robust: { normMax: 1000, quarantineAfter: 2 } });
  for (let i = 0; i < 5; i++) {
    turn(bad, huge);
    turn(good);
    expect(turn(bad).outcome).toBe('applied');
  }
  expect(run.quarantine('bad/1')).toBeNull();
});

test('where all are bad it is the run that diverges, and nobody is shut out', () => {
  const { run, good, bad, turn } = pair({ nonFiniteMax: 8, robust: { quarantineAfter: 2 } });
  for (let i = 0; i < 4; i++) {
    turn(good, nan);
    turn(bad, nan);
  }
  expect(run.quarantine('good/1')).toBeNull();
  expect(run.quarantine('bad/1')).toBeNull();
  expect(run.summary(0).rollbacks).toHaveLength(1);
});

test('no worker has more than its share of the updates while others push', () => {
  const { run, good, bad, turn } = pair({ robust: { shareMax: 0.2 } }, 3);
  const other = new VirtualWorker(run, problem, 'other/1');
  const third = new VirtualWorker(run, problem, 'third/1');
  const honest = [good, other, third];
  for (const worker of honest) turn(worker);
  const order: VirtualWorker[] = [];
  // Ten times as fast as the others together.
  for (let i = 0; i < 200; i++) {
    for (const worker of honest) if (turn(worker).outcome === 'applied') order.push(worker);
    for (let k = 0; k < 30; k++) if (turn(bad).outcome === 'applied') order.push(bad);
  }
  expect(bad.acknowledgements.at(-1)).toMatchObject({ outcome: 'rejected', code: 'DP_PUSH_SHARE' });
  const last = order.slice(-ROBUST_WINDOW);
  // Four workers push: a quarter is more than the fifth that was asked for.
  expect(last.filter((worker) => worker === bad)).toHaveLength(25);
  expect(order.length).toBeGreaterThan(700);
  expect(run.quarantine('bad/1')).toBeNull();
});

test('alone, or when the others have stopped, it may go on to the end', () => {
  const alone = createRun({ robust: { shareMax: 0.1 }, epochsMax: 30 });
  new VirtualWorker(alone, problem).train();
  expect(alone.phase).toBe('finished');
  const { run, good, bad, turn } = pair({ robust: { shareMax: 0.1 }, leaseSeconds: 60 }, 5);
  const outcomes = Array.from({ length: 60 }, () => turn(bad).outcome);
  expect(outcomes.at(-1)).toBe('rejected');
  expect(outcomes[0]).toBe('applied');
  expect(turn(bad, undefined, 61_000).outcome).toBe('applied');
  turn(good, undefined, 61_000);
  expect(turn(bad, undefined, 61_000).outcome).toBe('rejected');
  run.call({ call: 'detach', worker: 'good/1', now: 61_000 });
  expect(turn(bad, undefined, 61_000).outcome).toBe('applied');
});

test('what a worker of another token does under a name is not held against its owner', () => {
  const run = createRun({ robust: { quarantineAfter: 1 }, earlyStopping: { enabled: false } });
  const good = new VirtualWorker(run, problem, 'good/1/aaaa');
  const thief = new VirtualWorker(run, problem, 'name/1/bbbb');
  good.train(() => run.step >= 5);
  for (let i = 0; i < 12 && run.quarantine(thief.key) === null; i++) {
    thief.pull();
    thief.push(0, nan);
    good.train(() => run.step >= 6 + i);
  }
  expect(run.quarantine('name/2/bbbb')).toContain('bad pushes in a row');
  expect(run.quarantine('name/2/aaaa')).toBeNull();
  expect(run.quarantine('name/1')).toBeNull();
});

test('a sender that takes ever new names is remembered under a limited number of them', () => {
  const robust = new Robust(resolveConfig({ robust: { quarantineAfter: 2 } }));
  for (let i = 0; i <= NAMES_MAX; i++) {
    robust.bad(`name-${i}/1`, 'huge');
    robust.applied('good/1', i);
    expect(robust.bad(`name-${i}/1`, 'huge')).toContain('2 bad pushes in a row');
  }
  expect(robust.state().quarantined).toHaveLength(NAMES_MAX);
  expect(robust.quarantine('name-0/2')).toBeNull();
  expect(robust.quarantine('name-1/2')).toContain('2 bad pushes');
  expect(robust.quarantine(`name-${NAMES_MAX}/2`)).toContain('2 bad pushes');
});
