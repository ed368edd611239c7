import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { resolveConfig, workerConfig } from '../../shared/config.ts';
import { DownpourError } from '../../shared/errors.ts';
import { LIMITS } from '../../shared/limits.ts';
import {
  decodeKeys,
  decodeRows,
  encodeKeys,
  encodeRows,
  ROW_ENCODINGS,
  type RowEncoding,
  type RowShape,
  rowBytes,
  type TableRows,
} from '../../shared/rows.ts';
import { rowPushEncoding, rowShapes } from '../../shared/tables.ts';

const shapes: readonly RowShape[] = [
  { name: 'item', width: 3, keysMax: LIMITS.rowIdsMax },
  { name: 'user', width: 8, keysMax: 100 },
];

const rowsOf = ({ width, keysMax }: RowShape) =>
  fc.uniqueArray(fc.nat({ max: keysMax - 1 }), { maxLength: 20 }).chain((keys) =>
    fc
      .array(fc.float({ min: -4, max: 4, noNaN: true }), {
        minLength: keys.length * width,
        maxLength: keys.length * width,
      })
      .map(
        (values): TableRows => ({
          keys: Uint32Array.from(keys).sort(),
          values: Float32Array.from(values),
        }),
      ),
  );
const anyRows = fc.tuple(rowsOf(shapes[0]!), rowsOf(shapes[1]!));

/** The largest error of an element, as a share of the largest of its row. */
const ERROR: Record<RowEncoding, number> = { f32: 0, bf16: 1 / 256, int8: 1 / 254 + 1e-6 };

describe.each(ROW_ENCODINGS)('rows as %s', (encoding) => {
  test('come back, within the error of the encoding, at any offset', () => {
    fc.assert(
      fc.property(anyRows, fc.nat({ max: 3 }), (rows, offset) => {
        const encoded = encodeRows(shapes, rows, encoding);
        expect(encoded.length).toBe(
          rowBytes(
            shapes,
            rows.map(({ keys }) => keys.length),
            encoding,
          ),
        );
        expect(encoded.length % 4).toBe(0);
        const moved = new Uint8Array(encoded.length + offset);
        moved.set(encoded, offset);
        const read = decodeRows(shapes, moved.subarray(offset), encoding);
        for (const [i, { keys, values }] of read.entries()) {
          const { width } = shapes[i]!;
          expect(keys).toEqual(rows[i]!.keys);
          for (let row = 0; row < keys.length; row++) {
            const exact = rows[i]!.values.subarray(row * width, (row + 1) * width);
            const most = ERROR[encoding] * Math.max(...exact.map(Math.abs)) + 1e-38;
            for (const [j, x] of exact.entries()) {
              expect(Math.abs(values[row * width + j]! - x)).toBeLessThanOrEqual(most);
            }
          }
        }
      }),
    );
  });

  test('a row that is not finite stays so, and alone', () => {
    const values = Float32Array.of(1, Number.NaN, 3, 4, 5, 6);
    const rows = [
      { keys: Uint32Array.of(1, 2), values },
      { keys: new Uint32Array(), values: new Float32Array() },
    ];
    const [read] = decodeRows(shapes, encodeRows(shapes, rows, encoding), encoding);
    expect(read!.values.subarray(0, 3).every(Number.isFinite)).toBe(false);
    expect(read!.values.subarray(3).every(Number.isFinite)).toBe(true);
  });
});

test('keys alone come back', () => {
  fc.assert(
    fc.property(anyRows, (rows) => {
      const keys = rows.map((each) => each.keys);
      expect(decodeKeys(shapes, encodeKeys(keys))).toEqual(keys);
    }),
  );
});

const words = (...numbers: number[]) => new Uint8Array(Uint32Array.from(numbers).buffer);

test.each([
  ['falling keys', words(2, 5, 4, 0), 'key 4 of table'],
  ['a repeated key', words(2, 5, 5, 0), 'key 5 of table'],
  ['a key outside of the table', words(0, 1, 100), 'below 100'],
  ['a key above 2³¹', words(1, 2 ** 31, 0), `below ${2 ** 31}`],
  ['a count that is too large', words(3, 1, 2), 'are left'],
  ['a count that is too small', words(1, 1, 0, 7), 'take 12 bytes'],
  ['a table too few', words(1, 1), "end before table 'user'"],
  ['a count beyond all memory', words(2 ** 32 - 1), `allowed: ${LIMITS.rowsPerMessageMax}`],
])('%s is refused in words', (_, bytes, said) => {
  const refused = expect.objectContaining({
    code: 'DP_ROWS_INVALID',
    message: expect.stringContaining(said),
  });
  expect(() => decodeKeys(shapes, bytes)).toThrow(refused);
});

test('as many rows as a message may have are taken, and no more', () => {
  const keys = new Uint32Array(LIMITS.rowsPerMessageMax).map((_, i) => i);
  const none = new Uint32Array();
  expect(decodeKeys(shapes, encodeKeys([keys, none]))[0]).toHaveLength(keys.length);
  expect(() => decodeKeys(shapes, encodeKeys([keys, Uint32Array.of(1)]))).toThrow(
    `allowed: ${LIMITS.rowsPerMessageMax}`,
  );
});

