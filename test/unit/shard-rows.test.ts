import { describe, expect, test } from 'vitest';
import { Run } from '../../server/core/run.ts';
import { checkShardCommand, type ShardCommand } from '../../server/core/shard-command.ts';
import { rowsElsewhere } from '../../server/core/tables/row-parts.ts';
import { abilitiesOf, lackOf } from '../../server/fleet/suitability.ts';
import { type PartialConfig, resolveConfig } from '../../shared/config.ts';
import { ticketProtocols } from '../../shared/join.ts';
import { shardOfRow } from '../../shared/row-shards.ts';
import { encodeRows } from '../../shared/rows.ts';
import { ROW_SHARDS_HEADER, TABLES_HEADER } from '../../shared/tables.ts';
import { cutForShards, ShardedRun } from '../support/shards.ts';

/** A run with tables on several shards is the run on one, whatever happens to it. */

const WORD = { rows: 40, width: 2 };
const GROWING = {
  ...{ rows: 'hash' as const, width: 3, optimizer: { kind: 'adam' as const }, weightDecay: 0.01 },
  ...{ admitAfter: 2, expireAfter: 12, maxNorm: 1.5 },
};
const COURSE: PartialConfig = {
  ...{ evaluateEverySteps: 4, epochsMax: 2, averaging: { kind: 'none' } },
  earlyStopping: { enabled: false },
};
const TABLES: PartialConfig = { ...COURSE, tables: { word: WORD, more: GROWING } };

const configs: [string, PartialConfig, workers?: number][] = [
  ['adagrad', { ...COURSE, tables: { word: WORD } }],
  ['adam, decay, and a table that grows', TABLES],
  [
    'restores the best',
    {
      ...TABLES,
      earlyStopping: { enabled: true, patience: 1 },
      evaluateEverySteps: 2,
      epochsMax: 20,
    },
  ],
  [
    'trains anew to the step that was best',
    {
      ...{ ...TABLES, evaluateEverySteps: 2, epochsMax: 20 },
      earlyStopping: { enabled: true, patience: 1, afterStop: 'retrain' },
    },
  ],
  [
    'damped by the staleness of each row, in bf16 and int8',
    {
      ...{ ...TABLES, consistency: { damping: 'inverse', correction: 'none' } },
      compression: { push: { kind: 'bf16' }, pull: 'bf16' },
    },
    4,
  ],
  ['synchronous', { ...TABLES, consistency: { mode: 'synchronous' } }, 4],
];

describe('rows on several shards are those on one, to the bit', () => {
  test.each(configs)('%s', (_, config, workers) => {
    const one = new ShardedRun(1, config, undefined, workers);
    one.train();
    expect(one.run.phase).toBe('finished');
    expect(one.run.tables!.rowStep).toBeGreaterThan(4);
    for (const count of [2, 4]) {
      const several = new ShardedRun(count, config, undefined, workers);
      several.train();
      expect(several.run.step).toBe(one.run.step);
      expect(several.rows()).toEqual(one.rows());
      expect(several.parameters).toEqual(one.parameters);
      const losses = (run: ShardedRun) => run.run.metrics().evaluations.map(({ loss }) => loss);
      expect(losses(several)).toEqual(losses(one));
      for (const shard of several.shards) shard.look(1);
      expect(tallies(several)).toEqual(tallies(one));
      expect(kept(several)).toEqual(kept(one));
      const session = '0123456789abcdef';
      const kinds = new Map(several.told.map((command) => [command.kind, command]));
      for (const command of kinds.values()) {
        checkShardCommand(
          'session' in command ? ({ ...command, session } as ShardCommand) : command,
        );
      }
    }
  });
});

/** Facts of tables that a run keeps, and what is counted since the server has it. */
const kept = ({ run }: ShardedRun) =>
  run
    .detail(0)
    .tables!.map(
      ({ updates: _, staleness: __, admitted: ___, forgotten: ____, ...facts }) => facts,
    );
