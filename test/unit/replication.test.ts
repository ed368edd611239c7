import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { Run } from '../../server/core/run.ts';
import { codeVersion } from '../../server/fleet/code-version.ts';
import {
  HELD_MAX,
  INTRODUCE_BYTES,
  UNCARRIED_BYTES_MAX,
} from '../../server/standby/replication.ts';
import { bytesOf } from '../../shared/codec.ts';
import type { PartialConfig } from '../../shared/config.ts';
import { DownpourError } from '../../shared/errors.ts';
import { random } from '../../shared/random.ts';
import type { FrameHeader } from '../../wire/connection.ts';
import { createProblem, createRun, parametersOf, VirtualWorker } from '../support/regression.ts';
import { createReplication, expectEqual, StandbyLink } from '../support/standby-link.ts';

const problem = createProblem();
/** Microtasks, in which what was called in one turn is sent. */
const turn = () => new Promise<void>((resolve) => setImmediate(resolve));

const CONFIGS: readonly PartialConfig[] = [
  { evaluateEverySteps: 3, earlyStopping: { patience: 2 }, epochsMax: 6 },
  {
    ...{ optimizer: { kind: 'adam' }, learningRate: 0.02, averaging: { kind: 'ema', decay: 0.9 } },
    ...{ evaluateEverySteps: 2, earlyStopping: { patience: 1, afterStop: 'retrain' } },
    epochsMax: 8,
  },
  {
    ...{ optimizer: { kind: 'momentum' }, consistency: { correction: 'auto' }, leaseSeconds: 1 },
    ...{ evaluateEverySteps: 5, divergence: { rollbacksMax: 3 }, nonFiniteMax: 3, epochsMax: 10 },
    earlyStopping: { patience: 2, afterStop: 'continue', continueStepsMax: 20 },
  },
  {
    ...{ optimizer: { kind: 'momentum' }, averaging: { kind: 'polyak', startStep: 2 } },
    earlyStopping: { patience: 1, afterStop: 'continue', continueStepsMax: 6 },
    ...{ evaluateEverySteps: 2, epochsMax: 8, leaseSeconds: 1, schedule: { kind: 'exponential' } },
  },
  {
    ...{ consistency: { stalenessMax: 1, damping: 'inverse' }, compression: { pull: 'bf16' } },
    robust: { normMedianMax: 5, shareMax: 0.6, quarantineAfter: 2 },
    ...{ epochsMax: 10, evaluateEverySteps: 4, divergence: { rollbacksMax: 3 }, nonFiniteMax: 3 },
  },
  {
    ...{ consistency: { mode: 'bounded', aheadMax: 1 }, optimizer: { kind: 'momentum' } },
    ...{ epochsMax: 8, evaluateEverySteps: 5, leaseSeconds: 1 },
  },
  {
    ...{ consistency: { mode: 'synchronous' }, optimizer: { kind: 'adam' }, learningRate: 0.02 },
    ...{ epochsMax: 8, leaseSeconds: 1, divergence: { rollbacksMax: 3 }, nonFiniteMax: 3 },
  },
  {
    consistency: { mode: 'backup', quorum: 2, graceMs: 400, aggregate: 'median' },
    ...{ epochsMax: 8, evaluateEverySteps: 3, leaseSeconds: 1 },
    earlyStopping: { patience: 1, afterStop: 'continue', continueStepsMax: 6 },
  },
  {
    consistency: { mode: 'buffered', bufferSize: 3, correction: 'compensated', damping: 'root' },
    ...{
      epochsMax: 8,
      evaluateEverySteps: 2,
      earlyStopping: { patience: 2, afterStop: 'retrain' },
    },
  },
  {
    ...{ consistency: { correction: 'gap' }, optimizer: { kind: 'momentum' } },
    ...{ epochsMax: 8, evaluateEverySteps: 5, divergence: { rollbacksMax: 3 }, nonFiniteMax: 3 },
  },
];