// `npm run fuzz -- --target rows` takes 100,000.
test('damaged rows are read or refused with the code, and nothing else', () => {
  const counts = { accepted: 0, refused: 0 };
  const damage = fc.array(
    fc.tuple(fc.nat(), fc.constantFrom(0, 1, 2, 5, 127, 255, 2 ** 31, 2 ** 32 - 1), fc.boolean()),
    { minLength: 0, maxLength: 3 },
  );
  fc.assert(
    fc.property(anyRows, damage, fc.nat(), fc.nat({ max: 2 }), (rows, damages, cut, which) => {
      const encoding = ROW_ENCODINGS[which]!;
      const whole = encodeRows(shapes, rows, encoding);
      const view = new DataView(whole.buffer);
      for (const [at, value, isWord] of damages) {
        if (isWord) view.setUint32(4 * (at % (whole.length / 4)), value, true);
        else whole[at % whole.length] = value;
      }
      const bytes = cut % 3 === 0 ? whole.subarray(0, cut % whole.length) : whole;
      try {
        for (const [i, { keys, values }] of decodeRows(shapes, bytes, encoding).entries()) {
          const { width, keysMax } = shapes[i]!;
          expect(values.length).toBe(keys.length * width);
          for (let j = 0; j < keys.length; j++) {
            if (keys[j]! >= keysMax || (j > 0 && keys[j]! <= keys[j - 1]!))
              throw new Error('order');
          }
        }
        counts.accepted++;
      } catch (error) {
        if (!(error instanceof DownpourError) || error.code !== 'DP_ROWS_INVALID') throw error;
        counts.refused++;
      }
    }),
    { numRuns: 4_000 },
  );
  expect(counts.accepted).toBeGreaterThan(200);
  expect(counts.refused).toBeGreaterThan(200);
});

describe('tables of a configuration', () => {
  test('get their defaults, and workers are told', () => {
    const config = resolveConfig({ tables: { word: { rows: 10, width: 4 } } });
    expect(config.tables).toEqual({
      word: {
        ...{ rows: 10, width: 4, rowsMax: 2 ** 20, learningRate: 1, weightDecay: 0 },
        pretrainedRate: 1,
        ...{ maxNorm: null, admitAfter: 1, expireAfter: null },
        initializer: { kind: 'uniform', limit: 0.05 },
        optimizer: { kind: 'adagrad', initialAccumulator: 0.1, epsilon: 1e-7 },
      },
    });
    expect(workerConfig(config).tables).toEqual(config.tables);
    expect(workerConfig(resolveConfig({}))).not.toHaveProperty('tables');
  });

  test('are pushed in the encoding of the run, where rows have it', () => {
    expect(rowPushEncoding({ kind: 'bf16' })).toBe('bf16');
    expect(rowPushEncoding({ kind: 'int8' })).toBe('int8');
    expect(rowPushEncoding({ kind: 'topk' })).toBe('f32');
  });

  test('are on the wire in the order of their names', () => {
    const tables = { b: { rows: 10, width: 4 }, a: { rows: 'hash' as const, width: 1 } };
    expect(rowShapes(resolveConfig({ tables }))).toEqual([
      { name: 'a', width: 1, keysMax: LIMITS.rowIdsMax },
      { name: 'b', width: 4, keysMax: 10 },
    ]);
  });

  test.each([
    [{ tables: { word: { rows: 0, width: 4 } } }, 'tables.word.rows'],
    [{ tables: { word: { rows: LIMITS.rowIdsMax + 1, width: 4 } } }, 'tables.word.rows'],
    [{ tables: { word: { rows: 1, width: LIMITS.rowWidthMax + 1 } } }, 'tables.word.width'],
    [{ tables: { word: { rows: 1 } } }, 'tables.word.width'],
    [{ tables: { word: { rows: 1, width: 1, height: 2 } } }, 'tables.word.height'],
    [{ tables: { word: { rows: 1, width: 1, admitAfter: 2 } } }, "set rows 'hash'"],
    [{ tables: { word: { rows: 1, width: 1, expireAfter: 2 } } }, "set rows 'hash'"],
    [
      { tables: { word: { rows: 1, width: 1, pretrainedRate: 0, weightDecay: 0.1 } } },
      'pretrainedRate is 0 with weightDecay 0.1',
    ],
    [{ tables: { word: { rows: 1, width: 1 } }, local: { steps: 4 } }, 'local.steps is 4'],
    [{ tables: { word: { rows: 1, width: 1 } }, averaging: { kind: 'ema' } }, 'averaging.kind'],
    [
      {
        tables: { word: { rows: 1, width: 1 } },
        consistency: { mode: 'buffered', aggregate: 'median' },
      },
      "consistency.aggregate is 'median'",
    ],
  ])('%j is refused', (config, said) => {
    expect(() => resolveConfig(config)).toThrow(said);
  });

  test('there may be as many as the limit says', () => {
    const some = (n: number) => ({
      tables: Object.fromEntries(
        Array.from({ length: n }, (_, i) => [`t${i}`, { rows: 1, width: 1 }]),
      ),
    });
    expect(Object.keys(resolveConfig(some(LIMITS.tableCountMax)).tables!)).toHaveLength(64);
    expect(() => resolveConfig(some(LIMITS.tableCountMax + 1))).toThrow('65 entries');
  });
});
