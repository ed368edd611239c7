import { describe, expect, test } from 'vitest';
import { LIMITS } from '../../shared/limits.ts';
import type { PreparedData } from '../../worker/data/examples.ts';
import { gather } from '../../worker/data/gather.ts';
import { dataOf } from '../../worker/data/given.ts';
import type { ExampleSource } from '../../worker/data/source.ts';
import { collect, examplesAt } from '../../worker/data/stored.ts';

/** Sources: what they may be, and what their reads may give. */

const FIELDS = {
  inputs: { shape: [2], type: 'float32' },
  targets: { shape: [], type: 'int32', classes: ['no', 'yes'] },
} as const;

/** Example i is [i, −i], of class i mod 2. */
const read = (indices: Int32Array) => ({
  inputs: Float32Array.from([...indices].flatMap((i) => [i, -i])),
  targets: indices.map((i) => i % 2),
});

const sourceOf = (more: Partial<ExampleSource> = {}): ExampleSource => ({
  ...{ count: 10, fields: FIELDS, read, name: 'ten.bin' },
  ...more,
});

const examplesOf = (more: Partial<ExampleSource> = {}) => dataOf({ train: sourceOf(more) }).train;

describe('a source', () => {
  test('is a part without values that says what its examples are like', () => {
    const { train, classCount, source } = dataOf({ train: sourceOf() });
    expect(train.count).toBe(10);
    expect(train.inputs).toEqual({ values: new Float32Array(0), shape: [10, 2] });
    expect(train.targets.shape).toEqual([10]);
    expect(train.targets.classes).toEqual(['no', 'yes']);
    expect(classCount).toBeUndefined();
    expect(source).toBe('10 training examples');
  });

  test.each<[string, object, RegExp]>([
    ['no read', { read: 3 }, /read is 3; allowed: a function/],
    ['no count', { count: 0 }, /count is 0; allowed: the number of examples/],
    ['too many examples', { count: 2 ** 31 }, /count is 2147483648; allowed/],
    ['no fields', { fields: {} }, /fields is an object with no fields; allowed/],
    ['no input', { fields: { targets: FIELDS.targets } }, /has no input; it has 'targets'/],
    [
      'an unknown type',
      { fields: { inputs: { shape: [], type: 'int8' } } },
      /type is the text 'int8'/,
    ],
    ['no role', { fields: { a: { shape: [], type: 'int32' } } }, /field 'a': role is nothing/],
    [
      'a role that the name has not',
      { fields: { inputs: { shape: [], type: 'int32', role: 'target' } } },
      /inputs always has the role input/,
    ],
    [
      'a size of 0',
      { fields: { inputs: { shape: [0], type: 'int32' } } },
      /shape is an array \(\[0\]\)/,
    ],
    [
      'names that do not fit',
      { fields: { inputs: { shape: [2], type: 'int32', names: ['a'] } } },
      /there are 1, but an example has 2 numbers/,
    ],
    [
      'an input with classes',
      { fields: { inputs: { shape: [], type: 'int32', classCount: 3 } } },
      /only targets have classes/,
    ],
    ['a key that is no text', { key: 3 }, /key is 3; allowed: a text/],
    [
      'a misspelt field',
      { reedSeconds: 3 },
      /unknown field 'reedSeconds'; did you mean 'readSeconds'/,
    ],
    ['no time', { readSeconds: 0 }, /readSeconds is 0; allowed: above 0, up to 3600/],
    ['too much time', { readSeconds: LIMITS.readSecondsMax + 1 }, /readSeconds is 3601; allowed/],
    [
      'too many fields',
      {
        fields: Object.fromEntries(
          Array.from({ length: LIMITS.fieldsMax + 1 }, (_, i) => [
            `f${i}`,
            { shape: [], type: 'int32', role: 'input' },
          ]),
        ),
      },
      /has 65 fields; at most 64/,
    ],
  ])('with %s is refused', (_, more, message) => {
    expect(() => dataOf({ train: { ...sourceOf(), ...more } })).toThrow(message);
  });

  test('may ask for the most time, and have the most fields', () => {
    const fields = Object.fromEntries(
      Array.from({ length: LIMITS.fieldsMax }, (_, i) => [
        `f${i}`,
        { shape: [], type: 'int32', role: 'input' } as const,
      ]),
    );
    const { stored } = examplesOf({ readSeconds: LIMITS.readSecondsMax, fields });
    expect(stored?.source.readSeconds).toBe(3600);
  });

  test('keeps its own `this`', async () => {
    class Counting {
      readonly count = 10;
      readonly fields = FIELDS;
      reads = 0;
      read(indices: Int32Array) {
        this.reads++;
        return read(indices);
      }
    }
    const source = new Counting();
    await examplesAt(dataOf({ train: source }).train, Int32Array.of(1));
    expect(source.reads).toBe(1);
  });
});

