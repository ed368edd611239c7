import { expect, test } from 'vitest';
import { CALLS, type CallKind, type RunCall } from '../../server/core/run/calls.ts';
import type { Run } from '../../server/core/run.ts';
import type { PartialConfig } from '../../shared/config.ts';
import { encodeRows } from '../../shared/rows.ts';
import {
  createProblem,
  createRun,
  examplesOf,
  FACTS,
  TENSORS,
  VirtualWorker,
} from '../support/regression.ts';
import { createReplication, expectEqual, StandbyLink } from '../support/standby-link.ts';

/** Whatever changes a run is a call, and each kind of call reaches whoever follows the run. */

const problem = createProblem();
const turn = () => new Promise<void>((resolve) => setImmediate(resolve));
/** `w/1`, which all cases have, and whose work they are about. */
const WORKER = 'w/1';
const CONFIG: PartialConfig = {
  ...{ epochsMax: 2, evaluateEverySteps: 4, observe: { everySteps: 1 }, testAtEnd: false },
  divergence: { rollbacksMax: 3 },
  tables: { word: { rows: 10, width: 2 } },
};

interface Case {
  /** Up to where the run is before. */
  readonly before?: (run: Run, worker: VirtualWorker) => void;
  /** Makes a call of the kind, among others or alone; it changes the run. */
  readonly call: (run: Run, worker: VirtualWorker) => void;
}

const training = (run: Run, worker: VirtualWorker) => worker.train(() => run.step === 2);
const withWork = (run: Run, worker: VirtualWorker) => {
  training(run, worker);
  worker.pull();
};
const finished = (_: Run, worker: VirtualWorker) => worker.train();
const evaluating = (run: Run, worker: VirtualWorker) => worker.train(() => run.step === 4);
const only =
  (...calls: readonly RunCall[]) =>
  (run: Run) => {
    for (const call of calls) run.call(call);
  };
const join = { experimentHash: 'hash', tensors: TENSORS, data: problem.summary };

const CASES: Readonly<Record<CallKind, Case>> = {
  join: {
    call: (run) => {
      run.call({ call: 'join', worker: 'v/1', join: { ...join, facts: 'json' }, now: 3 }, FACTS);
    },
  },
  detach: { before: withWork, call: only({ call: 'detach', worker: WORKER, now: 5 }) },
  leave: { before: withWork, call: only({ call: 'leave', worker: WORKER }) },
  postpone: { before: withWork, call: only({ call: 'postpone', ms: 50 }) },
  tick: { before: withWork, call: only({ call: 'tick', now: 1e9 }) },
  assign: {
    before: training,
    call: only({ call: 'assign', worker: WORKER, ahead: 2, now: 7 }),
  },
  initialised: { call: (_, worker) => worker.pull(4) },
  initialRows: {
    call: (run, worker) => {
      const assignment = run.call({ call: 'assign', worker: worker.key, ahead: 1, now: 4 });
      const { grant } = assignment.kind === 'initialise' ? assignment : expect.fail();
      const rows = { keys: Uint32Array.of(3), values: Float32Array.of(0.5, -2) };
      const payload = encodeRows(run.tables!.shapes, [rows], 'f32');
      expect(run.call({ call: 'initialRows', worker: worker.key, grant }, payload)).toBe(true);
    },
  },
  push: { before: withWork, call: (_, worker) => worker.push(9) },
  evaluated: {
    before: evaluating,
    call: (run, worker) => {
      const assignment = run.call({ call: 'assign', worker: worker.key, ahead: 1, now: 8 });
      const { id, part } = assignment.kind === 'work' ? assignment.evaluation! : expect.fail();
      const result = { type: 'evaluated' as const, run: 'r', evaluation: id, loss: 1, error: 1 };
      const told = { ...result, examples: examplesOf(problem, part), metrics: { f1: 0.5 } };
      expect(run.call({ call: 'evaluated', worker: worker.key, result: told, now: 9 })).toBe(true);
    },
  },
  sampled: {
    before: training,
    call: (run) => {
      const counts = { step: 2, updateSteps: 1, samples: 1, costMs: 2 };
      const about = { type: 'observed' as const, run: 'r', ...counts };
      const observed = { ...about, tensors: [], layers: [] };
      expect(run.call({ call: 'sampled', worker: WORKER, observed, now: 9 })).toBe(true);
    },
  },
  overflowed: { before: training, call: only({ call: 'overflowed', generation: 2 }) },
  learnLost: { call: only({ call: 'learnLost', seen: { step: 5, generation: 0 } }) },
  recallLost: {
    call: only({
      ...{ call: 'recallLost', base: { step: 0, generation: 1 }, lost: [[1, 4]], total: 6 },
    }),
  },
  stop: { before: training, call: only({ call: 'stop', reason: 'by a user' }) },
  test: { before: finished, call: only({ call: 'test' }) },
  resume: {
    before: (run, worker) => {
      training(run, worker);
      run.call({ call: 'stop', reason: 'by a user' });
    },
    call: only({ call: 'resume' }),
  },
  label: {
    call: only({
      call: 'label',
      labels: { name: 'Best', tags: ['good'], note: 'of May', archived: true, edits: 3 },
    }),
  },
};

test.each(Object.keys(CALLS) as CallKind[])(
  'a follower of a run is told its `%s`, and what it makes of the call is equal',
  async (kind) => {
    const of = CASES[kind];
    expect(of, `there is no case of the kind '${kind}' in this test`).toBeDefined();
    const run = createRun(CONFIG);
    const { replication } = createReplication({ runs: () => [run] });
    const link = new StandbyLink(replication, { mode: 'sync', lagMax: 0 });
    const worker = new VirtualWorker(run, problem, WORKER);
    of.before?.(run, worker);
    await turn();
    link.arrive();
    const replica = link.replicas.runs.get('r')!;
    expectEqual(replica, run);
    const before = JSON.stringify(run.replica());
    const told = new Set<CallKind>();
    link.heard = (message) => {
      if (message.type === 'calls') for (const { call } of message.calls) told.add(call);
    };
    of.call(run, worker);
    await turn();
    link.arrive();
    expect([...told]).toContain(kind);
    expect(JSON.stringify(run.replica())).not.toBe(before);
    expectEqual(replica, run);
  },
);

test('what a caller changes in a call after it, a follower does not see', () => {
  const run = createRun({});
  const told: RunCall[] = [];
  run.follow((call) => told.push(call));
  const call = { call: 'postpone' as const, ms: 1 };
  run.call(call);
  call.ms = 2;
  run.call(call);
  expect(told).toEqual([
    { call: 'postpone', ms: 1 },
    { call: 'postpone', ms: 2 },
  ]);
});