/** Some workers do one thing after another, in an order drawn by a seed; some of it is wrong. */
function disturb(run: Run, seed: number, steps: number): () => Promise<void> {
  const draw = random(seed, 1);
  let now = 0;
  let joined = 0;
  const workers: VirtualWorker[] = [];
  const pick = () => workers[draw.below(workers.length)]!;
  const tryAll = (act: () => unknown) => {
    try {
      act();
    } catch (error) {
      // As a session does.
      if (!(error instanceof DownpourError)) throw error;
    }
  };
  return async () => {
    for (let i = 0; i < steps; i++) {
      now += draw.below(300);
      const what = workers.length === 0 ? 0 : draw.below(40);
      tryAll(() => {
        if (what === 0 && joined < 6)
          workers.push(new VirtualWorker(run, problem, `w${joined++}/1`));
        else if (what === 1) run.call({ call: 'detach', worker: pick().key, now });
        else if (what === 2) run.call({ call: 'leave', worker: pick().key });
        else if (what === 3) run.call({ call: 'tick', now });
        else if (what === 4) run.call({ call: 'postpone', ms: 50 });
        else if (what === 5) run.call({ call: 'stop', reason: 'by a user' });
        else if (what === 6) run.call({ call: 'resume' });
        else if (what === 7)
          run.call({ call: 'learnLost', seen: { step: 3 + draw.below(9), generation: 0 } });
        else if (what === 8) pick().push(now, (payload) => payload.fill(Number.NaN));
        else if (what === 9) pick().push(now, (payload) => payload.fill(1e6));
        else if (what < 25) pick().pull(now);
        else pick().push(now);
      });
      if (draw.below(4) === 0) await turn();
    }
  };
}

describe('a replica', () => {
  test('that joins at any moment is equal to its original from then on, to the bit', async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.nat({ max: 1e6 }),
        fc.constantFrom(...CONFIGS),
        fc.nat({ max: 150 }),
        async (seed, config, before) => {
          const run = createRun({ ...config, seed });
          const { replication } = createReplication({ runs: () => [run] });
          const calls = disturb(run, seed, 20);
          for (let i = 0; i < before / 20; i++) await calls();
          const link = new StandbyLink(replication, { mode: 'sync', lagMax: 0 });
          for (let i = 0; i < 8; i++) {
            await calls();
            await turn();
            link.arrive();
            link.answer();
            expectEqual(link.replicas.runs.get('r'), run);
          }
          expect(replication.facts()).toMatchObject({ state: 'following', behind: { pushes: 0 } });
        },
      ),
      { numRuns: 40, seed: 11 },
    );
  });

  test('takes a training to its end as its original would have, from any moment', async () => {
    for (const [i, config] of CONFIGS.entries()) {
      const run = createRun(config);
      const { replication } = createReplication({ runs: () => [run] });
      const link = new StandbyLink(replication, { mode: 'sync', lagMax: 0 });
      const worker = new VirtualWorker(run, problem);
      worker.train(() => run.step >= 5 + 3 * i);
      await turn();
      link.arrive();
      const replica = link.replicas.runs.get('r')!;
      // As after a failover: restored, with numbers of a new life.
      const heir = Run.restore(replica.state(replica.nowMs), replica.tensors(), null, 2);
      const original = Run.restore(run.state(run.nowMs), run.tensors(), null, 2);
      // The worker that was there is waited for no more.
      for (const each of [heir, original])
        for (const now of [0, 10_000]) each.call({ call: 'tick', now: now });
      new VirtualWorker(heir, problem, 'w/2').train();
      new VirtualWorker(original, problem, 'w/2').train();
      expect(heir.step).toBe(original.step);
      expect(Buffer.from(bytesOf(parametersOf(heir)))).toEqual(
        Buffer.from(bytesOf(parametersOf(original))),
      );
    }
  });

  test('of a run that begins later, or is given up, comes and goes with it', async () => {
    const first = createRun({}, 'first');
    const second = createRun({}, 'second');
    const runs = [first];
    const { replication } = createReplication({ runs: () => runs });
    const link = new StandbyLink(replication, { mode: 'sync', lagMax: 0 });
    runs.push(second);
    replication.began(second);
    new VirtualWorker(second, problem).train(() => second.step >= 3);
    await turn();
    link.arrive();
    expect([...link.replicas.runs.keys()]).toEqual(['first', 'second']);
    expectEqual(link.replicas.runs.get('second'), second);
    replication.forget(second);
    link.arrive();
    expect([...link.replicas.runs.keys()]).toEqual(['first']);
  });

  test('that is not what its original is says so', async () => {
    const run = createRun({});
    const { replication } = createReplication({ runs: () => [run] });
    const link = new StandbyLink(replication, { mode: 'sync', lagMax: 0 });
    link.arrive();
    const calls = [{ call: 'tick' as const, now: 1 }];
    const wrong = { type: 'calls' as const, run: 'r', calls, step: 9, generation: 1 };
    expect(() => link.replicas.take(wrong, new Uint8Array())).toThrow(
      'the replica of run r is at step 0 of generation 1, its original at 9 of 1',
    );
  });
});

