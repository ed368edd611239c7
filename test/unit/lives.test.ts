import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { checkpointFolder, removeCheckpoint } from '../../files/checkpoint.ts';
import { listCheckpoints } from '../../files/manifest.ts';
import { Keeper } from '../../server/checkpoints/keeper.ts';
import { nextLife, noteProgress, readProgress } from '../../server/checkpoints/lives.ts';
import type { RunState } from '../../server/core/run/state.ts';
import { Run } from '../../server/core/run.ts';
import { openFileStore } from '../../server/store/file-store.ts';
import { recover } from '../support/recover.ts';
import { createProblem, createRun, TENSORS, VirtualWorker } from '../support/regression.ts';

/** What a server that died had applied after its last checkpoint is counted, once. */

const problem = createProblem();
const checkpointOf = (run: Run) => ({
  state: JSON.parse(JSON.stringify(run.state(0))) as RunState,
  tensors: run.tensors(),
});
type Checkpoint = ReturnType<typeof checkpointOf>;
const restore = ({ state, tensors }: Checkpoint, life?: number) =>
  Run.restore(state, tensors, null, life);
const seenBy = ({ step, generation }: Run) => ({ step, generation });

/** A worker comes to a run, with what it saw before. */
function rejoin(run: Run, seen: { step: number; generation: number } | null, key = 'w/1'): void {
  run.call({
    call: 'join',
    worker: key,
    join: { experimentHash: 'hash', tensors: TENSORS, data: problem.summary, seen },
    now: 0,
  });
}
function trainTo(run: Run, step: number, key = 'w/1'): void {
  new VirtualWorker(run, problem, key).train(() => run.step >= step);
}
const lostEvents = (run: Run) => run.takeEvents().filter((event) => event.kind === 'lost');

describe('steps that came after the checkpoint', () => {
  test('are counted by what the workers saw, the most of them once', () => {
    const run = createRun({});
    trainTo(run, 10);
    const checkpoint = checkpointOf(run);
    trainTo(run, 17, 'w/2');
    const restored = restore(checkpoint);
    expect(restored.stepsLost).toBe(0);
    rejoin(restored, { ...seenBy(run), step: 15 }, 'a/1');
    expect(restored.stepsLost).toBe(5);
    rejoin(restored, seenBy(run), 'b/1');
    rejoin(restored, { ...seenBy(run), step: 12 }, 'c/1');
    rejoin(restored, null, 'd/1');
    expect(restored.stepsLost).toBe(7);
    expect(restored.summary(0).stepsLost).toBe(7);
    expect(lostEvents(restored)).toEqual([
      { kind: 'lost', steps: 5, restored: 10 },
      { kind: 'lost', steps: 7, restored: 10 },
    ]);
  });

  test('are none when the checkpoint has all that was seen', () => {
    const run = createRun({});
    trainTo(run, 10);
    const seen = seenBy(run);
    const restored = restore(checkpointOf(run));
    rejoin(restored, seen);
    rejoin(restored, { ...seen, step: 4 });
    expect(restored.stepsLost).toBe(0);
    expect(lostEvents(restored)).toEqual([]);
  });

  test('what this life of the server did is not lost, though it is beyond the checkpoint', () => {
    const run = createRun({});
    trainTo(run, 10);
    const restored = restore(checkpointOf(run));
    trainTo(restored, 20, 'w/2');
    rejoin(restored, seenBy(restored));
    expect(restored.stepsLost).toBe(0);
  });

  test('of a run without a checkpoint are all of its steps', () => {
    const run = createRun({});
    trainTo(run, 6);
    const anew = new Run(run.options, null, { life: 2, since: 1 });
    rejoin(anew, seenBy(run));
    expect(anew.stepsLost).toBe(6);
    expect(anew.generation).toBeGreaterThan(run.generation);
  });

  test('add up over crashes, whether or not there was a checkpoint between them', () => {
    const life = fc.record({
      steps: fc.integer({ min: 0, max: 6 }),
      /** A checkpoint after so many of the steps; more: none. */
      saved: fc.nat(9),
      told: fc.boolean(),
    });
    fc.assert(
      fc.property(fc.array(life, { maxLength: 6 }), (lives) => {
        let run = createRun({ epochsMax: null, stepsMax: 1_000 });
        trainTo(run, 3);
        let checkpoint = checkpointOf(run);
        let seen = seenBy(run);
        let lost = 0;
        for (const [i, { steps, saved, told }] of lives.entries()) {
          run = restore(checkpoint, i + 2);
          // The worker comes back, or it begins anew and knows nothing: then nobody can know.
          lost += told ? Math.max(0, seen.step - checkpoint.state.step) : 0;
          rejoin(run, told ? seen : null, `w/${i}`);
          expect(run.stepsLost).toBe(lost);
          // What was learned is saved at once.
          checkpoint = checkpointOf(run);
          const start = run.step;
          if (saved <= steps) {
            trainTo(run, start + saved, `w/${i}`);
            checkpoint = checkpointOf(run);
          }
          trainTo(run, start + steps, `w/${i}`);
          seen = seenBy(run);
        }
      }),
      { numRuns: 60 },
    );
  });

  test('of two lives from one checkpoint are both counted', () => {
    const run = createRun({});
    trainTo(run, 10);
    const checkpoint = checkpointOf(run);
    trainTo(run, 14, 'w/2');
    const second = restore(checkpoint, 2);
    trainTo(second, 12, 'w/3');
    const third = restore(checkpoint, 3);
    rejoin(third, seenBy(second), 'a/1');
    rejoin(third, seenBy(run), 'b/1');
    expect(third.stepsLost).toBe(2 + 4);
  });
});

