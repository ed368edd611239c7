import { expect, test } from 'vitest';
import { resolveConfig } from '../../shared/config.ts';
import { LIMITS } from '../../shared/limits.ts';
import type { Work } from '../../shared/protocol.ts';
import { cutKeys } from '../../shared/row-shards.ts';
import { decodeKeys, encodeRows, type TableRows } from '../../shared/rows.ts';
import { rowShapes } from '../../shared/tables.ts';
import { KeptRoom, KeptRows } from '../../worker/rows/kept-rows.ts';
import { RowsLost } from '../../worker/rows/requests.ts';
import { RowsExchange } from '../../worker/rows/rows-exchange.ts';

const WIDTH = 3;
const config = resolveConfig({
  tables: {
    still: { rows: 1_000, width: WIDTH, learningRate: 0 },
    word: { rows: 1_000, width: WIDTH },
  },
});
const shapes = rowShapes(config);
const keysOf = (...keys: number[]) => Uint32Array.from(keys);

/** Row k of generation g is [k, g, 0.5]. */
const rowsOf = (keys: Uint32Array, generation: number): TableRows => ({
  keys,
  values: Float32Array.from([...keys].flatMap((key) => [key, generation, 0.5])),
});

/** A server that notes which keys it is asked for, by `pullRows` and with pushes. */
class Server {
  generation = 1;
  step = 7;
  readonly asked: number[][][] = [];
  readonly exchange: RowsExchange;
  readonly #shards: number;

  constructor(more: { shards?: number; frozen?: number[]; room?: KeptRoom } = {}) {
    const { shards = 1, frozen, room } = more;
    this.#shards = shards;
    const frozenOf = (table: string) =>
      table === 'word' && frozen ? { has: (key: number) => frozen.includes(key) } : null;
    const puller = {
      pullRows: async (_: unknown, bytes: Uint8Array) => {
        const { step, generation } = this;
        return { step, generation, encoding: 'f32' as const, parts: this.#parts(bytes) };
      },
    };
    this.exchange = new RowsExchange('r', shapes, config, puller, shards, frozenOf, room);
  }

  #encode(keys: readonly Uint32Array[]): Uint8Array {
    const rows = keys.map((own) => rowsOf(own, this.generation));
    return encodeRows(shapes, rows, 'f32');
  }