test('a standby follows from when that is noted, and nobody does when it is lost', async () => {
  const run = createRun({});
  const waits: (() => void)[] = [];
  const notes: (string | null)[] = [];
  let full = true;
  const { replication, log } = createReplication({
    runs: () => [run],
    later: (_, act) => void waits.push(act),
    note: async (by) => {
      if (full) throw new DownpourError('DP_DISK', 'the disk is full');
      notes.push(by);
    },
  });
  const link = new StandbyLink(replication, { mode: 'sync', lagMax: 0 });
  link.arrive();
  link.answer();
  await turn();
  expect(replication.facts()).toMatchObject({ state: 'joining' });
  expect(log()).toContain('it cannot be noted that 192.0.2.9:7420 follows: the disk is full');
  full = false;
  waits.shift()!();
  await turn();
  expect(replication.facts()).toMatchObject({ state: 'following' });
  link.lose();
  await turn();
  expect(notes).toEqual(['192.0.2.9:7420', null]);
  expect(replication.facts()).toMatchObject({ state: 'lost' });
});

describe('what is for workers waits', () => {
  async function training(follow: { mode: 'sync' | 'async'; lagMax: number }, options = {}) {
    const run = createRun({ epochsMax: 1_000, evaluateEverySteps: 1_000 });
    const made = createReplication({ runs: () => [run], ...options });
    const link = new StandbyLink(made.replication, follow);
    const worker = new VirtualWorker(run, problem);
    worker.train(() => run.step >= 1);
    await turn();
    link.arrive();
    link.answer();
    const told: number[] = [];
    /** A push, and its answer. */
    const push = async () => {
      worker.pull();
      worker.push();
      const { step } = run;
      made.replication.whenSafe(() => told.push(step));
      await turn();
    };
    return { ...made, run, link, told, push };
  }

  test('where replication is sync: until the standby has the push, and in its order', async () => {
    const { link, told, push, replication } = await training({ mode: 'sync', lagMax: 0 });
    await push();
    replication.whenSafe(() => told.push(-1));
    await push();
    expect(told).toEqual([]);
    // The pull, then the push.
    link.arrive(2);
    expect(told).toEqual([]);
    link.answer();
    expect(told).toEqual([2, -1]);
    link.arrive();
    link.answer();
    expect(told).toEqual([2, -1, 3]);
  });

  test('and beyond a number of answers no message of a worker is read', async () => {
    const { link, push, replication } = await training({ mode: 'sync', lagMax: 0 });
    await push();
    let left = 0;
    while (!replication.isFull) replication.whenSafe(() => left++);
    expect(left).toBe(0);
    let goesOn = 0;
    replication.whenRoom(() => goesOn++);
    link.arrive(1);
    link.answer();
    expect([left, goesOn]).toEqual([0, 0]);
    link.arrive();
    link.answer();
    // One of those that were held is the answer to the push.
    expect([left, goesOn]).toEqual([HELD_MAX, 1]);
    expect(replication.isFull).toBe(false);
  });

  test('nor while it is not known whether a standby that is lost has taken over', async () => {
    let confirm = () => {};
    const confirmed = new Promise<void>((resolve) => {
      confirm = resolve;
    });
    const { link, replication } = await training(
      { mode: 'sync', lagMax: 0 },
      { confirm: () => confirmed },
    );
    link.lose();
    while (!replication.isFull) replication.whenSafe(() => {});
    let goesOn = 0;
    replication.whenRoom(() => goesOn++);
    await turn();
    expect(goesOn).toBe(0);
    confirm();
    await turn();
    expect(goesOn).toBe(1);
  });

  test('where it is async: only from the stated number of pushes on', async () => {
    const { link, told, push, replication } = await training({ mode: 'async', lagMax: 3 });
    for (let i = 0; i < 5; i++) await push();
    expect(told).toEqual([2, 3, 4]);
    expect(replication.facts()).toMatchObject({ behind: { pushes: 5 }, lagMax: 3, mode: 'async' });
    link.arrive(2);
    link.answer();
    expect(told).toEqual([2, 3, 4, 5]);
    // Even now: whatever becomes of the primary, the standby lacks no more than 3 that were answered.
    expect(link.replicas.runs.get('r')!.step + 3).toBeGreaterThanOrEqual(told.at(-1)!);
  });

  test('when the standby is lost: until the store says that this server is still the owner', async () => {
    const asked: ((error?: unknown) => void)[] = [];
    const confirm = () =>
      new Promise<void>((resolve, reject) =>
        asked.push((error) => (error ? reject(error) : resolve())),
      );
    const waits: (() => void)[] = [];
    const later = (_: number, act: () => void) => void waits.push(act);
    const { link, told, push, replication, log } = await training(
      { mode: 'sync', lagMax: 0 },
      { confirm, later },
    );
    await push();
    link.lose();
    await push();
    expect(told).toEqual([]);
    expect(replication.facts()).toMatchObject({ state: 'parting', reason: 'connection lost' });
    asked.shift()!(new DownpourError('DP_REDIS_UNAVAILABLE', 'Redis is away'));
    await turn();
    expect(told).toEqual([]);
    waits.shift()!();
    asked.shift()!();
    await turn();
    expect(told).toEqual([2, 3]);
    expect(replication.facts()).toMatchObject({ state: 'lost' });
    expect(log()).toContain('continuing alone');
    // Alone nothing waits.
    await push();
    expect(told).toEqual([2, 3, 4]);
  });

  test('for ever, when another one is the owner by then', async () => {
    const confirm = async () => {
      throw new DownpourError('DP_STATE_FENCED', 'another owner took over');
    };
    const { link, told, push } = await training({ mode: 'sync', lagMax: 0 }, { confirm });
    await push();
    link.lose();
    await push();
    await turn();
    expect(told).toEqual([]);
  });

  test('no longer than the timeout for a standby that says nothing', async () => {
    const { link, told, push, replication, clock, log } = await training(
      { mode: 'sync', lagMax: 0 },
      { timeoutMs: 1_000 },
    );
    await push();
    for (clock.now = 0; clock.now <= 1_000; clock.now += 250) replication.tick();
    await turn();
    expect(told).toEqual([]);
    replication.tick();
    await turn();
    expect(log()).toContain('no message from it for 1 s');
    expect(told).toEqual([2]);
    expect(link.open).toBe(false);
  });

  test('but a pause of the primary is not the silence of its standby', async () => {
    const { told, push, replication, clock } = await training(
      { mode: 'sync', lagMax: 0 },
      { timeoutMs: 1_000 },
    );
    await push();
    replication.tick();
    clock.now += 60_000;
    replication.tick();
    await turn();
    expect(replication.facts()).toMatchObject({ state: 'following' });
    expect(told).toEqual([]);
  });

  test('not for a standby that lives and does not keep up for much longer', async () => {
    const { link, push, replication, clock, log } = await training(
      { mode: 'sync', lagMax: 0 },
      { timeoutMs: 1_000 },
    );
    await push();
    for (let i = 0; i < 40; i++) {
      clock.now += 250;
      link.live();
      replication.tick();
    }
    await turn();
    expect(log()).toContain('it is more than 8 s behind');
  });

  /** It says that it lives, for so long. */
  function live(
    {
      link,
      replication,
      clock,
    }: Pick<Awaited<ReturnType<typeof training>>, 'link' | 'replication' | 'clock'>,
    seconds: number,
  ): void {
    for (let i = 0; i < 4 * seconds; i++) {
      clock.now += 250;
      if (link.open) link.live();
      replication.tick();
    }
  }

  test('no longer than that for one that joins, lives and never has anything', async () => {
    const run = createRun({ epochsMax: 1_000, evaluateEverySteps: 1_000 });
    const made = createReplication({ runs: () => [run], timeoutMs: 1_000 });
    const { replication, log } = made;
    const follow = { mode: 'sync' as const, lagMax: 0 };
    const join = () => new StandbyLink(replication, follow);
    const link = join();
    const told: string[] = [];
    replication.whenSafe(() => told.push('idle'));
    const worker = new VirtualWorker(run, problem);
    worker.train(() => run.step >= 1);
    replication.whenSafe(() => told.push('pushed'));
    await turn();
    live({ ...made, link }, 8);
    expect(replication.facts()).toMatchObject({ state: 'joining' });
    expect(told).toEqual(['idle']);
    live({ ...made, link }, 0.5);
    await turn();
    expect(told).toEqual(['idle', 'pushed']);
    expect(log()).toMatch(/is lost \(.* for (more than )?8 s; none is let in for 8 s\)/);
    // It would hold them up again.
    expect(join().closedWith).toBe('the last one got nowhere');
    made.clock.now += 8_000;
    const again = join();
    worker.train(() => run.step >= 2);
    replication.whenSafe(() => told.push('later'));
    live({ ...made, link: again }, 8.5);
    await turn();
    expect(told).toEqual(['idle', 'pushed', 'later']);
    expect(log()).toContain('none is let in for 16 s');
    made.clock.now += 16_000;
    const good = join();
    good.arrive();
    good.answer();
    expect(replication.facts()).toMatchObject({ state: 'following' });
  });

  test('nor for one that joins and has ever a little more', async () => {
    const runs = Array.from({ length: 40 }, (_, i) => createRun({}, `r${i}`));
    const made = createReplication({ runs: () => runs, timeoutMs: 1_000 });
    const link = new StandbyLink(made.replication, { mode: 'sync', lagMax: 0 });
    const told: string[] = [];
    const worker = new VirtualWorker(runs[0]!, problem);
    worker.train(() => runs[0]!.step >= 1);
    made.replication.whenSafe(() => told.push('pushed'));
    await turn();
    for (let seconds = 0; seconds < 8; seconds++) {
      live({ ...made, link }, 1);
      link.arrive(1);
      link.answer();
    }
    expect(made.replication.facts()).toMatchObject({ state: 'joining' });
    live({ ...made, link }, 1);
    await turn();
    expect(made.log()).toContain('answers to workers wait for it for more than 8 s');
    expect(told).toEqual(['pushed']);
  });

  test('and where nobody trains, a place is kept for no standby that never has anything', async () => {
    const run = createRun({});
    const made = createReplication({ runs: () => [run], timeoutMs: 1_000 });
    const link = new StandbyLink(made.replication, { mode: 'sync', lagMax: 0 });
    live({ ...made, link }, 8.5);
    await turn();
    expect(made.log()).toContain('it has carried nothing out for 8 s');
    expect(made.replication.facts()).toMatchObject({ state: 'lost' });
  });

  test('one that is told large runs slowly joins all the same', async () => {
    const run = createRun({});
    const made = createReplication({ runs: () => [run], timeoutMs: 1_000 });
    const follow = { mode: 'sync' as const, lagMax: 0 };
    const link = new StandbyLink(made.replication, follow, { fullAt: 'run' });
    for (let i = 0; i < 60; i++) {
      link.bufferedBytes--;
      live({ ...made, link }, 1);
    }
    expect(made.replication.facts()).toMatchObject({ state: 'joining' });
    link.drain();
  });

  test.each([
    ['eight small runs in each turn', 8],
    ['one large run in each turn', 1],
  ])('is told %s, so that others have turns of their own', (_, framesInTurn) => {
    const runs = Array.from({ length: 40 }, (_, i) => createRun({}, `run-${i}`));
    const framesOfRun = runs[0]!.replicaVectors().length + 1;
    const waits: (() => void)[] = [];
    const later = (_: number, act: () => void) => void waits.push(act);
    const { replication } = createReplication({ runs: () => runs, later });
    const heldBytes = INTRODUCE_BYTES / framesInTurn;
    const link = new StandbyLink(replication, { mode: 'sync', lagMax: 0 }, { heldBytes });
    let turns = 1;
    for (; waits.length > 0; turns++) {
      expect(link.bufferedBytes / heldBytes).toBeLessThan(framesInTurn + framesOfRun);
      expect(link.replicas.whole).toBe(false);
      link.drain();
      waits.shift()!();
    }
    link.arrive();
    expect(link.replicas.whole).toBe(true);
    expect(link.replicas.runs.size).toBe(runs.length);
    // `leading` is a frame, too; and what ends it comes when all has left.
    expect(turns).toBe(Math.ceil((1 + framesOfRun * runs.length) / framesInTurn) + 1);
  });

  /** A standby that is still told the runs: so much of them waits in its socket that no more is sent. */
  function joining(follow: { mode: 'sync' | 'async'; lagMax: number }) {
    const first = createRun({ epochsMax: 1_000, evaluateEverySteps: 1_000 }, 'first');
    const second = createRun({}, 'second');
    const waits: (() => void)[] = [];
    const later = (_: number, act: () => void) => void waits.push(act);
    const runs = [first];
    const worker = new VirtualWorker(first, problem);
    worker.train(() => first.step >= 1);
    const { replication } = createReplication({ runs: () => runs, later });
    const full = new StandbyLink(replication, follow, { fullAt: 'run' });
    runs.push(second);
    const told: number[] = [];
    const push = async () => {
      worker.pull();
      worker.push();
      const { step } = first;
      replication.whenSafe(() => told.push(step));
      await turn();
    };
    return { replication, link: full, first, told, push, tellOn: () => waits.shift()!() };
  }

  test('while a standby is told the runs only for what it lacks in bytes', async () => {
    const { replication, link, told, push, tellOn } = joining({ mode: 'sync', lagMax: 0 });
    await push();
    await push();
    expect(told).toEqual([2, 3]);
    expect(replication.facts()).toMatchObject({ state: 'joining' });
    expect(replication.facts()!.behind.bytes).toBeLessThan(UNCARRIED_BYTES_MAX);
    link.drain();
    tellOn();
    link.arrive();
    link.answer();
    expect(replication.facts()).toMatchObject({ state: 'following', behind: { bytes: 0 } });
  });

  test.each([
    { mode: 'sync' as const, lagMax: 0 },
    { mode: 'async' as const, lagMax: 2 },
  ])('from the moment on from which it may take over: $mode', async (follow) => {
    const { replication, link, first, told, push, tellOn } = joining(follow);
    await push();
    link.drain();
    tellOn();
    // All runs are on their way; what is pushed from now on comes after them.
    const introduced = link.waiting;
    for (let i = 0; i < 4; i++) await push();
    link.arrive(introduced);
    link.answer();
    expect(link.replicas.whole).toBe(true);
    expect(replication.facts()).toMatchObject({ state: 'following' });
    // Were the primary killed here, the standby would go on from this step.
    const { step } = link.replicas.runs.get('first')!;
    expect(step).toBe(2);
    expect(told.at(-1)! - step).toBe(follow.lagMax);
    link.arrive();
    link.answer();
    expect(told.at(-1)).toBe(first.step);
  });
});

