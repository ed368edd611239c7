import { mkdtemp, readdir, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setImmediate as immediate } from 'node:timers/promises';
import fc from 'fast-check';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { checkpointFolder, readCheckpoint } from '../../files/checkpoint.ts';
import { joinRows, type TensorSource } from '../../files/joined-rows.ts';
import { listCheckpoints } from '../../files/manifest.ts';
import { Keeper, type KeeperOptions } from '../../server/checkpoints/keeper.ts';
import { directWriter } from '../../server/checkpoints/writer.ts';
import type { RunState } from '../../server/core/run/state.ts';
import { Run } from '../../server/core/run.ts';
import { RunTables } from '../../server/core/tables/run-tables.ts';
import { flatTensor, type NamedTensor } from '../../server/core/vectors.ts';
import type { ShardPool } from '../../server/shards/pool.ts';
import type { ReadPiece } from '../../server/shards/protocol.ts';
import { openFileStore } from '../../server/store/file-store.ts';
import type { OwnerLease, StateStore } from '../../server/store/state-store.ts';
import { type PartialConfig, resolveConfig } from '../../shared/config.ts';
import { DownpourError } from '../../shared/errors.ts';
import { LIMITS } from '../../shared/limits.ts';
import { type KeyedRows, wholeKeys } from '../../shared/row-groups.ts';
import { encodeRows, type TableRows } from '../../shared/rows.ts';
import { createProblem, createRun } from '../support/regression.ts';
import { cutForShards, ShardedRun } from '../support/shards.ts';
import { TableWorker } from '../support/table-worker.ts';

/** Checkpoints of changed rows: what they hold, and that nothing of it depends on when their pieces are copied. */

const TABLES: PartialConfig['tables'] = {
  grows: {
    ...{ rows: 'hash', rowsMax: 12, width: 3, optimizer: { kind: 'adam' } },
    ...{ admitAfter: 2, expireAfter: 6, pretrainedRate: 0.5 },
  },
  known: { rows: 20, width: 2, weightDecay: 0.05 },
};
const CONFIG = resolveConfig({ tables: TABLES });
const BEST = 1;

/** What may happen between two checkpoints, and in the midst of one. */
const happenings = fc.array(
  fc.oneof(
    { weight: 8, arbitrary: fc.tuple(fc.constant('push' as const), fc.nat({ max: 19 })) },
    { weight: 1, arbitrary: fc.tuple(fc.constant('undone' as const), fc.nat({ max: 19 })) },
    { weight: 1, arbitrary: fc.tuple(fc.constant('best' as const), fc.nat({ max: 1 })) },
    { weight: 1, arbitrary: fc.tuple(fc.constant('replace' as const), fc.nat({ max: 1 })) },
    { weight: 1, arbitrary: fc.tuple(fc.constant('reset' as const), fc.nat({ max: 3 })) },
    { weight: 1, arbitrary: fc.tuple(fc.constant('begin' as const), fc.nat({ max: 9 })) },
    { weight: 3, arbitrary: fc.tuple(fc.constant('save' as const), fc.nat({ max: 5 })) },
    { weight: 1, arbitrary: fc.tuple(fc.constant('lose' as const), fc.nat({ max: 5 })) },
  ),
  { minLength: 5, maxLength: 60 },
);

const keys = (tables: RunTables) =>
  tables.shapes.map(() => Uint32Array.from({ length: 20 }, (_, key) => key));

function happen(tables: RunTables, what: string, n: number): void {
  const { shapes } = tables;
  const keys = Uint32Array.of(n, n + 1, n + 5).filter((key) => key < 20);
  const rows = shapes.map(({ width }) => ({
    keys,
    values: Float32Array.from({ length: keys.length * width }, (_, i) => Math.sin(n + i)),
  }));
  if (what === 'push' || what === 'undone') {
    const bytes = encodeRows(shapes, rows, 'f32');
    const step = tables.rowStep;
    tables.stage(bytes, { step, encoding: 'f32', bytes: bytes.length, wanted: 0 });
    tables.apply(0.1, { limit: Infinity, factor: 1 }, () => 1);
    if (what === 'undone') tables.undo();
  } else if (what === 'best') tables.capture(BEST);
  else if (what === 'replace' && tables.hasCapture(BEST)) tables.replace(BEST);
  else if (what === 'reset') tables.reset(n);
  else if (what === 'begin') {
    // So many that they always fit.
    const few = rows.map(({ keys, values }, i) => {
      const { width } = shapes[i]!;
      return { keys: keys.subarray(0, 1), values: values.subarray(0, width) };
    });
    try {
      tables.begin(encodeRows(shapes, few, 'f32'));
    } catch (error) {
      expect(error).toMatchObject({ code: 'DP_LAYOUT_INVALID' });
    }
  }
}

