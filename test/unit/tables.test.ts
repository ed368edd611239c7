import fc from 'fast-check';
import { describe, expect, test, vi } from 'vitest';
import { Run } from '../../server/core/run.ts';
import { createRowIndex } from '../../server/core/tables/row-index.ts';
import { RowTable } from '../../server/core/tables/row-table.ts';
import { resolveConfig } from '../../shared/config.ts';
import { LIMITS } from '../../shared/limits.ts';
import { createOptimizer } from '../../shared/optimizer.ts';
import type { Push } from '../../shared/protocol.ts';
import { ALL_ROWS } from '../../shared/row-shards.ts';
import type { TableConfig } from '../../shared/tables.ts';
import { createProblem, createRun, parametersOf, VirtualWorker } from '../support/regression.ts';
import { createReplication, expectEqual, StandbyLink } from '../support/standby-link.ts';
import { aimOf, keysOf, TableWorker } from '../support/table-worker.ts';

const problem = createProblem();

const tableConfig = (config: object, rows: TableConfig['rows'] = 20, width = 3) =>
  resolveConfig({ tables: { word: { rows, width, ...config } } }).tables!.word!;
const tableOf = (config: object, rows: TableConfig['rows'] = 20, width = 3) =>
  new RowTable('word', tableConfig(config, rows, width), 7);

const NO_CLIP = { limit: Infinity, factor: 1 };

/** Pushes one gradient for some rows. */
function push(
  table: RowTable,
  rowStep: number,
  keys: number[],
  values: number[],
  rate = 0.1,
  readStep = rowStep - 1,
) {
  const bytes = new Uint8Array(Float32Array.from(values).buffer);
  table.stage({ keys: Uint32Array.from(keys), values: bytes }, 'f32');
  const scaleOf = () => 1;
  return table.apply({ rowStep, rate, clip: NO_CLIP, scaleOf, readStep });
}

const read = (table: RowTable, keys: readonly number[], capture: number | null = null) => {
  const out = new Float32Array(keys.length * table.width);
  table.read(Uint32Array.from(keys), capture, out);
  return out;
};

const ALL = Array.from({ length: 20 }, (_, i) => i);
/** Pushes of some rows each. */
const pushes = fc.array(
  fc.uniqueArray(fc.nat({ max: 19 }), { maxLength: 6 }).map((keys) => keys.sort((a, b) => a - b)),
  { minLength: 1, maxLength: 30 },
);
const gradientsOf = (keys: readonly number[], step: number) =>
  keys.flatMap((key) => [0, 1, 2].map((i) => Math.fround(Math.sin(key * 3 + i + step))));