test('there is one standby; a second one is refused until the first is gone', async () => {
  const { replication } = createReplication();
  const link = new StandbyLink(replication, { mode: 'sync', lagMax: 0 });
  expect(() => replication.mustHaveRoom()).toThrow('is the standby of this server; one is allowed');
  expect(new StandbyLink(replication, { mode: 'sync', lagMax: 0 }).closedWith).toBe('not now');
  expect(replication.addresses).toEqual([{ host: '192.0.2.9', port: 7420 }]);
  link.lose();
  await turn();
  expect(replication.addresses).toEqual([]);
  replication.mustHaveRoom();
  const next = new StandbyLink(replication, { mode: 'async', lagMax: 9 });
  next.arrive();
  next.answer();
  expect(replication.facts()).toMatchObject({ state: 'following', mode: 'async' });
  replication.close();
  expect(next.closedWith).toBe('the primary stops');
});

describe('what a standby must not say', () => {
  const follow = {
    ...{ type: 'follow', version: codeVersion(), mode: 'sync', lagMax: 0 },
    address: { host: null, port: 7420 },
  };
  function connect() {
    const made = createReplication();
    const closed: (number | string)[] = [];
    const link = {
      ...{ open: true, bufferedBytes: 0, send() {}, ping() {} },
      close: (code: number, reason: string) => void closed.push(code, reason),
      terminate: () => void closed.push('terminated'),
    };
    const events = made.replication.accept(link, '192.0.2.9');
    const say = (message: object) => events.message(message as FrameHeader, new Uint8Array(), null);
    return { ...made, closed, say };
  }

  test.each([
    ['no address', { ...follow, address: undefined }, 1007, 'DP_FRAME_MALFORMED'],
    ['an address that is none', { ...follow, address: 'here' }, 1007, 'DP_FRAME_MALFORMED'],
    ['another mode', { ...follow, mode: 'both' }, 1007, 'DP_FRAME_MALFORMED'],
    ['a lag of less than 0', { ...follow, lagMax: -1 }, 1007, 'DP_FRAME_MALFORMED'],
    ['a field more', { ...follow, more: 1 }, 1007, 'DP_FRAME_MALFORMED'],
    ['an unknown message', { type: 'lead' }, 1007, 'DP_FRAME_MALFORMED'],
    ['what comes later', { type: 'carried', frames: 0 }, 1002, 'DP_PROTOCOL_ORDER'],
  ])('at first: %s', (_, message, code, reason) => {
    const { say, closed, replication, log } = connect();
    say(message);
    expect(closed).toEqual([code, reason]);
    expect(replication.facts()).toBeNull();
    expect(log()).toContain(`what the standby at 192.0.2.9 says is not understood: ${reason}`);
  });

  test.each([
    ['more than it was told', { type: 'carried', frames: 99 }, 1002, 'DP_PROTOCOL_ORDER'],
    ['half a frame', { type: 'carried', frames: 0.5 }, 1007, 'DP_FRAME_MALFORMED'],
    ['that it follows, again', follow, 1002, 'DP_PROTOCOL_ORDER'],
  ])('when it joins: %s', async (_, message, code, reason) => {
    const { say, closed, replication } = connect();
    say(follow);
    expect(replication.facts()).toMatchObject({ state: 'joining' });
    say(message);
    expect(closed).toEqual([code, reason, 'terminated']);
    await turn();
    expect(replication.facts()).toMatchObject({ state: 'lost' });
  });

  test('nothing at all, for long', () => {
    const { clock, replication, closed } = connect();
    for (; clock.now <= 10_250; clock.now += 250) replication.tick();
    expect(closed).toEqual([]);
    replication.tick();
    expect(closed).toEqual([1002, 'DP_PROTOCOL_ORDER']);
  });
});
