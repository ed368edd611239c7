import { appendFile, mkdtemp, open, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { gzipSync } from 'node:zlib';
import fc from 'fast-check';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { errorCode, errorText } from '../../shared/errors.ts';
import { LIMITS } from '../../shared/limits.ts';
import { readIdx } from '../../worker/data/idx.ts';
import { readNpy } from '../../worker/data/npy.ts';
import { PositionedFile } from '../../worker/data/positioned-file.ts';
import { type ArrayField, arraySource } from '../../worker/data/sources/arrays.ts';
import { idx, npy } from '../array-files.ts';
import { failureOf as failure, readFrom as read } from '../support/source-reading.ts';

let folder: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'downpour-arrays-'));
});
afterAll(() => rm(folder, { recursive: true, force: true }));

async function file(name: string, bytes: Uint8Array): Promise<string> {
  const path = join(folder, name);
  await writeFile(path, bytes);
  return path;
}

describe('arrays by position', () => {
  const numbers = Array.from({ length: 24 }, (_, i) => (i * 7) % 100);
  const NPY = ['|u1', '|i1', '|b1', '<i2', '<i4', '>i4', '<i8', '>i8', '<f4', '>f4', '<f8', '>f8'];

  it.each(NPY)('has the numbers and the type of readNpy for %s', async (descr) => {
    const given = descr === '|b1' ? numbers.map((value) => value % 2) : numbers;
    const path = await file(`a${NPY.indexOf(descr)}.npy`, npy(descr, [4, 3, 2], given));
    const { values } = await readNpy(path);
    const source = await arraySource({ inputs: path });
    const order = [3, 0, 0, 2];
    const rows = await read(source, order);
    expect(source.count).toBe(4);
    expect(source.fields).toEqual({
      inputs: { shape: [3, 2], type: source.fields.inputs!.type },
    });
    expect(rows.inputs!.constructor).toBe(values.constructor);
    expect([...rows.inputs!]).toEqual(
      order.flatMap((row) => [...values.subarray(row * 6, row * 6 + 6)]),
    );
  });

  it.each([8, 9, 11, 12, 13, 14])('has those of readIdx for elements of type %d', async (type) => {
    const path = await file(`a${type}.idx`, idx(type, [4, 6], numbers));
    const { values } = await readIdx(path);
    const rows = await read(await arraySource({ inputs: path }), [1, 3]);
    expect(rows.inputs!.constructor).toBe(values.constructor);
    expect([...rows.inputs!]).toEqual([...values.subarray(6, 12), ...values.subarray(18)]);
  });

  it('has float64 for all rows where one integer needs more than 32 bits', async () => {
    const path = await file('wide.npy', npy('<i8', [3], [1, 2, 2 ** 40]));
    const rows = await read(await arraySource({ inputs: path }), [0]);
    expect(rows.inputs).toEqual(Float64Array.of(1));
  });

  it('reads several fields with their roles and names', async () => {
    const inputs = await file('x.npy', npy('<f4', [3, 2], [1, 2, 3, 4, 5, 6]));
    const targets = await file('y.idx', idx(8, [3], [0, 1, 0]));
    const source = await arraySource({
      inputs: { file: inputs, names: ['a', 'b'] },
      targets: { file: targets, classes: ['cat', 'dog'] },
      weights: { file: inputs, role: 'input', missing: 'mean' },
    });
    expect(source.fields).toEqual({
      inputs: { shape: [2], type: 'float32', names: ['a', 'b'] },
      targets: { shape: [], type: 'uint8', classes: ['cat', 'dog'] },
      weights: { shape: [2], type: 'float32', role: 'input', missing: 'mean' },
    });
    expect(await read(source, [2, 1])).toEqual({
      inputs: Float32Array.of(5, 6, 3, 4),
      targets: Uint8Array.of(0, 1),
      weights: Float32Array.of(5, 6, 3, 4),
    });
  });

  it('reads files above 2 GiB, at both ends', async () => {
    const rows = 3 * 2 ** 20;
    const head = Buffer.alloc(12);
    head[2] = 8;
    head[3] = 2;
    head.writeUInt32BE(rows, 4);
    head.writeUInt32BE(1024, 8);
    const path = await file('huge.idx', head);
    const handle = await open(path, 'r+');
    await handle.truncate(12 + rows * 1024);
    await handle.write(Buffer.of(7), 0, 1, 12);
    await handle.write(Buffer.of(9), 0, 1, 12 + rows * 1024 - 1);
    await handle.close();
    const source = await arraySource({ inputs: path });
    expect(source.count).toBe(rows);
    const { inputs } = await read(source, [rows - 1, 0]);
    expect([inputs![1023], inputs![1024]]).toEqual([9, 7]);
  });

  it('reads any rows in any order, as bytes of the file', async () => {
    const bytes = Uint8Array.from({ length: 50_000 }, (_, i) => (i * 31) % 251);
    const path = await file('any.bin', bytes);
    const opened = await PositionedFile.open(path);
    const range = fc
      .tuple(fc.nat(49_999), fc.nat(30_000))
      .map(([start, length]) => ({ start, length: Math.min(length, 50_000 - start) }));
    await fc.assert(
      fc.asyncProperty(fc.array(range, { maxLength: 20 }), async (ranges) => {
        let wrong = ranges.length;
        await opened.readAll(ranges, (part, i) => {
          const { start, length } = ranges[i]!;
          if (part.equals(bytes.subarray(start, start + length))) wrong--;
        });
        expect(wrong).toBe(0);
      }),
    );
  });

  it('reads neighbours at once, but never more bytes than allowed', async () => {
    const path = await file('zero.bin', new Uint8Array(2 * LIMITS.readBytesMax));
    const opened = await PositionedFile.open(path);
    const half = LIMITS.readBytesMax / 2;
    const buffers = async (starts: readonly number[], length: number) => {
      const seen = new Set<ArrayBufferLike>();
      const sizes: number[] = [];
      await opened.readAll(
        starts.map((start) => ({ start, length })),
        ({ buffer }) => {
          seen.add(buffer);
          sizes.push(buffer.byteLength);
        },
      );
      return { count: seen.size, largest: Math.max(...sizes) };
    };
    expect(await buffers([0, half], half)).toEqual({ count: 1, largest: 2 * half });
    expect(await buffers([0, half, 2 * half], half)).toEqual({ count: 2, largest: 2 * half });
    // What lies between ranges that are far apart is not read.
    expect(await buffers([0, 1_000_000], 10)).toEqual({ count: 1, largest: 20 });
  });
});