  #parts(bytes: Uint8Array): Uint8Array[] {
    const keys = decodeKeys(shapes, bytes);
    this.asked.push(keys.map((own) => [...own]));
    const cut = keys.map((own) => cutKeys(own, this.#shards));
    return Array.from({ length: this.#shards }, (_, s) => this.#encode(cut.map((own) => own[s]!)));
  }

  /** A push that wants rows, and its answer. @returns bytes of rows in the answer. */
  push(wanted: readonly Uint32Array[]): number {
    const none = shapes.map(() => rowsOf(keysOf(), 1));
    const pushed = this.exchange.pushed(none, this.step, wanted);
    const parts = pushed.map(({ rows, tail }) => {
      const keys = decodeKeys(shapes, tail.subarray(rows.bytes, rows.bytes + rows.wanted));
      return { keys, bytes: this.#encode(keys) };
    });
    this.asked.push(
      shapes.map((_, t) => parts.flatMap(({ keys }) => [...keys[t]!]).sort((a, b) => a - b)),
    );
    const bytes = parts.reduce((sum, part) => sum + part.bytes.length, 0);
    const { step, generation } = this;
    const work = { rows: { step, encoding: 'f32', bytes }, generation } as unknown as Work;
    this.exchange.receive(
      work,
      parts.map((part) => part.bytes),
    );
    return bytes;
  }

  async expectRows(keys: readonly Uint32Array[]): Promise<void> {
    const { rows, step } = await this.exchange.rowsFor(keys, this.generation);
    expect(step).toBe(this.step);
    for (const [t, own] of keys.entries()) {
      const { width } = shapes[t]!;
      const given = rows[t]!;
      for (const key of own) {
        const at = given.keys.indexOf(key) * width;
        expect([...given.values.subarray(at, at + width)]).toEqual([key, this.generation, 0.5]);
      }
    }
  }
}

test.each([1, 3])(
  'a table that is frozen is asked for each row once, on %i shards',
  async (shards) => {
    const server = new Server({ shards });
    const [first, second] = [
      [keysOf(1, 5, 9), keysOf(2, 4)],
      [keysOf(0, 5, 7, 9), keysOf(2, 6)],
    ] as const;
    await server.expectRows(first);
    server.step = 8;
    server.push(second);
    await server.expectRows(second);
    for (const again of [first, second]) {
      server.push(again);
      await server.expectRows(again);
    }
    const moving = [first, second, first, second].map(([, own]) => [...own]);
    expect(server.asked.map(([, own]) => own)).toEqual(moving);
    expect(server.asked.map(([still]) => still)).toEqual([[1, 5, 9], [0, 7], [], []]);
  },
);

test('rows that began with the values of a file are kept too, each by itself', async () => {
  const server = new Server({ frozen: [2, 4] });
  const keys = [keysOf(1), keysOf(2, 3, 4, 8)];
  await server.expectRows(keys);
  server.push(keys);
  await server.expectRows(keys);
  expect(server.asked[1]).toEqual([[], [3, 8]]);
});

test('an answer without rows costs a count for each table', () => {
  const server = new Server({ frozen: [3] });
  const keys = [keysOf(1, 2), keysOf(3)];
  server.push(keys);
  expect(server.push(keys)).toBe(4 * shapes.length);
});

test('rows of another generation are asked for once more', async () => {
  const server = new Server();
  const keys = [keysOf(1, 5), keysOf()];
  await server.expectRows(keys);
  server.generation = 2;
  // The answer comes from a server that has gone back, to a worker that did not know it yet.
  server.push(keys);
  await server.expectRows(keys);
  expect(server.asked.map(([still]) => still)).toEqual([[1, 5], [], [1, 5]]);
  await expect(server.exchange.rowsFor(keys, 1)).rejects.toThrow(RowsLost);
});

test('a push that was rejected gives no reason to ask for frozen rows once more', async () => {
  const server = new Server();
  const keys = [keysOf(1, 5), keysOf(2)];
  await server.expectRows(keys);
  server.exchange.reset();
  await server.expectRows(keys);
  expect(server.asked[1]).toEqual([[], [2]]);
});

test('kept rows have no more memory than they are given, and give it back', () => {
  const ALL = { has: () => true };
  const some = (from: number, count: number) =>
    rowsOf(
      Uint32Array.from({ length: count }, (_, i) => from + i),
      1,
    );
  // Memory comes for 256 rows at a time: 4 bytes a number, 64 for the key.
  const piece = 256 * (4 * WIDTH + 64);
  const room = new KeptRoom(2 * piece + piece - 1);
  const [a, b] = [new KeptRows(WIDTH, ALL, room), new KeptRows(WIDTH, ALL, room)];
  a.keep(some(0, 256));
  b.keep(some(0, 300));
  expect(a.unknown(some(0, 257).keys)).toEqual(keysOf(256));
  expect([...b.unknown(some(0, 300).keys)]).toEqual([...some(256, 44).keys]);
  a.keep(some(256, 1));
  expect(a.unknown(keysOf(256))).toHaveLength(1);
  // What is not kept is taken from what came with it.
  expect(b.together(keysOf(3, 256), some(256, 1))).toEqual(rowsOf(keysOf(3, 256), 1));
  expect(b.together(keysOf(3, 257), some(256, 1))).toBeNull();
  b.clear();
  a.keep(some(256, 256));
  expect(a.unknown(some(0, 512).keys)).toEqual(keysOf());
  expect(new KeptRoom().take(LIMITS.frozenRowBytesMax)).toBe(true);
  expect(new KeptRoom().take(LIMITS.frozenRowBytesMax + 1)).toBe(false);
});