/** As the keeper goes on: from the newest checkpoint, with what was noted beside it. */
function goOn(checkpoint: Checkpoint, noted: Run['progress'] | null, life: number): Run {
  const run = restore(checkpoint, life);
  if (noted) {
    run.call({ call: 'recallLost', ...noted });
    run.call({ call: 'learnLost', seen: noted });
  }
  return run;
}

test('over many lives that end before a checkpoint nothing is forgotten, and the count never falls', () => {
  const life = fc.record({
    steps: fc.nat(5),
    saved: fc.boolean(),
    comes: fc.boolean(),
    ticks: fc.boolean(),
  });
  fc.assert(
    fc.property(fc.array(life, { minLength: 2, maxLength: 12 }), (lives) => {
      let run = createRun({ epochsMax: null, stepsMax: 1_000, evaluateEverySteps: 500 });
      trainTo(run, 3);
      let checkpoint = checkpointOf(run);
      let noted = run.progress;
      let seen: ReturnType<typeof seenBy> | null = seenBy(run);
      let lost = 0;
      let told = 0;
      for (const [i, { steps, saved, comes, ticks }] of lives.entries()) {
        const before = { step: run.step, base: checkpoint.state.step };
        run = goOn(checkpoint, noted, i + 2);
        noted = run.progress;
        lost += before.step - before.base;
        expect(run.stepsLost).toBeGreaterThanOrEqual(told);
        told = run.stepsLost;
        // It had ticked, or a worker was there that comes again: then all is known.
        if (!comes && seen) continue;
        rejoin(run, seen, `w/${i}`);
        noted = run.progress;
        expect(run.stepsLost).toBe(lost);
        told = lost;
        trainTo(run, run.step + steps, `w/${i}`);
        seen = seenBy(run);
        if (ticks) noted = run.progress;
        if (saved) checkpoint = checkpointOf(run);
      }
    }),
    { numRuns: 80 },
  );
});

