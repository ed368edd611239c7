import { runInNewContext } from 'node:vm';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { kindOf } from '../../worker/data/columns.ts';
import type { PrepareOptions } from '../../worker/data/examples.ts';
import { gather } from '../../worker/data/gather.ts';
import { dataOf } from '../../worker/data/given.ts';
import { columnOf } from '../../worker/data/given-column.ts';
import { prepareData } from '../../worker/data/prepare-data.ts';

const ARRAYS = {
  Int8Array,
  Uint8Array,
  Uint8ClampedArray,
  Int16Array,
  Uint16Array,
  Int32Array,
  Uint32Array,
  Float32Array,
  Float64Array,
  BigInt64Array,
  BigUint64Array,
} as const;
type ArrayName = keyof typeof ARRAYS;
const isBytes = (name: string) => name.startsWith('Uint8');

/** Code, and message of what `f` throws; null when it throws nothing. */
function failure(f: () => unknown): { code: string; message: string } | null {
  try {
    f();
    return null;
  } catch (error) {
    const { code, message } = error as { code: string; message: string };
    return { code, message };
  }
}

/** Numbers that an array of this kind can hold, the odd ones often. */
function elements(name: ArrayName): fc.Arbitrary<number | bigint> {
  if (name.startsWith('Big')) {
    const [min, max] =
      name === 'BigInt64Array' ? [-(2n ** 63n), 2n ** 63n - 1n] : [0n, 2n ** 64n - 1n];
    const small = fc.bigInt({ min: name === 'BigInt64Array' ? -300n : 0n, max: 300n });
    return fc.oneof({ weight: 30, arbitrary: small }, fc.bigInt({ min, max }));
  }
  if (name === 'Float64Array') {
    const times = fc.integer({ min: 0, max: 5000 }).map((ms) => 1.7e12 + ms);
    const usual = fc.double({ min: -1000, max: 1000, noNaN: true });
    return fc.oneof({ weight: 20, arbitrary: usual }, { weight: 5, arbitrary: times }, fc.double());
  }
  if (name === 'Float32Array') {
    const usual = fc.float({ min: -1000, max: 1000, noNaN: true });
    return fc.oneof({ weight: 30, arbitrary: usual }, fc.float());
  }
  const bits = 8 * ARRAYS[name].BYTES_PER_ELEMENT;
  const signed = name.startsWith('I');
  return fc.integer({
    min: signed ? -(2 ** (bits - 1)) : 0,
    max: signed ? 2 ** (bits - 1) - 1 : 2 ** bits - 1,
  });
}

const shapes = fc.record({
  count: fc.integer({ min: 3, max: 8 }),
  rest: fc.array(fc.integer({ min: 1, max: 3 }), { maxLength: 2 }),
});