describe('what is no array, or changes', () => {
  const good = npy('<f4', [2, 3], [1, 2, 3, 4, 5, 6]);
  const lying = (shape: readonly number[]) => npy('<f4', shape, [1, 2, 3]);
  const table: [string, Uint8Array | null, string, RegExp][] = [
    ['missing', null, 'DP_DATA_MISSING', /does not exist/],
    ['empty', new Uint8Array(0), 'DP_DATA_CORRUPT', /empty/],
    ['truncated', good.subarray(0, good.length - 4), 'DP_DATA_CORRUPT', /24 bytes; 20 follow/],
    ['cut-header', good.subarray(0, 40), 'DP_DATA_CORRUPT', /header ends after/],
    ['lying', lying([2 ** 31, 2 ** 31]), 'DP_DATA_CORRUPT', /its header says shape/],
    ['no-rows', lying([0, 3]).subarray(0, -12), 'DP_DATA_CORRUPT', /allowed: 1 to 2147483647/],
    ['no-numbers', lying([3, 0]).subarray(0, -12), 'DP_DATA_CORRUPT', /at least 1 number each/],
    [
      'fortran',
      npy('<f4', [2, 3], [1, 2, 3, 4, 5, 6], { fortran: true }),
      'DP_DATA_CORRUPT',
      /ascontiguousarray/,
    ],
    ['text', Buffer.from('x,y\n1,2\n'), 'DP_DATA_CORRUPT', /neither a .npy nor an IDX/],
    ['gzip', gzipSync(good), 'DP_DATA_CORRUPT', /gunzip/],
    ['idx-cut', idx(8, [2, 2], [1, 2, 3]), 'DP_DATA_CORRUPT', /4 bytes; 3 follow/],
    ['idx-header', idx(8, [2, 2], []).subarray(0, 7), 'DP_DATA_CORRUPT', /header ends early/],
    [
      'objects',
      Buffer.from(good.toString('latin1').replace('<f4', '|O8'), 'latin1'),
      'DP_DATA_CORRUPT',
      /Python objects/,
    ],
  ];
  it.each(table)('%s', async (name, bytes, code, message) => {
    const path = join(folder, `bad-${name}`);
    if (bytes !== null) await writeFile(path, bytes);
    const error = await failure(arraySource({ inputs: path }));
    expect(errorCode(error)).toBe(code);
    expect(errorText(error)).toMatch(message);
    expect(errorText(error)).toContain(path);
  });

  it('a folder', async () => {
    const error = await failure(arraySource({ inputs: folder }));
    expect(errorText(error)).toMatch(/it is a folder; name a file in it/);
  });

  it('integers that float64 would round, with their place', async () => {
    const bytes = npy('<i8', [3], [1, 2, 3]);
    bytes.writeBigInt64LE(2n ** 53n + 1n, bytes.length - 8);
    const error = await failure(arraySource({ inputs: await file('big.npy', bytes) }));
    expect(errorText(error)).toMatch(/element 2 is 9007199254740993/);
  });

  it('files with other counts, no files, wrong fields', async () => {
    const two = await file('two.npy', npy('<f4', [2], [1, 2]));
    const three = await file('three.npy', npy('<f4', [3], [1, 2, 3]));
    const other = await failure(arraySource({ inputs: two, targets: three }));
    expect(errorCode(other)).toBe('DP_DATA_MISMATCH');
    expect(errorText(other)).toMatch(/three\.npy has 3 examples.*two\.npy has 2/);
    const wrong: unknown[] = [{}, null, 'x.npy', { inputs: 3 }, { inputs: { flie: two } }];
    for (const files of wrong) {
      const error = await failure(arraySource(files as Record<string, ArrayField>));
      expect(errorCode(error)).toBe('DP_EXPERIMENT_INVALID');
    }
  });

  it('a file that grows, is cut or vanishes between two reads', async () => {
    const path = await file('live.npy', npy('|u1', [4], [1, 2, 3, 4]));
    const source = await arraySource({ inputs: path });
    expect((await read(source, [2])).inputs).toEqual(Uint8Array.of(3));
    await appendFile(path, Buffer.of(1));
    const error = await failure(read(source, [2]));
    expect(errorCode(error)).toBe('DP_DATA_CORRUPT');
    expect(errorText(error)).toMatch(/live\.npy: it has changed.*start the worker again/);
    await rm(path);
    expect(errorCode(await failure(read(source, [2])))).toBe('DP_DATA_MISSING');
  });
});