describe('rows that are updated by their keys equal a dense table that is updated whole', () => {
  test('sgd with decay and a limit of the norm, to rounding', () => {
    fc.assert(
      fc.property(pushes, (all) => {
        const table = tableOf({ optimizer: { kind: 'sgd' }, weightDecay: 0.02, maxNorm: 0.5 });
        const dense = Float64Array.from(read(table, ALL));
        for (const [i, keys] of all.entries()) {
          const rate = 0.5 / (1 + i);
          const g = gradientsOf(keys, i);
          push(table, i + 1, keys, g, rate);
          for (let j = 0; j < dense.length; j++) dense[j]! *= 1 - rate * 0.02;
          for (const [k, key] of keys.entries()) {
            const row = dense.subarray(3 * key, 3 * key + 3);
            for (let j = 0; j < 3; j++) row[j]! -= rate * g[3 * k + j]!;
            const norm = Math.hypot(...row);
            if (norm > 0.5) for (let j = 0; j < 3; j++) row[j]! *= 0.5 / norm;
          }
        }
        for (const [i, x] of read(table, ALL).entries()) expect(x).toBeCloseTo(dense[i]!, 5);
      }),
      { numRuns: 100 },
    );
  });

  test('adagrad has one number of state for a row: the mean of its squares', () => {
    const table = tableOf({ optimizer: { kind: 'adagrad', initialAccumulator: 0.5 } });
    const before = read(table, [4]);
    push(table, 1, [4], [1, 2, -2]);
    push(table, 2, [4], [0, 3, 0]);
    const first = 0.1 / Math.sqrt(0.5 + 3);
    const second = 0.1 / Math.sqrt(0.5 + 3 + 3);
    const expected = [1, 2, -2].map((g, i) => before[i]! - first * g - second * [0, 3, 0][i]!);
    for (const [i, x] of read(table, [4]).entries()) expect(x).toBeCloseTo(expected[i]!, 5);
  });

  test("adam's moments are those of an Adam that sees a gradient of 0 for a row that is in no push", () => {
    fc.assert(
      fc.property(pushes, (all) => {
        const table = tableOf({ optimizer: { kind: 'adam', beta1: 0.8, beta2: 0.9 } });
        const config = { kind: 'adam' as const, beta1: 0.8, beta2: 0.9, epsilon: 1e-8 };
        const reference = createOptimizer(config, 60, []);
        const theta = new Float32Array(60);
        for (const [i, keys] of all.entries()) {
          const gradient = new Float32Array(60);
          const g = gradientsOf(keys, i);
          for (const [k, key] of keys.entries()) gradient.set(g.slice(3 * k, 3 * k + 3), 3 * key);
          const before = read(table, keys);
          push(table, i + 1, keys, g);
          const step = i + 1;
          const at = theta.slice();
          reference.apply(theta, gradient, { learningRate: 0.1, step });
          // A row moves as there, in the updates that it is in.
          for (const [k, key] of keys.entries()) {
            for (let j = 0; j < 3; j++) {
              const moved = read(table, [key])[j]! - before[3 * k + j]!;
              expect(moved).toBeCloseTo(theta[3 * key + j]! - at[3 * key + j]!, 4);
            }
          }
        }
      }),
      { numRuns: 100 },
    );
  });
});

test('initial values follow from seed, name and key, and have the moments that are asked for', () => {
  const initializer = { kind: 'normal', deviation: 0.3 };
  const [a, b] = [tableOf({ initializer }, 5000, 8), tableOf({ initializer }, 5000, 8)];
  const keys = Array.from({ length: 5000 }, (_, i) => i);
  const values = read(a, keys);
  expect(read(b, keys)).toEqual(values);
  expect(a.count).toBe(0);
  const mean = values.reduce((sum, x) => sum + x, 0) / values.length;
  const variance = values.reduce((sum, x) => sum + x * x, 0) / values.length;
  expect(Math.abs(mean)).toBeLessThan(0.01);
  expect(Math.abs(Math.sqrt(variance) - 0.3)).toBeLessThan(0.005);
  const uniform = read(tableOf({}, 5000, 8), keys);
  expect(uniform.every((x) => Math.abs(x) <= 0.05)).toBe(true);
  expect(Math.max(...uniform)).toBeGreaterThan(0.049);
});

/** What may happen to a table. */
const anything = fc.array(
  fc.oneof(
    { weight: 6, arbitrary: fc.tuple(fc.constant('push' as const), fc.nat({ max: 11 })) },
    { weight: 1, arbitrary: fc.tuple(fc.constant('undone' as const), fc.nat({ max: 11 })) },
    { weight: 2, arbitrary: fc.tuple(fc.constant('capture' as const), fc.nat({ max: 2 })) },
    { weight: 1, arbitrary: fc.tuple(fc.constant('replace' as const), fc.nat({ max: 2 })) },
    { weight: 1, arbitrary: fc.tuple(fc.constant('reset' as const), fc.nat({ max: 3 })) },
  ),
  { maxLength: 40 },
);