describe('any typed array', () => {
  const cases = fc
    .record({
      name: fc.constantFrom(...(Object.keys(ARRAYS) as ArrayName[])),
      shape: shapes,
      offset: fc.integer({ min: 0, max: 2 }),
      memory: fc.constantFrom('own', 'shared', 'resizable', 'another realm'),
      standardise: fc.constantFrom('none' as const, 'global' as const, 'feature' as const),
    })
    .chain((given) => {
      const size = given.shape.rest.reduce((a, b) => a * b, given.shape.count);
      const numbers = fc.array(elements(given.name), { minLength: size, maxLength: size });
      return fc.record({ ...mapped(given), numbers });
    });

  /** Each value as a constant. */
  function mapped<T extends object>(given: T) {
    return Object.fromEntries(
      Object.entries(given).map(([key, value]) => [key, fc.constant(value)]),
    ) as { [Key in keyof T]: fc.Arbitrary<T[Key]> };
  }

  function arrayOf(
    name: ArrayName,
    numbers: readonly (number | bigint)[],
    offset: number,
    memory: string,
  ) {
    if (memory === 'another realm') {
      return runInNewContext(`new ${name}(given)`, { given: numbers }) as NodeJS.TypedArray;
    }
    const Values = ARRAYS[name] as Float32ArrayConstructor;
    const bytes = (offset + numbers.length) * Values.BYTES_PER_ELEMENT;
    const buffer =
      memory === 'shared'
        ? new SharedArrayBuffer(bytes)
        : memory === 'resizable'
          ? new (ArrayBuffer as unknown as new (n: number, o: object) => ArrayBuffer)(bytes, {
              maxByteLength: 2 * bytes,
            })
          : new ArrayBuffer(bytes);
    const values = new Values(
      buffer as ArrayBuffer,
      offset * Values.BYTES_PER_ELEMENT,
      numbers.length,
    );
    values.set(numbers as number[]);
    return values;
  }

  it('is gathered as simple float64 arithmetic has it, or the first bad element is named', () => {
    let [read, refused] = [0, 0];
    fc.assert(
      fc.property(
        cases,
        ({ name, shape: { count, rest }, offset, memory, standardise, numbers }) => {
          const values = arrayOf(name, numbers, offset, memory);
          const shape = [count, ...rest];
          const size = numbers.length / count;
          const targets = { values: Array.from({ length: count }, (_, i) => i / 2) };
          const load = () =>
            prepareData(dataOf({ train: { inputs: { values, shape }, targets } }), {
              seed: 1,
              validationFraction: 0,
              standardise,
            });
          // What a typed array really holds: float32 is rounded, bytes are clamped.
          const held = Array.from(values as unknown as ArrayLike<number | bigint>);
          const bad = held.findIndex((x) =>
            typeof x === 'bigint' ? !Number.isSafeInteger(Number(x)) : !Number.isFinite(x),
          );
          const error = failure(load);
          if (bad >= 0) {
            refused++;
            expect(error?.code).toBe('DP_DATA_CORRUPT');
            expect(error?.message).toMatch(
              new RegExp(`inputs of the train part, row ${Math.floor(bad / size)}\\b`),
            );
            return;
          }
          const { rows, lost } = reference(
            held.map(Number),
            size,
            isBytes(name),
            standardise,
            shape.length,
            name === 'Float32Array',
          );
          if (lost) {
            refused++;
            expect(error, `${name} ${standardise} ${numbers}`).toMatchObject({
              code: 'DP_DATA_CORRUPT',
            });
            return;
          }
          read++;
          expect(error).toBeNull();
          const all = Array.from({ length: count }, (_, i) => i);
          const { inputs } = gather(load(), 'train', all);
          rows.forEach((x, i) => {
            // One rounding to float32, and a mean that two orders of summation may have differently.
            expect(Math.abs(inputs[i]! - x)).toBeLessThanOrEqual(1e-6 * Math.max(1, Math.abs(x)));
          });
        },
      ),
      { numRuns: 1000 },
    );
    expect(Math.min(read, refused)).toBeGreaterThan(30);
  });

  /** Rows as they should come out, by the textbook; `lost`: float32 cannot have them. */
  function reference(
    numbers: number[],
    size: number,
    bytes: boolean,
    kind: PrepareOptions['standardise'],
    rank: number,
    rounded: boolean,
  ) {
    const raw = numbers.map((x) => (bytes ? x / 255 : x));
    const columns = (xs: number[], f: number) => xs.filter((_, i) => i % size === f);
    // Differences from one of them: exact where sums of the numbers themselves are not.
    const momentsOf = (xs: number[]) => {
      const mean = xs[0]! + xs.reduce((sum, x) => sum + (x - xs[0]!), 0) / xs.length;
      const square = xs.reduce((sum, x) => sum + (x - mean) ** 2, 0) / xs.length;
      return { mean, deviation: xs.every((x) => x === xs[0]) ? 0 : Math.sqrt(square) };
    };
    const all = momentsOf(raw);
    let lost = false;
    const rows = raw.map((x, i) => {
      if (kind === 'none') return x;
      const { mean, deviation } = kind === 'global' ? all : momentsOf(columns(raw, i % size));
      if (!Number.isFinite(deviation) || (deviation > 0 && 1 / deviation === Infinity)) lost = true;
      return (x - mean) / (deviation === 0 ? 1 : deviation);
    });
    lost ||= rows.some((x) => !Number.isFinite(Math.fround(x)));
    for (let f = 0; f < size && !lost && !bytes; f++) {
      if (kind === 'global' && rank > 2) break;
      const [exact, own] = [columns(rows, f), columns(raw, f)];
      const { deviation } = momentsOf(own);
      const slope = { none: 1, global: all.deviation, feature: deviation }[kind as string] || 1;
      const error = Math.sqrt(
        exact.reduce((sum, x) => sum + (Math.fround(x) - x) ** 2, 0) / exact.length,
      );
      lost = error > (0.01 * deviation) / slope && deviation > 2 ** -48 * Math.abs(own[0]!);
      const most = Math.max(...own.map(Math.abs));
      const steps = (deviation * Math.sqrt(12)) / 2 ** (Math.floor(Math.log2(most)) - 23);
      const exact24 = most <= 2 ** 24 && own.every(Number.isInteger);
      lost ||= rounded && rank <= 2 && deviation > 0 && steps < 10 && !exact24;
    }
    return { rows, lost };
  }
});