describe('a read', () => {
  const at = (more: Partial<ExampleSource>, signal?: AbortSignal) =>
    examplesAt(examplesOf(more), Int32Array.of(3, 1, 3), signal);

  test('gives the examples in the order of the indices, also one of them twice', async () => {
    const { count, inputs, targets } = await at({});
    expect(count).toBe(3);
    expect(inputs).toMatchObject({ values: Float32Array.of(3, -3, 1, -1, 3, -3), shape: [3, 2] });
    expect(targets.values).toEqual(Int32Array.of(1, 1, 1));
  });

  test.each<[string, (indices: Int32Array) => unknown, string, RegExp]>([
    [
      'fails',
      () => Promise.reject(new Error('EIO: the disk is gone')),
      'DP_DATA_MISSING',
      /source 'ten.bin' of the train part: read\(\[3, 1, 3\]\) failed: EIO: the disk is gone/,
    ],
    ['gives nothing', () => undefined, 'DP_DATA_CORRUPT', /gave nothing; allowed: an object/],
    [
      'lacks a field',
      (i) => ({ inputs: read(i).inputs }),
      'DP_DATA_CORRUPT',
      /field 'targets' is missing/,
    ],
    [
      'gives too few numbers',
      (i) => ({ ...read(i), inputs: new Float32Array(4) }),
      'DP_DATA_CORRUPT',
      /field 'inputs' has 4 numbers; needed: 6, which are 2 for each of 3 examples/,
    ],
    [
      'gives too many numbers',
      (i) => ({ ...read(i), inputs: new Float32Array(7) }),
      'DP_DATA_CORRUPT',
      /has 7 numbers; needed: 6/,
    ],
    [
      'gives another type',
      (i) => ({ ...read(i), targets: new Float64Array(3) }),
      'DP_DATA_CORRUPT',
      /field 'targets' is a Float64Array; allowed: Int32Array, since its type is int32/,
    ],
    [
      'gives NaN',
      (i) => ({ ...read(i), inputs: Float32Array.of(0, 1, 2, Number.NaN, 4, 5) }),
      'DP_DATA_CORRUPT',
      /field 'inputs' has the value NaN for example 1, which is not a finite number/,
    ],
  ])('that %s is refused', async (_, wrong, code, message) => {
    const reading = at({ read: wrong as ExampleSource['read'] });
    await expect(reading).rejects.toThrow(message);
    await expect(reading).rejects.toMatchObject({ code });
  });

  test('may give NaN where it means a missing number', async () => {
    const fields = { ...FIELDS, inputs: { ...FIELDS.inputs, missing: 'mean' } } as const;
    const inputs = new Float32Array(6).fill(Number.NaN);
    const examples = await at({ fields, read: (i) => ({ ...read(i), inputs }) });
    expect(examples.inputs.values).toEqual(inputs);
  });

  test('that hangs is given up, and is told so', async () => {
    let seen: AbortSignal | undefined;
    const reading = at({
      readSeconds: 0.01,
      read: (_, { signal }) => {
        seen = signal;
        return new Promise(() => {});
      },
    });
    await expect(reading).rejects.toThrow(/gave nothing in 0.01 s; set readSeconds .* up to 3600/);
    expect(seen!.aborted).toBe(true);
  });

  test('that is aborted throws the reason, whatever comes of it later', async () => {
    const stopping = new AbortController();
    let fail = (_: Error) => {};
    const reading = at(
      {
        read: (_, { signal }) => {
          signal.addEventListener('abort', () => fail(new Error('too late')));
          return new Promise((_, reject) => {
            fail = reject;
          });
        },
      },
      stopping.signal,
    );
    stopping.abort(new Error('stopped'));
    await expect(reading).rejects.toThrow('stopped');
    await expect(at({}, stopping.signal)).rejects.toThrow('stopped');
  });
});

describe('a minibatch', () => {
  const rows = Int32Array.from({ length: 6 }, (_, i) => i);
  const all = {
    inputs: { values: read(rows).inputs, shape: [6, 2] },
    targets: { values: read(rows).targets, shape: [6] },
  };
  const { train } = dataOf({ train: all });
  const transform = { kind: 'none', scale: 1, mean: [], deviation: [] } as const;
  const inMemory = { train, validation: train, test: null, transform } as unknown as PreparedData;
  const part = examplesOf({ count: 6 });
  const elsewhere: PreparedData = { ...inMemory, train: part, validation: part };

  test('of a source is that of the same arrays, also over two parts', async () => {
    const wanted = [11, 2, 0, 7, 2];
    const given = collect(elsewhere, 'trainAndValidation', wanted);
    expect(given).toBeInstanceOf(Promise);
    expect(await given).toEqual(gather(inMemory, 'trainAndValidation', wanted));
    expect(await collect(elsewhere, 'validation', [5, 5])).toEqual(
      gather(inMemory, 'validation', [5, 5]),
    );
  });

  test('of arrays is no promise', () => {
    expect(collect(inMemory, 'train', [1])).toEqual(gather(inMemory, 'train', [1]));
  });

  test('of an index that the part lacks is refused', async () => {
    await expect(collect(elsewhere, 'train', [6])).rejects.toThrow(/example 6 was requested/);
    expect(() => gather(elsewhere, 'train', [0])).toThrow(
      /all examples of the train part in memory/,
    );
  });
});