describe.each<[string, TableConfig['rows'], object]>([
  ['of a known size', 20, {}],
  ['of a known size that decays', 20, { weightDecay: 0.05, optimizer: { kind: 'adam' } }],
  ['that grows', 'hash', { rowsMax: 20, weightDecay: 0.05 }],
  ['that grows and forgets', 'hash', { rowsMax: 20, expireAfter: 4 }],
  ['that grows slowly', 'hash', { rowsMax: 6, admitAfter: 3, expireAfter: 4 }],
])('a table %s', (_, rows, config) => {
  test('is at a capture what it was then, whatever happens later', () => {
    fc.assert(
      fc.property(anything, (events) => {
        const table = tableOf(config, rows);
        const copies = new Map<number, Float32Array>();
        let rowStep = 0;
        for (const [what, n] of events) {
          const before = read(table, ALL);
          const stored = table.checkpoints.tensors();
          const facts = table.facts();
          const state = table.state();
          if (what === 'push' || what === 'undone') {
            const keys = [n, n + 3, n + 8];
            push(table, rowStep + 1, keys, gradientsOf(keys, rowStep), 0.1, rowStep >> 1);
            if (what === 'push') rowStep++;
            else {
              table.undo();
              expect(read(table, ALL)).toEqual(before);
              expect(table.checkpoints.tensors()).toEqual(stored);
              expect(table.facts()).toEqual(facts);
              expect(table.state()).toEqual(state);
            }
          } else if (what === 'capture') {
            table.capture(n, rowStep);
            copies.set(n, before);
          } else if (what === 'replace' && copies.has(n)) {
            table.replace(n, ++rowStep);
            const now = read(table, ALL);
            for (const [i, x] of copies.get(n)!.entries()) expect(now[i]).toBeCloseTo(x, 6);
          } else if (what === 'reset') {
            table.reset(n);
            table.resetOptimizer(rowStep);
          }
          for (const [id, copy] of copies) {
            const then = read(table, ALL, id);
            for (const [i, x] of copy.entries()) expect(then[i]).toBeCloseTo(x, 6);
          }
        }
        expect(table.count).toBeLessThanOrEqual(20);
      }),
      { numRuns: 150 },
    );
  });
});

const CONFIGS: [string, object][] = [
  ['adagrad', { word: { rows: 40, width: 2 } }],
  [
    'adam with decay, and a table that grows',
    {
      word: { rows: 40, width: 2, optimizer: { kind: 'adam' }, weightDecay: 0.01 },
      more: { rows: 'hash', width: 3, admitAfter: 2, expireAfter: 12, maxNorm: 1.5 },
    },
  ],
  [
    'rows that began with values of a file, frozen or at a smaller rate',
    {
      word: { rows: 40, width: 2, pretrainedRate: 0.1 },
      more: { rows: 'hash', width: 3, expireAfter: 12, pretrainedRate: 0 },
    },
  ],
];
const COURSE = { evaluateEverySteps: 4, testAtEnd: false, earlyStopping: { patience: 3 } };
const rowsOf = (run: Run) => {
  const keys = run.tables!.shapes.map(() => Uint32Array.from({ length: 40 }, (_, i) => i));
  return Buffer.from(run.tables!.read(keys, 'f32', null)).toString('hex');
};

describe.each(CONFIGS)('a run with tables: %s', (_, tables) => {
  const config = { ...COURSE, stepsMax: 25, tables };

  test('interrupted and resumed = uninterrupted, bit for bit', () => {
    const whole = createRun(config);
    new TableWorker(whole, problem).train();
    expect(whole.step).toBeGreaterThan(8);
    for (let cut = 1; cut < whole.step; cut += 4) {
      let run = createRun(config);
      const first = new TableWorker(run, problem, 'first/1');
      first.train(() => run.step >= cut);
      const state = JSON.parse(JSON.stringify(run.state(0)));
      run = Run.restore(state, run.tensors());
      new TableWorker(run, problem, 'second/2').train();
      expect(run.step).toBe(whole.step);
      expect(rowsOf(run), `cut at ${cut}`).toBe(rowsOf(whole));
      expect(parametersOf(run)).toEqual(parametersOf(whole));
    }
  });

  test('its standby is equal, to the bit', async () => {
    const run = createRun(config);
    const worker = new TableWorker(run, problem);
    worker.train(() => run.step >= 6);
    const { replication } = createReplication({ runs: () => [run] });
    const link = new StandbyLink(replication, { mode: 'sync', lagMax: 0 });
    await new Promise<void>((resolve) => setImmediate(resolve));
    link.arrive();
    const replica = link.replicas.runs.get('r')!;
    expectEqual(replica, run);
    worker.train();
    await new Promise<void>((resolve) => setImmediate(resolve));
    link.arrive();
    expectEqual(replica, run);
    expect(rowsOf(replica)).toBe(rowsOf(run));
  });

  test('a fork begins with its rows, from any kind of checkpoint', () => {
    const run = createRun(config);
    new TableWorker(run, problem).train(() => run.step >= 10 && run.best !== null);
    for (const tensors of [run.tensors(), run.finalTensors()]) {
      const fork = Run.fork({ ...run.options, id: 'f' }, run.state(0), tensors);
      const expected = Buffer.from(rowsOf(run), 'hex');
      const got = Buffer.from(rowsOf(fork), 'hex');
      for (let i = 0; i + 4 <= got.length; i += 4) {
        expect(got.readFloatLE(i)).toBeCloseTo(expected.readFloatLE(i), 6);
      }
    }
  });
});