const tallies = ({ run }: ShardedRun) =>
  run
    .detail(0)
    .tables!.map(({ updates, admitted, forgotten }) => ({ updates, admitted, forgotten }));

describe('a checkpoint of rows', () => {
  const whole = new ShardedRun(1, TABLES);
  whole.train();
  const steps = whole.run.step;

  test.each([
    [1, 2],
    [2, 1],
    [2, 4],
    [4, 4],
    [1, 4],
    [4, 1],
  ])('of %i shards goes on with %i', async (before, after) => {
    for (const cut of [2, steps - 7]) {
      const first = new ShardedRun(before, TABLES);
      first.train(() => first.run.step >= cut);
      const saved = await cutForShards(first.save(), after);
      const second = new ShardedRun(after, TABLES, saved);
      expect(second.rows()).toEqual(first.rows());
      second.train();
      expect(second.run.step).toBe(steps);
      expect(second.rows(), `cut at ${cut}`).toEqual(whole.rows());
      for (const shard of second.shards) shard.look(1);
      expect(kept(second)).toEqual(kept(whole));
    }
  });

  test('is what a fork begins with', () => {
    const first = new ShardedRun(4, TABLES);
    first.train(() => first.run.step >= 10 && first.run.best !== null);
    for (const kind of ['last', 'final'] as const) {
      const { state, file } = first.save(kind);
      const fork = Run.fork({ ...first.run.options, id: 'f' }, state, file);
      const keys = fork.tables!.shapes.map(() => Uint32Array.from({ length: 40 }, (_, i) => i));
      const bytes = fork.tables!.read(keys, 'f32', null);
      const expected = encodeRows(fork.tables!.shapes, first.rows(), 'f32');
      const floats = (all: Uint8Array) => new Float32Array(all.slice().buffer);
      for (const [i, x] of floats(bytes).entries()) {
        expect(x).toBeCloseTo(floats(expected)[i]!, 5);
      }
    }
  });

  test('that does not fit on these shards is refused, and the answer says what to do', async () => {
    const config: PartialConfig = {
      ...COURSE,
      tables: { more: { ...GROWING, rowsMax: 40, admitAfter: 1, expireAfter: null } },
    };
    const first = new ShardedRun(1, config);
    first.train(() => first.run.step >= 20);
    const saved = first.save();
    // All rows are of one shard of two.
    const keys = saved.file.find(({ name }) => name === '@table.more.keys')!.values;
    const own = Array.from({ length: 200 }, (_, key) => key).filter(
      (key) => shardOfRow(key, 2) === 1,
    );
    for (let i = 0; i < keys.length / 2; i++) keys.set([0, own[i]!], 2 * i);
    expect(keys.length / 2).toBeGreaterThan(30);
    saved.state.options.config.tables!.more!.rowsMax = 10;
    await expect(cutForShards(saved, 2)).rejects.toMatchObject({
      code: 'DP_LAYOUT_INVALID',
      message: expect.stringContaining('another number of shards'),
    });
  });
});

describe('a checkpoint with what no row can have is damaged, for one server and before shards are told', () => {
  test.each([
    ['a key that the table does not have', 'keys', [0, 40]],
    ['a key that is not whole', 'keys', [0, 0.5]],
    ['a key below 0', 'keys', [0, -1]],
    ['the same in the best rows', 'best.keys', [0, 40]],
    ['the same where they had initial values', 'best.initial', [0, 40]],
    ['a row that was changed later than now', 'changed', [1e6, 0, 0]],
    ['a row that was never changed', 'changed', [0, 0, 0]],
  ])('%s', async (_, field, values) => {
    const config = { ...COURSE, evaluateEverySteps: 3, tables: { word: WORD } };
    const first = new ShardedRun(1, config);
    first.train(() => first.run.step >= 5);
    const saved = first.save();
    const tensor = saved.file.find(({ name }) => name === `@table.word.${field}`)!;
    if (tensor.values.length > 0) tensor.values.set(values);
    else Object.assign(tensor, { values: Float32Array.from(values) });
    const damage = {
      code: 'DP_CHECKPOINT_CORRUPT',
      message: expect.stringContaining("rows of table 'word' in a checkpoint are not valid"),
    };
    expect(() => new ShardedRun(1, config, saved)).toThrow(expect.objectContaining(damage));
    await expect(cutForShards(saved, 4)).rejects.toMatchObject(damage);
  });
});