describe('a typed array becomes, without loss', () => {
  const become = (values: unknown, shape: readonly number[]) =>
    columnOf({ values, shape }, 'inputs').values;

  it('one of four kinds', () => {
    const kinds = Object.entries(ARRAYS).map(([name, Values]) => {
      const values = new (Values as Float32ArrayConstructor)(2);
      return [name, kindOf(become(values, [2]))];
    });
    expect(Object.fromEntries(kinds)).toEqual({
      ...{ Int8Array: 'int32', Int16Array: 'int32', Uint16Array: 'int32', Int32Array: 'int32' },
      ...{ Uint8Array: 'uint8', Uint8ClampedArray: 'uint8', Uint32Array: 'int32' },
      ...{ Float32Array: 'float32', Float64Array: 'float64' },
      ...{ BigInt64Array: 'int32', BigUint64Array: 'int32' },
    });
    expect(become(Buffer.from([1, 255]), [2])).toEqual(Uint8Array.of(1, 255));
  });

  it('float64 where 32 bits are too few, and an error where float64 is', () => {
    expect(become(Uint32Array.of(1, 2 ** 32 - 1), [2])).toEqual(Float64Array.of(1, 2 ** 32 - 1));
    expect(become(BigInt64Array.of(-(2n ** 53n) + 1n, 2n), [2])).toEqual(
      Float64Array.of(-(2 ** 53) + 1, 2),
    );
    expect(failure(() => become(BigUint64Array.of(1n, 2n, 3n, 2n ** 63n), [2, 2]))).toMatchObject({
      code: 'DP_DATA_CORRUPT',
      message: expect.stringMatching(
        /^inputs, row 1, column 1: 9223372036854775808 is too large for a float64/,
      ),
    });
  });

  it('a copy, where others could write to its memory or shorten it', () => {
    const shared = new Float32Array(new SharedArrayBuffer(8));
    const column = become(shared, [2]);
    shared[0] = 7;
    expect(column[0]).toBe(0);
    const own = new Float32Array(2);
    expect(become(own, [2]).buffer).toBe(own.buffer);
  });
});