test('a worker cannot make up steps that were lost, beyond what a run can have come to', () => {
  const run = createRun({});
  trainTo(run, 10);
  const restored = restore(checkpointOf(run));
  rejoin(restored, { ...seenBy(run), step: 1e12 }, 'liar/1');
  expect(restored.stepsLost).toBe(0);
});

test('lives from one checkpoint never share generations or leases', () => {
  const run = createRun({});
  trainTo(run, 10);
  const checkpoint = checkpointOf(run);
  const generations = new Set([run.generation]);
  const leases = new Set<number>();
  for (const life of [2, 3, 4]) {
    const restored = restore(checkpoint, life);
    rejoin(restored, null);
    const assignment = restored.call({ call: 'assign', worker: 'w/1', ahead: 2, now: 0 });
    if (assignment.kind !== 'work') throw new Error(assignment.kind);
    // The first ones are those that were out: they are still whose they were.
    for (const { id } of assignment.leases.slice(1)) {
      expect(leases.has(id)).toBe(false);
      leases.add(id);
    }
    expect(generations.has(restored.generation)).toBe(false);
    generations.add(restored.generation);
  }
});

describe('on disk', () => {
  let root: string;
  beforeEach(async () => {
    root = await mkdtemp(join(tmpdir(), 'downpour-lives-'));
  });
  afterEach(() => rm(root, { recursive: true }));

  test('lives count up, also past a damaged file', async () => {
    expect([await nextLife(root, 0), await nextLife(root, 0)]).toEqual([1, 2]);
    expect(await nextLife(root, 7)).toBe(8);
    await writeFile(join(root, 'lives.json'), '{"sha');
    expect(await nextLife(root, 8)).toBe(9);
    expect(await nextLife(root, 0)).toBe(10);
  });

  test('a server notes what it learnt before it answers, and believes no record of steps', async () => {
    const store = openFileStore({ folder: root });
    const { token } = await store.acquire('test', { ttlMs: 10_000 });
    const keeper = () =>
      new Keeper({ root, store, token, now: () => 0, log: () => {}, onFenced: () => {} });
    const run = createRun({});
    const first = keeper();
    await first.register(run);
    trainTo(run, 10);
    await first.checkpointNow(run);
    trainTo(run, 17, 'w/2');
    const last = await store.lastCheckpoint(run.id);
    store.lastCheckpoint = async () => ({ ...last!, step: 2 ** 50 });
    let seen = seenBy(run);
    for (let lost = 7, life = 2; life < 5; life++) {
      const again = keeper();
      const [restored] = await recover(again);
      expect(restored!.stepsLost).toBe(life === 2 ? 0 : lost - 2);
      rejoin(restored!, seen, `w/${life}`);
      expect(restored!.stepsLost).toBe(lost);
      // As the coordinator does, and then the process is killed.
      if (lostEvents(restored!).length > 0) again.onLost(restored!);
      expect(await readProgress(root, run.id)).toMatchObject({ total: lost });
      await again.abandon();
      const folder = checkpointFolder(root, run.id);
      // Nor is the new checkpoint there in time.
      const written = (await listCheckpoints(folder)).filter(({ kind }) => kind === 'last');
      for (const { file } of written.slice(1)) await removeCheckpoint(folder, file);
      trainTo(restored!, 12, `v/${life}`);
      seen = seenBy(restored!);
      lost += 2;
    }
    await store.close();
  });

  test('how far a run has come is noted in its folder; what cannot be read is nothing', async () => {
    expect(await readProgress(root, 'r')).toBeNull();
    await noteProgress(root, 'r', { step: 5, generation: 2 });
    await noteProgress(root, 'r', { step: 9, generation: 2 });
    expect(await readProgress(root, 'r')).toEqual({ step: 9, generation: 2 });
    for (const text of ['', '{"step":1', 'null', '{"step":"x","generation":1}']) {
      await writeFile(join(root, 'r', 'progress.json'), text);
      expect(await readProgress(root, 'r')).toBeNull();
    }
  });
});