interface Written {
  readonly tensors: readonly NamedTensor[];
  readonly groups: readonly KeyedRows[];
}

const sourceOf = (tensors: readonly NamedTensor[]): TensorSource => {
  const of = (name: string) => tensors.find((tensor) => tensor.name === name)?.values;
  return {
    tensors,
    size: (name) => of(name)?.length ?? 0,
    read: async (name, start, count) => of(name)!.slice(start, start + count),
  };
};

async function joined(links: readonly Written[]): Promise<NamedTensor[]> {
  const source = await joinRows(
    links.map(({ tensors, groups }) => ({ tensors: sourceOf(tensors), groups })),
  );
  const all: NamedTensor[] = [];
  for (const { name } of source.tensors) {
    // In odd pieces, as others read them.
    const parts: number[] = [];
    const size = source.size(name);
    for (let at = 0; at < size; at += 7) {
      parts.push(...(await source.read(name, at, Math.min(7, size - at))));
    }
    all.push(flatTensor(name, Float32Array.from(parts)));
  }
  return all;
}

/** Rows by their keys, with all that belongs to them: their order says nothing. */
function sorted(tensors: readonly NamedTensor[]): Record<string, unknown> {
  const of = (name: string) => tensors.find((tensor) => tensor.name === name)?.values;
  return Object.fromEntries(
    tensors
      .filter(({ name }) => /(keys|initial|fromFile)$/.test(name))
      .map(({ name, values }) => {
        const prefix = name.slice(0, name.lastIndexOf('.') + 1);
        const keys = wholeKeys(values);
        const fields = name.endsWith('keys')
          ? ['values', 'state', 'changed', 'decays', 'pretrained']
          : [];
        const rows = keys.map((key, i) => {
          const parts = fields.map((field) => {
            const all = of(prefix + field) ?? new Float32Array();
            const width = all.length / keys.length;
            const part = [...all.subarray(width * i, width * (i + 1))];
            // A table without pretrained rows has no flags.
            return field === 'pretrained' && part.length === 0 ? [0] : part;
          });
          return [key, parts] as const;
        });
        return [name, rows.sort(([a], [b]) => a - b)];
      }),
  );
}

test('checkpoints of changes, joined, are one of all rows, whatever happens before, between and in the midst of them', async () => {
  await fc.assert(
    fc.asyncProperty(happenings, fc.infiniteStream(fc.boolean()), async (all, draw) => {
      const tables = new RunTables(CONFIG);
      const chain: Written[] = [];
      const best = () => (tables.hasCapture(BEST) ? BEST : null);
      for (let at = 0; at < all.length; at++) {
        const [what, n] = all[at]!;
        if (what !== 'save' && what !== 'lose') {
          happen(tables, what, n);
          continue;
        }
        const changes = chain.length > 0 && tables.copyBytes().changed !== null;
        const expected = {
          rows: sorted(tables.tensors(best(), null)),
          state: JSON.stringify(tables.state(best(), null)),
          best: modelOf(tables.named(best())),
        };
        const copy = tables.beginCopy('last', best(), { changes });
        // What follows comes while rows are copied, some of it before the first one is.
        for (let inside = 0; inside < n && at + 1 < all.length; inside++) {
          const [next, m] = all[at + 1]!;
          if (next === 'save' || next === 'lose') break;
          happen(tables, next, m);
          at++;
          if (draw.next().value) copy.more();
        }
        const written = { tensors: copy.tensors(), groups: copy.groups };
        tables.endCopy(what === 'save');
        if (what === 'lose') continue;
        if (!changes) chain.length = 0;
        chain.push(written);
        const whole = await joined(chain);
        expect(sorted(whole)).toEqual(expected.rows);
        // A run goes on from them as it would have.
        const later = new RunTables(CONFIG);
        const state = JSON.parse(expected.state);
        later.restore(state, whole, state.captures.best ? BEST : null, null);
        const captured = state.captures.best ? BEST : null;
        expect(sorted(later.tensors(captured, null))).toEqual(expected.rows);
        expect(JSON.stringify(later.state(captured, null))).toBe(expected.state);
        expect(modelOf(later.named(captured))).toEqual(expected.best);
      }
    }),
    { numRuns: 50, seed: 24 },
  );
});

