import { mkdir, mkdtemp, readdir, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest';
import { writeSealed } from '../../files/atomic-file.ts';
import { type CheckpointInput, checkpointFolder } from '../../files/checkpoint.ts';
import { listCheckpoints } from '../../files/manifest.ts';
import { Keeper } from '../../server/checkpoints/keeper.ts';
import { directWriter } from '../../server/checkpoints/writer.ts';
import type { Run } from '../../server/core/run.ts';
import { Coordinator } from '../../server/fleet/coordinator.ts';
import { openFileStore } from '../../server/store/file-store.ts';
import type { OwnerLease, StateStore } from '../../server/store/state-store.ts';
import { bytesOf } from '../../shared/codec.ts';
import { DownpourError } from '../../shared/errors.ts';
import { recover } from '../support/recover.ts';
import {
  createProblem,
  createRun,
  EXCHANGED,
  parametersOf,
  VirtualWorker,
} from '../support/regression.ts';
import { storedInFiles } from '../support/stored.ts';

const problem = createProblem();
let root: string;
let store: StateStore;
let lease: OwnerLease;
let lines: string[];
let fenced: DownpourError[];
let now: number;

beforeEach(async () => {
  root = await mkdtemp(join(tmpdir(), 'downpour-'));
  store = openFileStore({ folder: root });
  lease = await store.acquire('test', { ttlMs: 600_000 });
  [lines, fenced, now] = [[], [], 0];
});

afterEach(async () => {
  await store.close();
  await rm(root, { recursive: true, force: true });
});

function createKeeper(): Keeper {
  return new Keeper({
    root,
    store,
    token: lease.token,
    now: () => now,
    log: (line) => lines.push(line),
    onFenced: (error) => fenced.push(error),
  });
}

/** What the coordinator does after each event. */
function settle(keeper: Keeper, run: Run): void {
  for (const event of run.takeEvents()) {
    if (event.kind === 'phase') keeper.onPhase(run);
    else if (event.kind === 'best') keeper.onBest(run);
    else if (event.kind === 'evaluated') keeper.onEvaluation(run);
  }
  keeper.onStep(run, now);
}

function train(keeper: Keeper, run: Run, steps: number): void {
  const worker = new VirtualWorker(run, problem, `w/${run.step}`);
  while (run.step < steps && !run.over) {
    worker.pull();
    worker.push();
    settle(keeper, run);
  }
}

test('a checkpoint is due after so many seconds, and after so many steps', async () => {
  const run = createRun({
    checkpoint: { everySeconds: 30, everySteps: 4 },
    evaluateEverySteps: 1000,
  });
  const keeper = createKeeper();
  await keeper.register(run);
  train(keeper, run, 1);
  await keeper.saveNow(run);
  const steps = async () => (await keeper.checkpoints(run.id)).map((checkpoint) => checkpoint.step);
  train(keeper, run, 4);
  expect(await steps()).toEqual([1]);
  train(keeper, run, 5);
  await keeper.saveNow(run);
  expect((await steps()).at(-1)).toBe(5);
  train(keeper, run, 6);
  now = 30_000;
  keeper.tick(now);
  await keeper.saveNow(run);
  expect((await steps()).at(-1)).toBe(6);
});

test('the last K, the best and the final checkpoints are kept', async () => {
  const run = createRun({
    checkpoint: { everySteps: 1, keepLast: 2 },
    earlyStopping: { patience: 4 },
  });
  const keeper = createKeeper();
  await keeper.register(run);
  const worker = new VirtualWorker(run, problem);
  while (!run.over) {
    worker.pull();
    worker.push();
    settle(keeper, run);
    await keeper.saveNow(run);
  }
  await keeper.close([run]);
  const checkpoints = await keeper.checkpoints(run.id);
  const steps = (kind: string) => checkpoints.filter((c) => c.kind === kind).map((c) => c.step);
  expect(steps('best')).toEqual([run.best!.step]);
  expect(steps('final')).toEqual([run.step]);
  expect(steps('last').length).toBe(2);
  expect(steps('last').at(-1)).toBe(run.step);
  const best = await storedInFiles(root).best(run.id);
  expect(best?.value).toBe(run.best!.loss);
  expect(best?.checkpoint).toBe(checkpoints.find(({ kind }) => kind === 'best')!.file);
  expect((await storedInFiles(root).checkpoints(run.id)).length).toBe(4);
});

describe('the checkpoints of a run that has just ended', () => {
  /** A run at its end, and a keeper that may not write to the end of it yet. */
  async function ended(endWrittenMs?: number) {
    let mayWrite = () => {};
    const allowed = new Promise<void>((resolve) => {
      mayWrite = resolve;
    });
    const writer = {
      ...directWriter,
      async write(path: string, input: CheckpointInput) {
        if (input.kind === 'final') await allowed;
        return directWriter.write(path, input);
      },
    };
    const keeper = new Keeper({
      ...{ root, store, writer, token: lease.token, onFenced: () => {}, now: () => now },
      ...{ log: (line: string) => lines.push(line), ...(endWrittenMs && { endWrittenMs }) },
    });
    const run = createRun({ epochsMax: 1, earlyStopping: { enabled: false } });
    await keeper.register(run);
    new VirtualWorker(run, problem).train();
    settle(keeper, run);
    expect(run.phase).toBe('finished');
    const kinds = async () => (await keeper.checkpoints(run.id)).map(({ kind }) => kind);
    return { keeper, run, kinds, mayWrite };
  }

  test('are listed with those that its end writes', async () => {
    const { keeper, run, kinds, mayWrite } = await ended();
    const asked = kinds();
    mayWrite();
    expect(await asked).toEqual(expect.arrayContaining(['last', 'best', 'final']));
    await keeper.close([run]);
  });

  test('are listed without them where the disk takes long', async () => {
    const { keeper, run, kinds, mayWrite } = await ended(1);
    expect(await kinds()).not.toContain('final');
    mayWrite();
    await keeper.close([run]);
    expect(await kinds()).toContain('final');
  });
});

test('what was killed between two checkpoints goes on from the last one, with its best on disk', async () => {
  const run = createRun({ earlyStopping: { patience: 4 } });
  const keeper = createKeeper();
  await keeper.register(run);
  train(keeper, run, 12);
  await keeper.saveNow(run);
  const { step } = run;
  const parameters = parametersOf(run);
  train(keeper, run, 14);
  // The file of the best is lost as well: it is in the last checkpoint too.
  const folder = checkpointFolder(root, run.id);
  for (const name of await readdir(folder)) {
    if (name.includes('-best-')) await rm(join(folder, name));
  }
  const recovering = createKeeper();
  const [recovered] = await recover(recovering);
  await recovering.close([recovered!]);
  expect(recovered!.step).toBe(step);
  expect(parametersOf(recovered!)).toEqual(parameters);
  const best = (await listCheckpoints(folder)).filter((c) => c.kind === 'best');
  expect(best.map((c) => c.step)).toEqual([recovered!.best!.step]);
});

test('a run that was stopped before it had parameters is still stopped after a restart', async () => {
  const run = createRun({});
  const keeper = createKeeper();
  await keeper.register(run);
  run.call({ call: 'stop', reason: 'stopped by a user' });
  settle(keeper, run);
  await keeper.close([run]);
  const [recovered] = await recover(createKeeper());
  expect(recovered!.phase).toBe('stopped');
  recovered!.call({ call: 'resume' });
  new VirtualWorker(recovered!, problem).train();
  expect(recovered!.phase).toBe('finished');
});

test('a run that failed before it had parameters is not asked of workers after a restart, until somebody says so', async () => {
  const run = createRun({});
  const keeper = createKeeper();
  await keeper.register(run);
  const worker = new VirtualWorker(run, problem);
  const asked = run.call({ call: 'assign', worker: worker.key, ahead: 1, now: 0 });
  const { grant } = asked as Extract<typeof asked, { kind: 'initialise' }>;
  const nan = bytesOf(new Float32Array(EXCHANGED + 1).fill(Number.NaN));
  const given = { call: 'initialised', worker: worker.key, grant, now: 0 } as const;
  expect(() => run.call(given, nan)).toThrow("hold NaN in tensor '");
  settle(keeper, run);
  await keeper.close([run]);
  const [recovered] = await recover(createKeeper());
  expect(recovered).toMatchObject({ phase: 'stopped' });
  expect(recovered!.reason).toContain('failed before it had parameters');
  recovered!.call({ call: 'resume' });
  new VirtualWorker(recovered!, problem).train();
  expect(recovered!.phase).toBe('finished');
});

test('a run that could not be registered is none, whatever the store asks for later', async () => {
  const keeper = createKeeper();
  const coordinator = new Coordinator({ keeper, now: () => now, log: () => {} });
  const failure = new DownpourError('DP_STATE_CORRUPT', 'something else is in its place');
  vi.spyOn(store, 'putRun').mockRejectedValueOnce(failure);
  const body = { id: 'lost', experiment: 'e', experimentHash: 'h' };
  await expect(coordinator.create(body)).rejects.toBe(failure);
  expect(coordinator.runs).toEqual([]);
  keeper.rebuild();
  await keeper.close([]);
  expect(await store.listRuns()).toEqual([]);
});

test('a fork that could not be registered leaves no run behind', async () => {
  const source = createRun({}, 'source');
  const keeper = createKeeper();
  await keeper.register(source);
  train(keeper, source, 5);
  await keeper.saveNow(source);
  const failure = new DownpourError('DP_STATE_CORRUPT', 'something else is in its place');
  vi.spyOn(store, 'putRun').mockRejectedValueOnce(failure);
  const options = { ...source.options, id: 'f' };
  await expect(keeper.fork(source, { checkpoint: 'last' }, options)).rejects.toBe(failure);
  expect(await listCheckpoints(checkpointFolder(root, 'f'))).toEqual([]);
  await keeper.close([source]);
  expect((await recover(createKeeper())).map(({ id }) => id)).toEqual(['source']);
  // Its name is free.
  const again = createKeeper();
  const fork = await again.fork(source, { checkpoint: 'last' }, options);
  expect(fork).toMatchObject({ id: 'f', step: 0 });
  await again.close([source, fork]);
});

test('a store that is away does not keep a server from going back to its checkpoints', async () => {
  const run = createRun({});
  const keeper = createKeeper();
  await keeper.register(run);
  train(keeper, run, 3);
  await keeper.saveNow(run);
  const { step } = run;
  const away = async () => {
    throw new DownpourError('DP_REDIS_UNAVAILABLE', 'it is away');
  };
  store.listRuns = away;
  store.lastCheckpoint = away;
  await keeper.abandon();
  const recovered = await recover(keeper);
  expect(recovered.map((again) => [again.id, again.step])).toEqual([[run.id, step]]);
  // One that starts knows nothing yet.
  await expect(recover(createKeeper())).rejects.toThrow('it is away');
  await keeper.close(recovered);
});

test('when all runs are given up, a fork that is being made ends first', async () => {
  const run = createRun({});
  const keeper = createKeeper();
  await keeper.register(run);
  train(keeper, run, 3);
  await keeper.saveNow(run);
  const { putRun } = store;
  let begun = false;
  let goOn = () => {};
  const held = new Promise<void>((resolve) => {
    goOn = resolve;
  });
  store.putRun = async (...all) => {
    begun = true;
    await held;
    return putRun.apply(store, all);
  };
  const order: string[] = [];
  const forking = keeper.fork(run, { checkpoint: 'last' }, { ...run.options, id: 'f' });
  const forked = forking.then(() => order.push('forked'));
  await expect.poll(() => begun).toBe(true);
  const abandoned = keeper.abandon().then(() => order.push('abandoned'));
  goOn();
  await Promise.all([forked, abandoned]);
  expect(order).toEqual(['forked', 'abandoned']);
});

test('what else lies in the state folder keeps no run from being recovered', async () => {
  const run = createRun({});
  const keeper = createKeeper();
  await keeper.register(run);
  train(keeper, run, 3);
  await keeper.saveNow(run);
  await writeFile(join(root, 'notes'), 'of a user');
  await writeFile(join(root, 'lives.json'), 'damaged');
  await mkdir(join(root, 'empty', 'checkpoints'), { recursive: true });
  // A checkpoint of a release that does not exist yet is told, and its run left alone.
  await mkdir(join(root, 'newer', 'checkpoints'), { recursive: true });
  const manifest = { version: 3, file: 'step-000000001-last-0001.safetensors' };
  await writeSealed(join(root, 'newer', 'checkpoints'), 'step-000000001-last-0001.json', manifest);
  const recovered = await recover(createKeeper());
  expect(recovered.map(({ id }) => id)).toEqual([run.id]);
  expect(lines.join('\n')).toMatch(/run newer cannot be rebuilt: DP_USAGE/);
});

describe('when the state cannot be written', () => {
  test('training goes on, it is said, and the newest state is written later', async () => {
    const run = createRun({});
    const keeper = createKeeper();
    await keeper.register(run);
    train(keeper, run, 2);
    await keeper.saveNow(run);
    const putEarlyStopping = store.putEarlyStopping.bind(store);
    let broken = true;
    store.putEarlyStopping = async (...args) => {
      if (broken) throw new Error('the disk is full');
      await putEarlyStopping(...args);
    };
    train(keeper, run, 6);
    await keeper.saveNow(run);
    expect(lines.join('\n')).toMatch(/earlyStopping not written, trying again: .*the disk is full/);
    train(keeper, run, 11);
    // Tried again in vain, for the same reason: that is said already.
    now = 5_000;
    keeper.tick(now);
    await keeper.saveNow(run);
    const told = () => lines.filter((line) => line.includes('not written'));
    expect(told()).toHaveLength(1);
    broken = false;
    now = 10_000;
    keeper.tick(now);
    await keeper.close([run]);
    expect(told()).toHaveLength(1);
    expect(lines.filter((line) => line.endsWith('earlyStopping is written again'))).toHaveLength(1);
    expect(await storedInFiles(root).earlyStopping(run.id)).toEqual(
      JSON.parse(JSON.stringify(run.earlyStoppingState)),
    );
  });

  test('a server that another has taken over from writes nothing more, and is told to stop', async () => {
    const run = createRun({});
    const keeper = createKeeper();
    await keeper.register(run);
    train(keeper, run, 2);
    await keeper.saveNow(run);
    await lease.release();
    const other = openFileStore({ folder: root });
    const taken = await other.acquire('other', { ttlMs: 600_000 });
    train(keeper, run, 3);
    await keeper.saveNow(run);
    expect(fenced[0]?.code).toBe('DP_STATE_FENCED');
    await taken.release();
    await other.close();
  });
});

describe('with many runs', () => {
  /** All that is written from now on, by what it is of. */
  function counted(keeperStore: StateStore) {
    const records: string[] = [];
    const checkpoints: string[] = [];
    const put = (name: 'putRun' | 'putEarlyStopping' | 'recordBest' | 'publishCheckpoint') => {
      const original = keeperStore[name] as (...all: unknown[]) => unknown;
      return {
        [name]: (token: number, run: { id: string } | string, ...more: never[]) => {
          records.push(typeof run === 'string' ? run : run.id);
          return original.call(keeperStore, token, run, ...more);
        },
      };
    };
    const names = ['putRun', 'putEarlyStopping', 'recordBest', 'publishCheckpoint'] as const;
    const store = Object.assign(keeperStore, ...names.map(put)) as StateStore;
    const writer = {
      ...directWriter,
      write(path: string, input: CheckpointInput) {
        checkpoints.push(input.run);
        return directWriter.write(path, input);
      },
    };
    const keeper = new Keeper({
      ...{ root, store, writer, token: lease.token, onFenced: () => {} },
      ...{ now: () => (now += 100), log: (line: string) => lines.push(line) },
    });
    return { keeper, records, checkpoints };
  }

  test('a start and a stop write of those alone to which something has happened', async () => {
    const first = createKeeper();
    const create = (id: string) => createRun({ evaluateEverySteps: 1000 }, id);
    const made: Run[] = [];
    for (let i = 0; i < 30; i++) {
      const run = create(`run-${i}`);
      made.push(run);
      await first.register(run);
      if (i % 3 > 0) train(first, run, 2);
      if (i % 3 === 2) run.call({ call: 'stop', reason: 'by a user' });
      settle(first, run);
    }
    await first.close(made);

    const { keeper, records, checkpoints } = counted(store);
    const runs = await recover(keeper);
    expect(runs).toHaveLength(30);
    expect([records, checkpoints]).toEqual([[], []]);
    const busy = runs.find(({ over, hasParameters }) => !over && hasParameters)!;
    const before = busy.step;
    const worker = new VirtualWorker(busy, problem, 'w/again');
    worker.pull();
    worker.push();
    settle(keeper, busy);
    await keeper.close(runs);
    expect(checkpoints).toEqual([busy.id]);
    expect(new Set(records)).toEqual(new Set([busy.id]));
    const again = (await recover(createKeeper())).find(({ id }) => id === busy.id)!;
    expect(again.step).toBe(before + 1);
  });
});
