import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { RowTable } from '../../server/core/tables/row-table.ts';
import { createRunTables } from '../../server/core/tables/run-tables.ts';
import { resolveConfig } from '../../shared/config.ts';
import { LIMITS } from '../../shared/limits.ts';
import { random } from '../../shared/random.ts';
import {
  cutKeys,
  cutRows,
  keyOfPlace,
  mergeRows,
  placeOfRow,
  roomOfShare,
  rowsOfShare,
  shardOfRow,
} from '../../shared/row-shards.ts';
import { encodeKeys } from '../../shared/rows.ts';

const SHARDS = [1, 2, 3, 4, 7, LIMITS.shardCountMax];
const keysOf = fc.uniqueArray(fc.nat({ max: LIMITS.rowIdsMax - 1 }), { maxLength: 200 });
const rising = (keys: readonly number[]) => Uint32Array.from(keys).sort();

describe.each(SHARDS)('rows of a table on %i shards', (count) => {
  test('a key has one shard, and one place there that is no other key’s', () => {
    fc.assert(
      fc.property(fc.nat({ max: LIMITS.rowIdsMax - 1 }), (key) => {
        const index = shardOfRow(key, count);
        expect(index).toBeGreaterThanOrEqual(0);
        expect(index).toBeLessThan(count);
        const share = { index, count };
        expect(keyOfPlace(placeOfRow(key, share), share)).toBe(key);
      }),
    );
    const rows = 5 * count + 1;
    const places = new Set<string>();
    for (let key = 0; key < rows; key++) {
      const share = { index: shardOfRow(key, count), count };
      const place = placeOfRow(key, share);
      expect(place).toBeLessThan(rowsOfShare(rows, share));
      places.add(`${share.index} ${place}`);
    }
    expect(places.size).toBe(rows);
  });

  test('keys that are cut have their order, and rows that are put together are what was cut', () => {
    fc.assert(
      fc.property(keysOf, (all) => {
        const keys = rising(all);
        const values = Float32Array.from({ length: 3 * keys.length }, (_, i) => Math.sin(i));
        const parts = cutRows({ keys, values }, 3, count);
        expect(parts.map((part) => part.keys)).toEqual(cutKeys(keys, count));
        for (const [index, part] of parts.entries()) {
          expect(rising([...part.keys])).toEqual(part.keys);
          for (const key of part.keys) expect(shardOfRow(key, count)).toBe(index);
        }
        expect(mergeRows(parts, 3)).toEqual({ keys, values });
      }),
      { numRuns: 30 },
    );
  });
});

test.each([1, 2, 3, 4, 8])(
  'every %i-th key, and neighbours, are spread over four shards',
  (stride) => {
    const counts = [0, 0, 0, 0];
    for (let i = 0; i < 4_000; i++) counts[shardOfRow(i * stride, 4)]!++;
    for (const each of counts) expect(Math.abs(each - 1_000)).toBeLessThan(120);
  },
);

test('the shard with the hottest rows of Zipf’s law has little more than its part', () => {
  const ids = 100_000;
  // As a vocabulary that is sorted by frequency has them, and in any order.
  const shuffled = random(5, 1);
  const others = Array.from({ length: ids }, (_, i) => ({ i, at: shuffled.bits() }));
  const order = others.sort((a, b) => a.at - b.at).map(({ i }) => i);
  for (const idOf of [(rank: number) => rank, (rank: number) => order[rank]!]) {
    const loads = [0, 0, 0, 0];
    for (let rank = 0; rank < ids; rank++) loads[shardOfRow(idOf(rank), 4)]! += 1 / (rank + 1);
    const sum = loads.reduce((a, b) => a + b);
    expect(Math.max(...loads) / (sum / 4)).toBeLessThan(1.35);
  }
});

test('a growing table that was full on one shard fits on several, and each of them admits its part alone', () => {
  for (const count of [2, 4, 64]) {
    const draw = random(9, 2);
    const rowsMax = 20_000;
    const counts = new Array<number>(count).fill(0);
    for (let i = 0; i < rowsMax; i++) counts[shardOfRow(draw.below(2 ** 31), count)]!++;
    const room = roomOfShare(rowsMax, { index: 0, count });
    expect(Math.max(...counts)).toBeLessThanOrEqual(room);
    expect(room).toBeLessThan(1.5 * (rowsMax / count) + 10);
  }
  expect(roomOfShare(20, { index: 0, count: 1 })).toBe(20);
  const config = resolveConfig({ tables: { w: { rows: 'hash', width: 1, rowsMax: 8 } } });
  const table = new RowTable('w', config.tables!.w!, 1, { index: 1, count: 2 });
  const keys = cutKeys(
    Uint32Array.from({ length: 40 }, (_, i) => i),
    2,
  )[1]!;
  table.stage({ keys, values: new Uint8Array(4 * keys.length) }, 'f32');
  const clip = { limit: Infinity, factor: 1 };
  table.apply({ rowStep: 1, rate: 1, clip, scaleOf: () => 1, readStep: 0 });
  expect([table.count, table.dropped]).toEqual([4, keys.length - 4]);
});

test('a table that is too large for one server fits on several, and the answer says how many', () => {
  const tables = { w: { rows: 40_000_000, width: 64 } };
  const config = resolveConfig({ tables });
  expect(() => createRunTables(config)).toThrow('--shards 3');
  expect(() => createRunTables(config, { index: 0, count: 2 })).toThrow('on each of 2 shards');
  expect(createRunTables(config, { index: 2, count: 3 })!.facts()).toMatchObject([{ rows: 0 }]);
});

test('a key that is of another shard is refused', () => {
  const config = resolveConfig({ tables: { w: { rows: 100, width: 1 } } });
  const tables = createRunTables(config, { index: 1, count: 2 })!;
  const [first, second] = cutKeys(
    Uint32Array.from({ length: 100 }, (_, i) => i),
    2,
  );
  expect(tables.readOwnKeys(encodeKeys([second!]))).toEqual([second]);
  expect(() => tables.readOwnKeys(encodeKeys([first!]))).toThrow('shard 0 has it');
});