describe('arrays of numbers', () => {
  const read = (values: unknown, shape?: readonly number[]) =>
    columnOf(shape ? { values, shape } : { values }, 'inputs');

  it('have the shape of their nesting, and booleans as 0 and 1', () => {
    expect(read([1, 2.5, true])).toEqual({ values: Float64Array.of(1, 2.5, 1), shape: [3] });
    expect(
      read([
        [1, 2],
        [3n, false],
      ]),
    ).toEqual({ values: Float64Array.of(1, 2, 3, 0), shape: [2, 2] });
    expect(read([[[1], [2]]]).shape).toEqual([1, 2, 1]);
    expect(read([1, 2, 3, 4], [2, 2]).shape).toEqual([2, 2]);
  });

  it('of typed arrays keep bytes as pixels, integers as integers', () => {
    expect(read([Uint8Array.of(0, 255), new Uint8ClampedArray(2)])).toEqual({
      values: Uint8Array.of(0, 255, 0, 0),
      shape: [2, 2],
    });
    expect(read([Int16Array.of(1), Int32Array.of(2)]).values).toEqual(Int32Array.of(1, 2));
    expect(read([Float32Array.of(0.5), [2]]).values).toEqual(Float64Array.of(0.5, 2));
    expect(failure(() => read([Uint8Array.of(1), Float32Array.of(0.5)]))?.message).toMatch(
      /some rows are bytes/,
    );
  });

  it('are refused where they hold anything else, with its place', () => {
    const hole = [1, 2, 3];
    delete hole[1];
    for (const [values, message] of [
      [[1, '2'], "inputs, row 1: the text '2' is not a number; convert text to numbers"],
      [[1, null], 'inputs, row 1: null is not a number; fill it in'],
      [hole, 'inputs, row 1: nothing is not a number; fill it in'],
      [
        [
          [1, 2],
          [3, undefined],
        ],
        'inputs, row 1, column 1: nothing is not a number',
      ],
      [[[1, 2], [3]], 'inputs, row 1, column 0: 1 entries, but others have 2'],
      [[[1, 2], 3], 'inputs, row 1, column 0: 3, but others have 2'],
      [[1, [2]], 'inputs, row 1: an array ([2]) is not a number'],
      [[1, new Date(0)], 'inputs, row 1: a Date is not a number'],
      [[1, 2n ** 60n], 'inputs, row 1: 1152921504606846976 is not a number'],
    ] as const) {
      expect(failure(() => read(values))).toEqual({
        code: 'DP_EXPERIMENT_INVALID',
        message: expect.stringContaining(message),
      });
    }
  });

  it('say the same as the typed array of their numbers, whatever the shape', () => {
    const numbers = fc.double({ noNaN: true, noDefaultInfinity: true });
    fc.assert(
      fc.property(shapes, fc.array(numbers, { minLength: 72, maxLength: 72 }), (shape, all) => {
        const dims = [shape.count, ...shape.rest];
        let at = 0;
        const nest = (depth: number): unknown =>
          depth === dims.length
            ? all[at++]
            : Array.from({ length: dims[depth]! }, () => nest(depth + 1));
        const nested = read(nest(0));
        expect(nested).toEqual(read(Float64Array.from(all.slice(0, at)), dims));
      }),
      { numRuns: 50 },
    );
  });
});