test('a table that is too large says how many shards hold it, if a server may have so many', () => {
  expect(() => tableOf({}, 2 ** 28, 8)).toThrow('start the server with --shards 3');
  const largest = () => tableOf({}, 2 ** 31, 4_096);
  expect(largest).toThrow('of a table: use fewer or narrower rows');
});

test('keys cannot be chosen so that a growing table looks for all of them at one place', () => {
  const index = createRowIndex(tableConfig({ rowsMax: 4_096 }, 'hash'), ALL_ROWS);
  // They lie close together by the product that a map without a secret of its own would use.
  const near = (key: number) => {
    const h = Math.imul(key, 0x9e3779b1);
    return ((h ^ (h >>> 15)) & 8_191) < 32;
  };
  const keys: number[] = [];
  for (let key = 0; keys.length < 4_096; key++) if (near(key)) keys.push(key);
  expect(keys.map((key) => index.insert(key))).toEqual(keys.map((_, slot) => slot));
  // To remove a key, those behind it are looked at.
  const looks = vi.spyOn(Math, 'imul');
  for (const key of keys.slice(0, 10)) index.remove(key);
  expect(looks.mock.calls.length).toBeLessThan(10_000);
  looks.mockRestore();
  expect(keys.map((key) => index.find(key))).toEqual(keys.map((_, i) => (i < 10 ? -1 : i)));
});

describe('a fork with other settings', () => {
  const word = { rows: 40, width: 2, optimizer: { kind: 'adam' as const } };
  const forked = (before: object, after: object, of: 'last' | 'final') => {
    const configOf = (table: object) =>
      resolveConfig(COURSE, { tables: { word: { ...word, ...table } } });
    const run = createRun({ ...COURSE, stepsMax: 25, tables: { word: { ...word, ...before } } });
    new TableWorker(run, problem).train(() => run.step >= 10 && run.best !== null);
    const tensors = of === 'last' ? run.tensors() : run.finalTensors();
    const options = { ...run.options, id: 'f', config: configOf({ ...before, ...after }) };
    return { run, fork: Run.fork(options, run.state(0), tensors) };
  };
  const floatsOf = (run: Run) =>
    new Float32Array(new Uint8Array(Buffer.from(rowsOf(run), 'hex')).buffer);

  test.each([
    ['begins to decay', {}, { weightDecay: 0.5 }],
    ['decays no more', { weightDecay: 0.5 }, { weightDecay: 0 }],
    ['has another optimizer', {}, { optimizer: { kind: 'adagrad' } }],
    ['grows', {}, { rows: 'hash' }],
  ] as const)('begins with the rows of the other run where it %s', (_, before, after) => {
    for (const of of ['last', 'final'] as const) {
      const { run, fork } = forked(before, after, of);
      const expected = floatsOf(run);
      for (const [i, x] of floatsOf(fork).entries()) expect(x).toBeCloseTo(expected[i]!, 6);
      expect(fork.reason).toBe('waiting for a worker');
      // Rows that a push changes for the first time go on from there, too.
      const worker = new TableWorker(fork, problem);
      worker.train(() => fork.step >= 3);
      const moved = floatsOf(fork);
      expect(moved.every(Number.isFinite)).toBe(true);
      const restored = Run.restore(JSON.parse(JSON.stringify(fork.state(0))), fork.tensors());
      expect(floatsOf(restored)).toEqual(moved);
    }
  });

  test.each([
    ['width', { width: 3 }, 'tables.word.width is 3, and 2'],
    ['rows', { rows: 30 }, 'tables.word.rows is 30, and 40'],
    ['initializer', { initializer: { kind: 'zeros' } }, 'rows that no push has changed'],
  ] as const)('is refused where it could not have them: %s', (_, after, words) => {
    for (const of of ['last', 'final'] as const) {
      expect(() => forked({}, after, of)).toThrow(words);
    }
  });

  test('has fresh rows in a table of another name, whatever it is', () => {
    const { run } = forked({}, {}, 'last');
    const tables = { constructor: { ...word, width: 5 } };
    const config = resolveConfig(COURSE, { tables });
    const fork = Run.fork({ ...run.options, id: 'f', config }, run.state(0), run.tensors());
    const fresh = new Run({ ...run.options, id: 'f', config });
    expect(rowsOf(fork)).toBe(rowsOf(fresh));
  });
});

