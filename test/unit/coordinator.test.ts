import { beforeEach, expect, test, vi } from 'vitest';
import type { Keeper } from '../../server/checkpoints/keeper.ts';
import type { Run } from '../../server/core/run.ts';
import { Coordinator } from '../../server/fleet/coordinator.ts';
import type { WorkerSession } from '../../server/fleet/session.ts';
import { LIMITS } from '../../shared/limits.ts';
import { createProblem, createRun, VirtualWorker } from '../support/regression.ts';

/** The clock and the patience of the coordinator, with connections that only remember. */

let now: number;
let coordinator: Coordinator;
const keeper = {
  tick() {},
  onStep() {},
  onPhase() {},
  register: async () => {},
  mustKeep: async () => {},
  isBeingRemoved: () => false,
} as unknown as Keeper;

beforeEach(() => {
  now = 0;
  coordinator = new Coordinator({ keeper, now: () => now, log: () => {} });
});

function connect(leaseSeconds: number | null) {
  const calls: string[] = [];
  const session = {
    lastSeen: 0,
    run: leaseSeconds === null ? null : createRun({ leaseSeconds }),
    parts: { look: () => null },
    terminate: () => calls.push('terminate'),
    ping: () => calls.push('ping'),
    excuse() {
      this.lastSeen = now;
    },
    ...{ standsStill: false, isBraked: false },
    charges: { stands: false },
    look() {},
  };
  coordinator.workers.opened(session as unknown as WorkerSession);
  return { calls, session };
}

/** Second by second, as the server's timer does. */
function pass(seconds: number): void {
  for (let i = 0; i < seconds; i++) {
    now += 1000;
    coordinator.tick();
  }
}

test('a silent worker is asked, then given up', () => {
  const { calls } = connect(null);
  pass(LIMITS.heartbeatMs / 1000);
  expect(calls).toEqual([]);
  pass(1);
  expect(calls).toEqual(['ping']);
  pass((LIMITS.silenceMs - LIMITS.heartbeatMs) / 1000);
  expect(calls.at(-1)).toBe('terminate');
});

test('a worker may be silent for as long as its lease lasts: it computes', () => {
  const { calls } = connect(120);
  pass(120);
  expect(calls).not.toContain('terminate');
  pass(1);
  expect(calls).toContain('terminate');
});

test('when the server itself stood still, nobody is blamed', () => {
  const { calls, session } = connect(null);
  now = 500_000;
  coordinator.tick();
  expect(calls).toEqual([]);
  expect(session.lastSeen).toBe(500_000);
  pass(LIMITS.silenceMs / 1000 + 1);
  expect(calls).toContain('terminate');
});

test.each([3, 20, 3_600])("a pause of %d s of the server takes nobody's lease away", (seconds) => {
  const run = createRun({ leaseSeconds: 2 });
  coordinator.adopt(run);
  const problem = createProblem();
  const worker = new VirtualWorker(run, problem, 'a/1');
  const other = new VirtualWorker(run, problem, 'b/2');
  worker.pull(now);
  worker.pull(now);
  now += seconds * 1000;
  coordinator.tick();
  now += 1000;
  coordinator.tick();
  other.pull(now);
  other.push(now);
  expect(worker.push(now)).toMatchObject({ outcome: 'applied', staleness: 1 });
  // Without a pause it is gone after its time.
  worker.pull(now);
  pass(3);
  expect(run.workerTally(worker.key).leases).toBe(0);
});

test('runs are in the order of their creation, though the clock is set back', async () => {
  vi.useFakeTimers({ toFake: ['Date'] });
  try {
    const created: string[] = [];
    for (const [i, time] of ['2026-06-01', '2026-05-01', '2031-01-01', '2026-05-02'].entries()) {
      vi.setSystemTime(new Date(time));
      const body = { id: `r${i}`, experiment: 'e', experimentHash: 'h' };
      created.push((await coordinator.create(body)).options.createdAt);
    }
    expect(created.toSorted()).toEqual(created);
    expect(new Set(created).size).toBe(4);
  } finally {
    vi.useRealTimers();
  }
});

test('a run that is created while a shard is lost is not said to be there', async () => {
  let registered = () => {};
  const register = () =>
    new Promise<void>((resolve) => {
      registered = resolve;
    });
  const facts = { latest: () => null, problem: () => null, spoilt: () => null, leftOut: () => [] };
  coordinator = new Coordinator({
    keeper: { ...keeper, ...facts, register } as unknown as Keeper,
    ...{ now: () => now, log: () => {} },
  });
  const creating = coordinator.create({ id: 'r', experiment: 'e', experimentHash: 'h' });
  coordinator.interrupt('shard 1 has gone');
  registered();
  await expect(creating).rejects.toMatchObject({ code: 'DP_SHARD_LOST' });
});

test('a name belongs to a fork from the moment on in which it is asked for', async () => {
  let make = (_: Run) => {};
  const made = new Promise<Run>((resolve) => {
    make = resolve;
  });
  coordinator = new Coordinator({
    keeper: { ...keeper, fork: () => made } as unknown as Keeper,
    ...{ now: () => now, log: () => {} },
  });
  coordinator.adopt(createRun({}, 'source'));
  const body = { id: 'f', experiment: 'e', experimentHash: 'h' };
  const forking = coordinator.create({ ...body, fork: { run: 'source', checkpoint: 'last' } });
  const taken = { code: 'DP_RUN_EXISTS', message: "run 'f' is being made already" };
  await expect(coordinator.create(body)).rejects.toMatchObject(taken);
  const run = createRun({}, 'f');
  Object.assign(run.options, { fork: { run: 'source', step: 0, checkpoint: 'c' } });
  make(run);
  expect(await forking).toBe(run);
  expect(coordinator.runs.map(({ id }) => id)).toEqual(['source', 'f']);
});

test('a run that comes from before the loss of a shard is not taken over: it lies on shards that do not have it', () => {
  coordinator.interrupt('shard 1 has gone');
  coordinator.adopt(createRun({}));
  expect(coordinator.runs).toEqual([]);
  expect(coordinator.unfinished).toEqual([]);
  coordinator.goOn();
  const again = createRun({});
  coordinator.adopt(again);
  expect(coordinator.unfinished).toEqual([again]);
});