test('the best and the final rows are of one moment, whatever happens while they are copied', async () => {
  const inside = { copied: 0, later: 0, pretrained: 0 };
  await fc.assert(
    fc.property(happenings, fc.infiniteStream(fc.boolean()), (all, draw) => {
      const tables = new RunTables(CONFIG);
      for (let at = 0; at < all.length; at++) {
        const [what, n] = all[at]!;
        if (what !== 'save' && what !== 'lose') {
          happen(tables, what, n);
          continue;
        }
        const isBest = what === 'save' && tables.hasCapture(BEST);
        const best = isBest ? BEST : null;
        const rows = tables.read(keys(tables), 'f32', best);
        const expected = modelOf(tables.named(best));
        const state = tables.state(best, null);
        const copy = tables.beginCopy(isBest ? 'best' : 'final', best);
        for (let more = 0; more < n && at + 1 < all.length; more++) {
          const [next, m] = all[at + 1]!;
          if (next === 'save' || next === 'lose') break;
          happen(tables, next, m);
          // Another evaluation was better.
          if (draw.next().value) tables.forget(BEST);
          at++;
          inside.later++;
          if (draw.next().value) copy.more();
        }
        const tensors = copy.tensors();
        tables.endCopy(true);
        const found = modelOf(tensors);
        expect(found).toEqual(expected);
        const fork = new RunTables(CONFIG);
        fork.adopt(state, tensors);
        const near = (bytes: Uint8Array) => [...new Float32Array(bytes.slice().buffer)];
        const read = near(fork.read(keys(fork), 'f32', null));
        for (const [i, x] of near(rows).entries()) expect(read[i]).toBeCloseTo(x, 5);
        inside.copied += Object.keys(found).length;
        inside.pretrained += fork.facts().reduce((sum, { pretrained }) => sum + pretrained, 0);
      }
    }),
    { numRuns: 100, seed: 24 },
  );
  // All of it has happened.
  for (const count of Object.values(inside)) expect(count).toBeGreaterThan(20);
});

describe('rows that nobody has changed have after a restart the initial values that they had,', () => {
  const read = (tables: RunTables) => tables.read(keys(tables), 'f32', null);
  const restarted = (tables: RunTables) => {
    const again = new RunTables(CONFIG);
    again.restore(tables.state(null, null), tables.tensors(null, null), null, null);
    return again;
  };

  test.each(['last', 'final'] as const)('in a fork of %s of a run that began afresh', (kind) => {
    const tables = new RunTables(CONFIG);
    happen(tables, 'push', 3);
    happen(tables, 'reset', 9);
    happen(tables, 'push', 4);
    const state = tables.state(null, null);
    const fork = new RunTables(CONFIG);
    fork.adopt(state, tables.beginCopy(kind, null).tensors());
    expect(read(fork)).toEqual(read(tables));
    expect(read(restarted(fork))).toEqual(read(tables));
  });

  test('in a run that went back to parameters from before it began afresh', () => {
    const tables = new RunTables(CONFIG);
    happen(tables, 'push', 3);
    happen(tables, 'best', 0);
    happen(tables, 'reset', 9);
    happen(tables, 'replace', 0);
    expect(read(restarted(tables))).toEqual(read(tables));
  });
});