describe('rows that began with the values of a file', () => {
  const given = Float32Array.from({ length: 30 }, (_, i) => i / 8);
  const begun = (config: object, rows: TableConfig['rows'] = 20) => {
    const table = tableOf({ optimizer: { kind: 'sgd' }, ...config }, rows);
    const keys = Uint32Array.from({ length: 10 }, (_, i) => i);
    table.stage({ keys, values: new Uint8Array(given.buffer) }, 'f32');
    table.begin(1);
    table.resetOptimizer(1);
    return table;
  };

  test('move by their own factor of the learning rate; the others by the whole', () => {
    for (const [pretrainedRate, moved] of [
      [1, 0.1],
      [0.5, 0.05],
      [0, 0],
    ] as const) {
      const table = begun({ pretrainedRate });
      expect([table.count, table.facts().pretrained]).toEqual([10, 10]);
      const before = read(table, [3, 15]);
      expect(before.subarray(0, 3)).toEqual(given.subarray(9, 12));
      push(table, 2, [3, 15], [1, 1, 1, 1, 1, 1]);
      const after = read(table, [3, 15]);
      for (let i = 0; i < 3; i++) {
        expect(before[i]! - after[i]!).toBeCloseTo(moved, 6);
        expect(before[3 + i]! - after[3 + i]!).toBeCloseTo(0.1, 6);
      }
    }
  });

  test('are never forgotten by a table that grows', () => {
    const table = begun({ expireAfter: 4, rowsMax: 12 }, 'hash');
    for (let step = 2; step <= 20; step++) push(table, step, [15], [1, 1, 1]);
    push(table, 21, [16], [1, 1, 1]);
    expect(read(table, ALL.slice(0, 10))).toEqual(given);
    expect(table.facts().pretrained).toBe(10);
    for (let step = 22; step <= 40; step++) push(table, step, [16], [1, 1, 1]);
    expect(table.count).toBe(11);
  });

  test('are the only ones with that factor: the row that takes the place of a removed one is no row of the file', () => {
    const table = tableOf({ optimizer: { kind: 'sgd' }, pretrainedRate: 0, rowsMax: 12 }, 'hash');
    table.capture(1, 0);
    table.stage({ keys: Uint32Array.of(3), values: new Uint8Array(given.buffer, 0, 12) }, 'f32');
    table.begin(1);
    expect(table.facts().pretrained).toBe(1);
    // As it was before the file was read.
    table.replace(1, 2);
    expect(table.facts()).toMatchObject({ rows: 0, pretrained: 0 });
    const before = read(table, [7]);
    push(table, 3, [7], [1, 1, 1]);
    for (const [i, x] of read(table, [7]).entries()) expect(before[i]! - x).toBeCloseTo(0.1, 6);
  });

  test('are as before in a fork from any kind of checkpoint, and stay frozen there', () => {
    const tables = { word: { rows: 40, width: 2, pretrainedRate: 0 } };
    const run = createRun({ ...COURSE, stepsMax: 25, tables });
    new TableWorker(run, problem).train(() => run.step >= 10 && run.best !== null);
    const firstOf = (from: Run) => {
      const keys = Uint32Array.from({ length: 10 }, (_, i) => 2 * i);
      return Buffer.from(from.tables!.read([keys], 'f32', null));
    };
    const before = firstOf(run);
    for (const tensors of [run.tensors(), run.finalTensors()]) {
      const fork = Run.fork({ ...run.options, id: 'f' }, run.state(0), tensors);
      new TableWorker(fork, problem).train(() => fork.step >= 5);
      expect(firstOf(fork)).toEqual(before);
      expect(fork.tables!.facts()).toMatchObject([{ pretrained: 10 }]);
    }
  });

  test('begin anew with the file where fresh parameters are asked for', () => {
    const table = begun({});
    table.reset(8);
    expect([table.count, table.facts().pretrained]).toEqual([0, 0]);
    expect(read(table, [3])).not.toEqual(given.subarray(9, 12));
  });
});