describe('anything else that data() gives is refused by name', () => {
  const x = { values: [1, 2], shape: [2, 1] };
  const train = { inputs: x, targets: x };
  const tensor = { dataSync: () => [1], shape: [1] };

  it.each([
    [undefined, 'data() returned nothing; was `return` forgotten? It must return { train:'],
    [null, 'data() returned null; was `return` forgotten?'],
    [[train], 'data() returned an array (['],
    [new Float32Array(2), 'data() returned a Float32Array; it must return { train:'],
    ['mnist', "data() returned the text 'mnist'; it must"],
    [tensor, 'data() returned a TensorFlow.js tensor'],
    [{}, 'data() returned no train: it has no fields'],
    [
      { training: train },
      "what data() returned has an unknown field 'training'; did you mean 'train'?",
    ],
    [{ train, val: train }, "field 'val'; did you mean 'validation'?"],
    [{ train, Test: train }, "field 'Test'; did you mean 'test'?"],
    [{ train, clasCount: 2 }, "field 'clasCount'; did you mean 'classCount'?"],
    [{ train: [x, x] }, 'train of what data() returned is an array'],
    [{ train: { x, y: x } }, "the train part has an unknown field 'x'; did you mean 'inputs'?"],
    [
      { train, test: 5 },
      'the test part of what data() returned is 5; it must be { inputs, targets }',
    ],
    [{ train, classCount: 2.5 }, 'classCount of what data() returned is 2.5'],
    [{ train, classCount: '2' }, "classCount of what data() returned is the text '2'"],
    [{ train, classCount: 0 }, 'classCount of what data() returned is 0'],
    [
      { train, classes: ['a', 1] },
      'classes of what data() returned: an array ([a, 1]); allowed: an array of strings',
    ],
    [{ train, source: 3 }, 'source of what data() returned is 3; it must be a string'],
    [
      { train: { ...train, count: 0 } },
      'the train part of the data has 0 examples; it needs at least 1',
    ],
    [{ train: { ...train, count: 2.5 } }, 'has 2.5 examples'],
    [{ train: { ...train, count: 3 } }, 'shape [2, 1] means 2 examples, but there are 3'],
  ])('%o', (given, message) => {
    expect(failure(() => dataOf(given))).toEqual({
      code: 'DP_EXPERIMENT_INVALID',
      message: expect.stringContaining(message),
    });
  });

  it.each([
    [new Float32Array(4), 'inputs of the train part are a Float32Array; give { values, shape }'],
    [
      [
        [1, 2],
        [3, 4],
      ],
      'inputs of the train part are an array ([…, …]); give { values, shape }',
    ],
    [tensor, 'are a TensorFlow.js tensor; give { values: tensor.dataSync(), shape: tensor.shape }'],
    [{ values: tensor, shape: [1] }, 'is a TensorFlow.js tensor; give its numbers'],
    [
      { values: new Float32Array(4) },
      'have no shape: values is a Float32Array of 4 numbers; give shape: [2, 2]',
    ],
    [{ values: new Float32Array(2) }, 'give shape: [2]'],
    [{ values: new Float32Array(5) }, 'give shape: [examples, …]'],
    [
      { values: new DataView(new ArrayBuffer(8)), shape: [2] },
      'is a DataView; allowed: a typed array',
    ],
    [{ values: new ArrayBuffer(8), shape: [2] }, 'is an ArrayBuffer; give a typed array on it'],
    [{ values: '1,2', shape: [2] }, "is the text '1,2'; allowed: a typed array"],
    [{ values: null, shape: [2] }, 'is null; allowed: a typed array'],
    [{ values: new Set([1, 2]), shape: [2] }, 'is a Set; allowed'],
    [{ values: { 0: 1, 1: 2 }, shape: [2] }, "is an object with '0', '1'; allowed"],
    [{ values: [1, 2], shape: 2 }, 'the shape is 2; allowed: an array of whole numbers'],
    [{ values: [1, 2], shape: [] }, 'the shape is an array ([]); allowed'],
    [{ values: [1, 2], shape: [2, -1] }, 'the shape is an array ([2, -1]); allowed'],
    [{ values: [1, 2], shape: [null, 1] }, 'the shape is an array ([null, 1]); allowed'],
    [
      { values: new Float32Array(4), shape: [2, 3] },
      'shape [2, 3] needs 6 numbers, but values has 4',
    ],
    [{ values: new Float32Array(0), shape: [2, 1] }, 'was its memory handed to another thread?'],
    [{ values: [], shape: [0, 3] }, 'shape [0, 3] has no numbers'],
    [{ values: [] }, 'shape [0] has no numbers'],
    [{ values: [[], []] }, 'shape [2, 0] has no numbers'],
    [
      { values: [1, 2], names: ['a', 'b'] },
      'there are 2, but an example has 1 number; give one name for each',
    ],
    [{ values: [1, 2], names: 'a' }, "names of inputs of the train part: the text 'a'; allowed"],
    [{ values: [1, 2], classes: ['a', 'a'] }, "two classes are named 'a'"],
    [{ values: [1, 2], Shape: [2, 1] }, "has an unknown field 'Shape'; did you mean 'shape'?"],
  ])('inputs: %o', (inputs, message) => {
    const given = { train: { inputs, targets: { values: [1, 2] }, count: 2 } };
    expect(failure(() => dataOf(given))).toEqual({
      code: 'DP_EXPERIMENT_INVALID',
      message: expect.stringContaining(message),
    });
  });

  it('but not what experiments have beside it', () => {
    const given = { train, text: 'x', vocabulary: [], validation: null, test: undefined };
    expect(dataOf(given)).toMatchObject({ source: '2 training examples', train: { count: 2 } });
  });
});