test('a capture knows the rows of a file after all rows have begun afresh, also in another life of the server', () => {
  let tables = new RunTables(CONFIG);
  const restart = () => {
    const [state, tensors] = [tables.state(BEST, null), tables.tensors(BEST, null)];
    tables = new RunTables(CONFIG);
    tables.restore(JSON.parse(JSON.stringify(state)), tensors, BEST, null);
  };
  const flags = () => {
    const copy = tables.beginCopy('best', BEST);
    const flagged = Object.values(modelOf(copy.tensors())).flatMap((rows) =>
      Object.entries(rows).flatMap(([key, { pretrained }]) => (pretrained ? Number(key) : [])),
    );
    tables.endCopy(true);
    return flagged.sort((a, b) => a - b);
  };
  happen(tables, 'begin', 3);
  happen(tables, 'begin', 4);
  happen(tables, 'push', 4);
  happen(tables, 'best', 0);
  expect(flags()).toEqual([3, 3, 4, 4]);
  happen(tables, 'reset', 9);
  expect(flags()).toEqual([3, 3, 4, 4]);
  expect(tables.facts().map(({ pretrained }) => pretrained)).toEqual([0, 0]);
  restart();
  expect(flags()).toEqual([3, 3, 4, 4]);
  happen(tables, 'begin', 7);
  expect(flags()).toEqual([3, 3, 4, 4]);
  restart();
  expect(flags()).toEqual([3, 3, 4, 4]);
  happen(tables, 'replace', 0);
  restart();
  expect(flags()).toEqual([3, 3, 4, 4]);
  expect(tables.facts().map(({ pretrained }) => pretrained)).toEqual([2, 2]);
});

/** The rows of a model by table and key. */
function modelOf(tensors: readonly NamedTensor[]) {
  const tables: Record<string, Record<number, { values: number[]; pretrained: boolean }>> = {};
  for (const { name, values: keys } of tensors) {
    if (!name.endsWith('.model.keys')) continue;
    const of = (field: string) =>
      tensors.find((tensor) => tensor.name === name.replace(/keys$/, field))?.values;
    const all = of('values')!;
    const flags = of('pretrained');
    const width = (2 * all.length) / keys.length;
    const rows = wholeKeys(keys).map((key, i) => {
      const values = [...all.subarray(i * width, (i + 1) * width)];
      return [key, { values, pretrained: flags?.[i] === 1 }] as const;
    });
    expect(new Set(wholeKeys(keys)).size).toBe(rows.length);
    tables[name] = Object.fromEntries(rows);
  }
  return tables;
}