describe('a push with rows', () => {
  const config = {
    stepsMax: 200,
    evaluateEverySteps: 50,
    tables: { word: { rows: 40, width: 2 } },
  };

  test('trains them', () => {
    const run = createRun({ ...config, earlyStopping: { enabled: false } });
    const worker = new TableWorker(run, problem);
    worker.train(() => run.step >= 150);
    const values = new Float32Array(80);
    const keys = Uint32Array.from({ length: 40 }, (_, i) => i);
    const bytes = run.tables!.read([keys], 'f32', null);
    values.set(new Float32Array(bytes.buffer, 4 + 160, 80));
    const error = values.reduce((sum, x, i) => sum + (x - aimOf(i >> 1, i % 2)) ** 2, 0) / 80;
    expect(error).toBeLessThan(0.3);
  });

  test('that is sent again is not applied again, neither are its rows', () => {
    const run = createRun(config);
    const [first, again] = [new TableWorker(run, problem), new TableWorker(run, problem)];
    first.train(() => run.step === 0 && first.holds > 0);
    first.push();
    const before = rowsOf(run);
    again.pull();
    expect(again.push()?.outcome).toBe('duplicate');
    expect(rowsOf(run)).toBe(before);
    expect(run.tables!.rowStep).toBe(1);
  });

  test('is rejected when one of its rows has changed too often since it was read', () => {
    const run = createRun({
      ...config,
      minibatchSize: 1,
      consistency: { stalenessMax: 2, correction: 'none' },
    });
    const slow = new TableWorker(run, problem, 'slow/1');
    slow.pull();
    slow.pull();
    expect(slow.holds).toBeGreaterThan(0);
    const fast = new TableWorker(run, problem, 'fast/1');
    for (let i = 0; i < 3; i++) {
      fast.pull();
      expect(fast.push()?.outcome).toBe('applied');
    }
    expect(slow.push()).toMatchObject({ outcome: 'rejected', code: 'DP_PUSH_STALE' });
  });

  test.each([
    ['keys that fall', [2, 5, 4], 'strictly rising'],
    ['a key outside of the table', [1, 40], 'below 40'],
    ['a count that lies', [9, 1], 'are left'],
  ])('is rejected for %s, and nothing of it is applied', (_, words, said) => {
    const run = createRun(config);
    class Wrong extends TableWorker {
      protected override dress(...given: Parameters<TableWorker['dress']>) {
        const [told, payload] = given;
        const rows = new Uint8Array(Uint32Array.from([...words, 0, 0, 0, 0]).buffer);
        const joined = Uint8Array.from([...payload, ...rows]);
        const header = { step: 0, encoding: 'f32' as const, bytes: rows.length, wanted: 0 };
        return { push: { ...told, rows: header }, payload: joined };
      }
    }
    const worker = new Wrong(run, problem);
    worker.pull();
    worker.pull();
    const before = parametersOf(run);
    const answer = worker.push();
    expect(answer).toMatchObject({ outcome: 'rejected', code: 'DP_ROWS_INVALID' });
    expect(answer!.message).toContain(said);
    expect(parametersOf(run)).toEqual(before);
  });

  test('is refused by a run without tables', () => {
    const run = createRun({});
    class Odd extends VirtualWorker {
      protected override dress(told: Push, payload: Uint8Array) {
        const rows = { step: 0, encoding: 'f32' as const, bytes: 0, wanted: 0 };
        return { push: { ...told, rows }, payload };
      }
    }
    const worker = new Odd(run, problem);
    worker.pull();
    worker.pull();
    expect(worker.push()).toMatchObject({ outcome: 'rejected', code: 'DP_ROWS_INVALID' });
    expect(run.step).toBe(0);
  });
});