describe('what is decided about a push is decided for its rows on all shards', () => {
  const config: PartialConfig = { ...COURSE, tables: { word: WORD } };

  test('a push that is sent again is applied by no shard', () => {
    const run = new ShardedRun(4, config);
    run.train(() => run.run.step === 3);
    const before = run.rows();
    expect(run.push(new Float32Array(46_101).fill(1), 1, 3).outcome).toBe('duplicate');
    expect(run.rows()).toEqual(before);
  });

  test('a part that is shorter than it says keeps all rows out', () => {
    const run = new ShardedRun(4, config);
    run.train(() => run.run.step === 3);
    const before = run.rows();
    const rejected = run.act(
      () => {},
      (part) => part.subarray(0, part.length - 4),
    );
    expect(rejected).toMatchObject({ outcome: 'rejected' });
    expect(run.rows()).toEqual(before);
    expect(run.act()).toMatchObject({ outcome: 'applied' });
  });

  test('a gradient whose square overflows is rejected where its rows keep squares, on whichever shard they are', () => {
    const hugeRow = (part: Uint8Array) => withLastValue(part, 1e25);
    const kept = new ShardedRun(4, { ...config, optimizer: { kind: 'sgd' } });
    kept.train(() => kept.run.step === 3);
    const before = kept.rows();
    expect(kept.act(() => {}, hugeRow)).toMatchObject({ code: 'DP_GRADIENT_NOT_FINITE' });
    expect(kept.rows()).toEqual(before);
    expect(kept.act()).toMatchObject({ outcome: 'applied' });
    // The rows have no squares, and those of the parameters are small.
    const tables = { word: { ...WORD, optimizer: { kind: 'sgd' as const } } };
    const free = new ShardedRun(4, { ...COURSE, tables, optimizer: { kind: 'adam' } });
    free.train(() => free.run.step === 3);
    expect(free.act(() => {}, hugeRow)).toMatchObject({ outcome: 'applied' });
    const largest = Math.max(...free.rows()[0]!.values.map(Math.abs));
    expect(largest).toBeGreaterThan(1e23);
  });

  /** A part of a push with another last number of its rows, if it has rows. */
  function withLastValue(part: Uint8Array, value: number): Uint8Array {
    const bytes = part.slice();
    const view = new DataView(bytes.buffer);
    // The keys that it wants are at its end, behind their count.
    for (let n = 1; n <= 40; n++) {
      const wanted = bytes.length - 4 - 4 * n;
      if (view.getUint32(wanted, true) !== n) continue;
      view.setFloat32(wanted - 4, value, true);
      break;
    }
    return bytes;
  }

  test('divergence takes the rows of all shards back', () => {
    const run = new ShardedRun(4, { ...config, learningRate: 1.5, evaluateEverySteps: 1 });
    const rowsAt = new Map<number, unknown>();
    run.train(() => {
      if (!rowsAt.has(run.run.step) && run.run.step > 0) rowsAt.set(run.run.step, run.rows());
      return run.run.step === 2 && run.run.best !== null;
    });
    const overflow = (gradient: Float32Array) => {
      gradient.fill(0);
      gradient[20_000] = 3e38;
    };
    // It may have to evaluate first.
    for (let i = 0; i < 5 && run.run.summary(0).rollbacks.length === 0; i++) run.act(overflow);
    const [rollback] = run.run.summary(0).rollbacks;
    expect(rollback?.to).toBeGreaterThan(0);
    expect(run.rows()).toEqual(rowsAt.get(rollback!.to!));
    run.train(() => run.run.step === 6);
    expect(run.run.phase).toBe('training');
  });

  /** A worker that was asked for initial parameters sends rows with all keys. */
  function beginning(run: ShardedRun, worker = 'w/1') {
    const keys = Uint32Array.from({ length: 40 }, (_, i) => i);
    const asked = { call: 'assign', worker, ahead: 2, now: 0 } as const;
    const assignment = run.run.call(asked);
    const { grant } = assignment as Extract<typeof assignment, { kind: 'initialise' }>;
    const send = (values: Float32Array) =>
      run.run.call(
        { call: 'initialRows', worker, grant },
        encodeRows(run.run.tables!.shapes, [{ keys, values }], 'f32'),
      );
    return { keys, send };
  }
  const values = Float32Array.from({ length: 80 }, (_, i) => i / 8);

  test('initial rows of a worker go to their shards, and are refused whole if one is not finite', () => {
    const run = new ShardedRun(4, config, undefined, 2);
    const before = run.rows();
    const { send: sendBad } = beginning(run, 'w/2');
    expect(sendBad(values)).toBe(true);
    expect(() => sendBad(values.with(33, Number.NaN))).toThrow(
      "table 'word' hold NaN in the row of id 16",
    );
    // None that came before it stays, and what comes behind it is not taken.
    expect(run.rows()).toEqual(before);
    expect(sendBad(values)).toBe(false);
    const { keys, send } = beginning(run);
    expect(send(values)).toBe(true);
    expect(run.rows()).toEqual([{ keys, values }]);
    run.train();
    expect(run.run.phase).toBe('finished');
    for (const shard of run.shards) shard.look(1);
    expect(run.run.detail(0).tables).toMatchObject([{ rows: 40, pretrained: 40 }]);
  });

  test('initial rows that do not fit on some shard fail the run, and no shard is told of them', () => {
    const tables = { word: { rows: 'hash' as const, width: 2, rowsMax: 4 } };
    const run = new ShardedRun(4, { ...COURSE, tables });
    const { send } = beginning(run);
    expect(() => send(values)).toThrow('set tables.word.rowsMax higher');
    expect(run.told.some(({ kind }) => kind === 'beginRows')).toBe(false);
    expect(run.run.phase).toBe('failed');
    expect(run.run.reason).toContain('set tables.word.rowsMax higher');
  });

  test('a worker that looks for all rows on the server gets no such run; a page says by a subprotocol what it knows', () => {
    const whole = { id: 'r', config: resolveConfig(config) };
    const page = (...abilities: string[]) =>
      lackOf(
        abilitiesOf({ 'sec-websocket-protocol': ticketProtocols('t', abilities).join(', ') }),
        whole,
      )?.code;
    expect(page()).toBe('DP_PROTOCOL_VERSION');
    expect(page(TABLES_HEADER)).toBeUndefined();
    const { run } = new ShardedRun(2, config);
    const headers = { [TABLES_HEADER]: 'yes' };
    expect(lackOf(abilitiesOf(headers), run)).toMatchObject({
      code: 'DP_PROTOCOL_VERSION',
      message: expect.stringContaining('a server without shards'),
    });
    expect(lackOf(abilitiesOf({ ...headers, [ROW_SHARDS_HEADER]: 'yes' }), run)).toBeNull();
  });
});

test('a row is never staler than what is said of it, whatever its shard has not been told of', () => {
  const rows = { step: 7, encoding: 'f32' as const, bytes: 4, wanted: 0 };
  const landed = { step: 7, rowStep: 9, staleness: 1, squares: 4, problem: null };
  expect(rowsElsewhere([landed], rows, 9).staleness).toBe(1);
  // One more update was made since: it may have changed any row.
  expect(rowsElsewhere([landed], rows, 10).staleness).toBe(3);
  expect(rowsElsewhere([landed, { ...landed, problem: 'bad' }], rows, 9).problem).toBe('bad');
  expect(rowsElsewhere([{ ...landed, step: 8 }], rows, 9).problem).toContain('one row step');
  expect(rowsElsewhere([landed], undefined, 9).problem).toContain('has no rows');
});