describe('on disk', () => {
  const problem = createProblem();
  const WIDTH = 3;
  const tables = {
    known: { rows: 40, width: WIDTH, weightDecay: 0.01 },
    grows: { rows: 'hash' as const, width: 2, rowsMax: 60, admitAfter: 2, expireAfter: 12 },
  };
  const course = {
    ...{ evaluateEverySteps: 3, testAtEnd: false, stepsMax: 16, learningRate: 0.01 },
    checkpoint: { keepLast: 1 },
  };
  let root: string;
  let store: StateStore;
  let lease: OwnerLease;
  beforeEach(async () => {
    root = await mkdtemp(join(tmpdir(), 'downpour-changes-'));
    store = openFileStore({ folder: root });
    lease = await store.acquire('test', { ttlMs: 600_000 });
  });
  afterEach(async () => {
    await store.close();
    await rm(root, { recursive: true, force: true });
  });

  const createKeeper = (more: Partial<KeeperOptions> = {}) =>
    new Keeper({
      ...{ root, store, token: lease.token, now: () => 0, log: () => {}, changesBytesMin: 0 },
      onFenced: (error) => {
        throw error;
      },
      ...more,
    });

  const rowsOf = (run: Run) => {
    const keys = run.tables!.shapes.map(() => Uint32Array.from({ length: 40 }, (_, i) => i));
    return Buffer.from(run.tables!.read(keys, 'f32', null)).toString('base64');
  };
  /** Rows of a table that grows lie in the order in which they came into this server. */
  const denseOf = (run: Run) => run.withoutRows('final', (values) => values.slice());
  const newest = async () =>
    (await listCheckpoints(checkpointFolder(root, 'r'))).findLast(({ kind }) => kind === 'last')!;

  test('a run goes on from checkpoints of changes as if it had never stopped; from time to time one has all rows', async () => {
    const whole = createRun({ ...course, tables });
    new TableWorker(whole, problem).train();
    const run = createRun({ ...course, tables });
    const worker = new TableWorker(run, problem);
    const keeper = createKeeper();
    await keeper.register(run);
    const continued: number[] = [];
    while (!run.over) {
      const { step } = run;
      worker.train(() => run.step > step);
      await keeper.saveNow(run);
      if (run.over) break;
      const manifest = await newest();
      continued.push(manifest.continues?.after.length ?? 0);
      const { tensors } = await readCheckpoint(checkpointFolder(root, 'r'), manifest);
      const later = Run.restore(JSON.parse(JSON.stringify(manifest.state)), tensors);
      expect(rowsOf(later)).toBe(rowsOf(run));
      if (step % 5 !== 0) continue;
      new TableWorker(later, problem, 'later/2').train();
      expect(rowsOf(later)).toBe(rowsOf(whole));
      expect(denseOf(later)).toEqual(denseOf(whole));
    }
    expect(continued[0]).toBe(0);
    expect(Math.max(...continued)).toBeGreaterThan(2);
    expect(continued.lastIndexOf(0)).toBeGreaterThan(0);
    // What nobody needs any more has gone.
    const left = await listCheckpoints(checkpointFolder(root, 'r'));
    const last = left.filter(({ kind }) => kind === 'last');
    expect(last.length).toBe(1 + (last.at(-1)!.continues?.after.length ?? 0));
  });

  test('one that could not be written, and files that were removed, leave no gap', async () => {
    const run = createRun({ ...course, tables });
    const worker = new TableWorker(run, problem);
    let failing = false;
    const keeper = createKeeper({
      writer: {
        ...directWriter,
        async write(folder, input) {
          if (failing && input.kind === 'last') throw new DownpourError('DP_DISK', 'full');
          return directWriter.write(folder, input);
        },
      },
    });
    await keeper.register(run);
    const save = async () => {
      const { step } = run;
      worker.train(() => run.step > step);
      await keeper.saveNow(run);
      const manifest = await newest();
      const { tensors } = await readCheckpoint(checkpointFolder(root, 'r'), manifest);
      return { manifest, later: Run.restore(manifest.state as RunState, tensors) };
    };
    const first = await save();
    failing = true;
    expect((await save()).manifest.file).toBe(first.manifest.file);
    failing = false;
    const second = await save();
    expect(second.manifest.continues?.after).toHaveLength(1);
    expect(rowsOf(second.later)).toBe(rowsOf(run));
    const folder = checkpointFolder(root, 'r');
    for (const name of await readdir(folder)) await rm(join(folder, name));
    const third = await save();
    expect(third.manifest.continues).toBeUndefined();
    expect(rowsOf(third.later)).toBe(rowsOf(run));
  });

  test('pushes are applied while the rows of a large table are copied, and the checkpoint is of the moment before', async () => {
    const large = { known: { rows: 2 ** 22, width: 1, weightDecay: 0.01 } };
    const run = createRun({ ...course, tables: large });
    const worker = new TableWorker(run, problem);
    worker.train(() => run.step >= 3);
    let begun = false;
    let written = false;
    const copyRows = run.copyRows.bind(run);
    run.copyRows = (...args) => {
      begun = true;
      return copyRows(...args);
    };
    const keeper = createKeeper({
      writer: {
        ...directWriter,
        write(folder, input) {
          written = true;
          return directWriter.write(folder, input);
        },
      },
    });
    await keeper.register(run);
    const before = { step: run.step, rows: rowsOf(run) };
    const saved = keeper.checkpointNow(run);
    while (!begun) await immediate();
    const { step } = run;
    worker.train(() => run.step > step);
    expect(written).toBe(false);
    await saved;
    expect(rowsOf(run)).not.toBe(before.rows);
    const manifest = await newest();
    expect(manifest.step).toBe(before.step);
    const { tensors } = await readCheckpoint(checkpointFolder(root, 'r'), manifest);
    expect(rowsOf(Run.restore(manifest.state as RunState, tensors))).toBe(before.rows);
  });

  test('rows that take little are written with each checkpoint', async () => {
    const rowBytes = 4 * (WIDTH + 1 + 5 + 3);
    const changesBytesMin = LIMITS.checkpointChangesBytesMin;
    const fit = Math.ceil(changesBytesMin / rowBytes);
    for (const [rows, version] of [
      [fit - 1, 1],
      [fit, 2],
    ] as const) {
      const id = `r${rows}`;
      const run = createRun({ ...course, tables: { known: { ...tables.known, rows: fit } } }, id);
      const worker = new TableWorker(run, problem);
      worker.train(() => run.step > 0);
      const keys = Uint32Array.from({ length: rows }, (_, i) => i);
      const values = new Float32Array(rows * WIDTH);
      run.tables!.reset(1);
      run.tables!.begin(encodeRows(run.tables!.shapes, [{ keys, values }], 'f32'));
      const keeper = createKeeper({ changesBytesMin });
      await keeper.register(run);
      await keeper.saveNow(run);
      await keeper.saveNow(run);
      const written = await listCheckpoints(checkpointFolder(root, id));
      expect(written.filter(({ kind }) => kind === 'last').at(-1)!.version).toBe(version);
    }
  });

  let expected: readonly TableRows[] = [];
  test.each([
    [2, 3],
    [3, 1],
  ])('of %i shards they are of all of them, and go on with %i', async (before, after) => {
    const config: PartialConfig = {
      ...{ evaluateEverySteps: 4, epochsMax: 2, averaging: { kind: 'none' }, tables },
      ...{ earlyStopping: { enabled: false }, checkpoint: { keepLast: 1 } },
    };
    if (expected.length === 0) {
      const whole = new ShardedRun(1, config);
      whole.train();
      expected = whole.rows();
    }
    const first = new ShardedRun(before, config);
    const keeper = createKeeper({ shards: poolOf(first) });
    first.train(() => first.run.step > 0);
    await keeper.register(first.run);
    const versions: number[] = [];
    for (let until = 2; until < 7; until++) {
      first.train(() => first.run.step >= until);
      await keeper.saveNow(first.run);
      versions.push((await newest()).version);
    }
    expect(versions[0]).toBe(1);
    expect(versions.filter((version) => version === 2).length).toBeGreaterThan(1);
    const manifest = await newest();
    const { tensors } = await readCheckpoint(checkpointFolder(root, 'r'), manifest);
    const file = tensors.map((tensor) => ({ ...tensor }));
    const saved = await cutForShards({ state: manifest.state as RunState, file }, after);
    const second = new ShardedRun(after, config, saved);
    expect(second.rows()).toEqual(first.rows());
    second.train();
    expect(second.rows()).toEqual(expected);
  });

  test('what a shard has not kept, since it does not know what has changed, is written with all rows next', async () => {
    const config: PartialConfig = {
      ...{ epochsMax: 2, averaging: { kind: 'none' }, earlyStopping: { enabled: false }, tables },
    };
    const first = new ShardedRun(3, config);
    first.train(() => first.run.step >= 2);
    const save = {
      kind: 'save',
      run: 'r',
      id: 99,
      what: 'last',
      best: null,
      changes: true,
    } as const;
    first.shards[1]!.execute(save, new Float32Array());
    expect(first.shards[1]!.list('r', 99)).toBeNull();
    const pool = poolOf(first);
    let isKept = true;
    const list: ShardPool['list'] = async (...of) =>
      isKept ? pool.list(...of) : kept<never>(null);
    const keeper = createKeeper({ shards: { ...pool, list } as ShardPool });
    await keeper.register(first.run);
    const versions: number[] = [];
    for (const isWell of [true, true, false, true, true]) {
      isKept = isWell;
      const { step } = first.run;
      first.train(() => first.run.step > step);
      await keeper.saveNow(first.run);
      expect(keeper.problem('r')).toEqual(isWell ? null : expect.stringContaining('DP_SHARD_LOST'));
      if (isWell) versions.push((await newest()).version);
    }
    expect(versions).toEqual([1, 2, 1, 2]);
  });
});

/** What a server asks its other shards for. */
const poolOf = ({ shards }: ShardedRun) =>
  ({
    count: shards.length,
    list: async (index: number, run: string, id: number) => kept(shards[index]!.list(run, id)),
    read: async (index: number, { run, id, name, start, count }: ReadPiece) =>
      kept(shards[index]!.read(run, id, name, start, count)),
  }) as unknown as ShardPool;
const kept = <T>(found: T | null): T => {
  if (found !== null) return found;
  throw new DownpourError('DP_SHARD_LOST', 'the shard has not kept this checkpoint');
};