describe('a table that grows', () => {
  test('admits a key after so many pushes that have it, and counts what was dropped', () => {
    const table = tableOf({ admitAfter: 3, rowsMax: 4 }, 'hash');
    const before = read(table, [9]);
    for (let i = 1; i <= 2; i++) push(table, i, [9], [1, 1, 1]);
    expect(read(table, [9])).toEqual(before);
    expect([table.count, table.dropped]).toEqual([0, 2]);
    push(table, 3, [9], [1, 1, 1]);
    expect(read(table, [9])).not.toEqual(before);
    expect([table.count, table.dropped]).toEqual([1, 2]);
  });

  test('has at most rowsMax rows: other keys keep their initial values, until rows expire', () => {
    const table = tableOf({ rowsMax: 2, expireAfter: 4 }, 'hash');
    const before = read(table, [3]);
    push(table, 1, [1, 2, 3], [1, 1, 1, 1, 1, 1, 1, 1, 1]);
    expect(read(table, [3])).toEqual(before);
    expect([table.count, table.dropped]).toEqual([2, 1]);
    for (let i = 2; i <= 7; i++) push(table, i, [1], [1, 1, 1]);
    push(table, 8, [3], [1, 1, 1]);
    expect(read(table, [3])).not.toEqual(before);
    expect(read(table, [2])).toEqual(read(tableOf({}, 'hash'), [2]));
    expect(table.count).toBe(2);
  });

  test('keeps the keys that wait within their limit', () => {
    const table = tableOf({ admitAfter: 2, rowsMax: 4 }, 'hash', 1);
    const some = (from: number) =>
      Array.from({ length: LIMITS.rowsWaitingMax }, (_, i) => from + i);
    push(table, 1, some(0), new Array(LIMITS.rowsWaitingMax).fill(0));
    expect(table.state().index.waiting).toHaveLength(LIMITS.rowsWaitingMax);
    push(table, 2, [2 ** 30], [0]);
    expect(table.state().index.waiting).toHaveLength(LIMITS.rowsWaitingMax);
    // The oldest was forgotten, the next one was not.
    push(table, 3, [1], [0]);
    expect(table.count).toBe(1);
    push(table, 4, [0], [0]);
    expect(table.count).toBe(1);
  });

  test('forgets what an update that is undone has seen, admitted and pushed out of the line', () => {
    const table = tableOf({ admitAfter: 2, rowsMax: 4 }, 'hash', 1);
    const all = Array.from({ length: LIMITS.rowsWaitingMax }, (_, i) => i);
    push(table, 1, all, new Array(all.length).fill(0));
    const before = table.state();
    // Two are new, so the two oldest would go; 5 has been seen before, and is admitted.
    push(table, 2, [5, 2 ** 30, 2 ** 30 + 1], [0, 0, 0]);
    table.undo();
    expect(table.state()).toEqual(before);
    expect(table.count).toBe(0);
    push(table, 2, [0], [0]);
    expect(table.count).toBe(1);
  });

  test('that several shards had goes on with as many keys that wait as one may have', () => {
    const table = tableOf({ admitAfter: 2, rowsMax: 4 }, 'hash', 1);
    const waiting = Array.from({ length: LIMITS.rowsWaitingMax + 9 }, (_, i) => [i, 1] as const);
    table.restoreState({ ...table.state(), index: { waiting, dropped: waiting.length } });
    expect(table.state().index.waiting).toEqual(waiting.slice(9));
  });
});

test('a table that is too large for one memory is refused, one that just fits is not', () => {
  const rows = Math.floor((2 ** 32 - 2 ** 20) / (4 * 60 + 8));
  expect(() => tableOf({ optimizer: { kind: 'sgd' } }, rows, 60)).not.toThrow();
  expect(() => tableOf({ optimizer: { kind: 'sgd' } }, rows + 2 ** 16, 60)).toThrow('4.0 GiB');
});

test('the keys of a minibatch are in its table', () => {
  expect(keysOf({ id: 1, epoch: 0, start: 4, count: 4, part: 'train' }, 40).at(-1)).toBeLessThan(
    40,
  );
});
