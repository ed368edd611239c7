import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { gzipSync } from 'node:zlib';
import fc from 'fast-check';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { DownpourError, errorCode } from '../../shared/errors.ts';
import { readDataFile } from '../../worker/data/files.ts';
import { parseIdx, readIdx } from '../../worker/data/idx.ts';
import { parseNpy, readNpy } from '../../worker/data/npy.ts';
import { idx, npy } from '../array-files.ts';

let folder: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'downpour-readers-'));
});
afterAll(() => rm(folder, { recursive: true, force: true }));

async function file(name: string, bytes: Uint8Array): Promise<string> {
  const path = join(folder, name);
  await writeFile(path, bytes);
  return path;
}

const code = (promise: Promise<unknown>) => promise.then(() => 'no error', errorCode);

describe('IDX', () => {
  it('reads every element type, big-endian', () => {
    expect(parseIdx(idx(8, [2, 2], [0, 1, 254, 255]), 'x')).toEqual({
      values: Uint8Array.of(0, 1, 254, 255),
      shape: [2, 2],
    });
    expect(parseIdx(idx(9, [2], [-128, 127]), 'x').values).toEqual(Int32Array.of(-128, 127));
    expect(parseIdx(idx(11, [2], [-32768, 515]), 'x').values).toEqual(Int32Array.of(-32768, 515));
    expect(parseIdx(idx(12, [2], [-(2 ** 31), 7]), 'x').values).toEqual(
      Int32Array.of(-(2 ** 31), 7),
    );
    expect(parseIdx(idx(13, [2], [-1.5, 0.25]), 'x').values).toEqual(Float32Array.of(-1.5, 0.25));
    expect(parseIdx(idx(14, [2], [-1.5, 1e-3]), 'x').values).toEqual(Float64Array.of(-1.5, 1e-3));
  });

  it('knows gzip by its first bytes, whatever the name', async () => {
    const bytes = idx(8, [3], [1, 2, 3]);
    for (const name of ['packed-without-ending', 'packed.gz']) {
      const path = await file(name, gzipSync(bytes));
      expect((await readIdx(path)).values).toEqual(Uint8Array.of(1, 2, 3));
    }
    expect((await readIdx(await file('plain.gz', bytes))).values).toEqual(Uint8Array.of(1, 2, 3));
  });

  it('refuses a header that asks for more than the file has, before taking memory', () => {
    for (const shape of [[2 ** 32 - 1], Array(200).fill(2 ** 32 - 1), [4], [2]]) {
      expect(() => parseIdx(idx(13, shape, [1, 2, 3]), 'file.idx')).toThrow(
        /file\.idx: its header says/,
      );
    }
  });

  it('never does anything but read or refuse, whatever is changed or cut', () => {
    const good = idx(12, [3, 2], [1, 2, 3, 4, 5, 6]);
    fc.assert(
      fc.property(
        fc.nat(good.length),
        fc.array(fc.tuple(fc.nat(good.length - 1), fc.nat(255)), { maxLength: 4 }),
        (length, changes) => {
          const bytes = Buffer.from(good);
          for (const [at, value] of changes) bytes[at] = value;
          readsOrRefuses(() => parseIdx(bytes.subarray(0, length), 'x'), good.length);
        },
      ),
      { numRuns: 500 },
    );
  });
});

function readsOrRefuses(
  parse: () => { values: { length: number }; shape: readonly number[] },
  bytesMax: number,
): void {
  try {
    const { values, shape } = parse();
    expect(values.length).toBeLessThanOrEqual(bytesMax);
    expect(shape.reduce((a, b) => a * b, 1)).toBe(values.length);
  } catch (error) {
    if (!(error instanceof DownpourError)) throw error;
    expect(error.code).toBe('DP_DATA_CORRUPT');
  }
}

describe('options of a reader', () => {
  const failure = (promise: Promise<unknown>) =>
    promise.then(String, (error) => `${error.code} ${error.message}`);

  it('that are misspelt or of another kind are refused, with the nearest name', async () => {
    for (const [name, read] of [
      ['readIdx', readIdx],
      ['readNpy', readNpy],
    ] as const) {
      const refused = (options: unknown) => failure(read('x', options as { bytesMax: number }));
      expect(await refused({ byteMax: 1 })).toBe(
        `DP_EXPERIMENT_INVALID ${name}: byteMax is not an option; did you mean 'bytesMax'?`,
      );
      expect(await refused({ bytesMax: '1' })).toContain(
        'bytesMax is "1"; allowed: a number of bytes',
      );
      expect(await refused('gz')).toContain('the options are "gz"; allowed: an object of bytesMax');
      expect(await refused(null)).toContain('the options are null');
      expect(await failure(read(undefined as never))).toContain('the path is undefined');
      expect(await failure(read(new URL('file:///x') as never))).toContain('fileURLToPath');
      expect(await refused({ bytesMax: undefined })).toMatch(/^DP_DATA_MISSING/);
    }
  });
});

describe('npy', () => {
  it('reads the allowed types in both byte orders and all versions', () => {
    for (const order of ['<', '>']) {
      for (const version of [1, 2, 3]) {
        const read = (type: string, numbers: number[]) =>
          parseNpy(npy(order + type, [numbers.length], numbers, { version }), 'x').values;
        expect(read('f4', [1.5, -2])).toEqual(Float32Array.of(1.5, -2));
        expect(read('f8', [1.5, -2])).toEqual(Float64Array.of(1.5, -2));
        expect(read('i2', [-300, 2])).toEqual(Int32Array.of(-300, 2));
        expect(read('i4', [-70_000, 2])).toEqual(Int32Array.of(-70_000, 2));
        expect(read('i8', [-(2 ** 31), 2 ** 31 - 1])).toEqual(
          Int32Array.of(-(2 ** 31), 2 ** 31 - 1),
        );
      }
    }
    expect(parseNpy(npy('|u1', [2], [0, 255]), 'x').values).toEqual(Uint8Array.of(0, 255));
    expect(parseNpy(npy('|i1', [2], [1, 255]), 'x').values).toEqual(Int32Array.of(1, -1));
    expect(parseNpy(npy('|b1', [2], [0, 1]), 'x').values).toEqual(Int32Array.of(0, 1));
  });

  it('reads the bytes that NumPy wrote', async () => {
    // numpy.save of np.asfortranarray([[1, 2, 3], [4, 5, 6]], dtype='>i2'), NumPy 2.4.
    const header =
      "{'descr': '>i2', 'fortran_order': True, 'shape': (2, 3), }".padEnd(117, ' ') + '\n';
    const body = Buffer.from('000100040002000500030006', 'hex');
    const bytes = Buffer.concat([
      Buffer.from('\x93NUMPY\x01\x00\x76\x00', 'latin1'),
      Buffer.from(header),
      body,
    ]);
    expect(await readNpy(await file('fortran.npy', bytes))).toEqual({
      values: Int32Array.of(1, 2, 3, 4, 5, 6),
      shape: [2, 3],
    });
  });

  it('transposes Fortran order of any rank to C order', () => {
    fc.assert(
      fc.property(
        fc.array(fc.integer({ min: 0, max: 4 }), { minLength: 1, maxLength: 4 }),
        (shape) => {
          const size = shape.reduce((a, b) => a * b, 1);
          const fortran: number[] = new Array(size);
          // Element i in C order lies at the offset that its index has when the first axis runs fastest.
          for (let i = 0; i < size; i++) {
            let rest = i;
            let at = 0;
            for (let axis = shape.length - 1; axis >= 0; axis--) {
              const stride = shape.slice(0, axis).reduce((a, b) => a * b, 1);
              at += (rest % shape[axis]!) * stride;
              rest = Math.floor(rest / shape[axis]!);
            }
            fortran[at] = i;
          }
          for (const type of ['|u1', '<i4']) {
            const { values } = parseNpy(npy(type, shape, fortran, { fortran: true }), 'x');
            expect(Array.from(values)).toEqual(Array.from({ length: size }, (_, i) => i));
          }
        },
      ),
    );
  });

  it('reads integers that need more than 32 bits as float64, and names one that it would round', () => {
    const read = (bytes: Buffer) => parseNpy(bytes, 'ids.npy').values;
    /** Elements as hexadecimal digits in big-endian order. */
    const words = (type: string, ...hex: string[]) => {
      const empty = npy(`>${type}`, [0], []).toString('latin1').replace('(0,)', `(${hex.length},)`);
      return Buffer.concat([Buffer.from(empty, 'latin1'), Buffer.from(hex.join(''), 'hex')]);
    };
    for (const value of [2 ** 31, -(2 ** 31) - 1, 2 ** 40, 2 ** 53 - 1, 1 - 2 ** 53]) {
      for (const order of ['<', '>']) {
        expect(read(npy(`${order}i8`, [3], [1, value, -2]))).toEqual(Float64Array.of(1, value, -2));
      }
    }
    expect(read(words('u4', '00000001', 'ffffffff'))).toEqual(Float64Array.of(1, 2 ** 32 - 1));
    expect(read(words('u4', '7fffffff'))).toEqual(Int32Array.of(2 ** 31 - 1));
    expect(read(words('u2', '0001', 'ffff'))).toEqual(Int32Array.of(1, 65535));
    expect(read(words('u8', '0000000000000003'))).toEqual(Int32Array.of(3));
    expect(read(words('u8', '001fffffffffffff'))).toEqual(Float64Array.of(2 ** 53 - 1));
    expect(() => read(words('u8', 'ffffffffffffffff'))).toThrow(
      'ids.npy: element 0 is 18446744073709551615;',
    );
    expect(() => read(words('i8', '0000000000000001', '8000000000000000'))).toThrow(
      'ids.npy: element 1 is -9223372036854775808; float64 holds whole numbers up to 2⁵³ exactly',
    );
    expect(() => read(words('i8', '0020000000000001'))).toThrow('element 0 is 9007199254740993');
  });

  it('reads floats of 16 bits', () => {
    // numpy.array([1, -2, 65504, 2**-24, 2**-14, 0.1, inf], numpy.float16)
    const half = npy('<i2', [7], [0x3c00, -0x4000, 0x7bff, 1, 0x400, 0x2e66, 0x7c00]).toString(
      'latin1',
    );
    const { values } = parseNpy(Buffer.from(half.replace('<i2', '<f2'), 'latin1'), 'x');
    expect(values).toEqual(
      Float32Array.of(1, -2, 65504, 2 ** -24, 2 ** -14, 0.0999755859375, Number.POSITIVE_INFINITY),
    );
  });

  it('reads the same where the elements can be used in their place and where not', () => {
    for (const type of ['<f4', '<f8', '<i4']) {
      const bytes = npy(type, [3], [1, -2, 3]);
      const read = [0, 1, 2, 3, 4, 5, 6, 7].map((offset) => {
        const room = Buffer.alloc(bytes.length + offset);
        bytes.copy(room, offset);
        return parseNpy(room.subarray(offset), 'x').values;
      });
      for (const values of read) expect(values).toEqual(read[0]);
    }
  });

  it('names a type it does not read, and what to do', () => {
    const of = (descr: string) => {
      const bytes = npy('<f4', [0], []).toString('latin1').replace("'<f4'", descr);
      const buffer = Buffer.from(bytes, 'latin1');
      buffer.writeUInt16LE(buffer.length - 10, 8);
      return () => parseNpy(buffer, 'x.npy');
    };
    const kinds = {
      "'<c16'": "x.npy: its elements ('<c16') are complex numbers",
      "'|O'": 'Python objects; give the array a type of numbers',
      "'<U5'": 'texts; save numbers',
      "'|S3'": 'texts; save numbers',
      "'<M8[ns]'": 'dates; save numbers',
      "'<m8[s]'": 'durations; save numbers',
      "'|V2'": 'raw bytes (numpy knows no bfloat16)',
      "'<f16'": 'floats of another size',
      "[('x', '<f4'), ('descr', '<f4')]": 'it has named fields (a structured type)',
      "'<q9'": "elements of type '<q9'; allowed: b1, i1",
    };
    for (const [descr, problem] of Object.entries(kinds)) expect(of(descr)).toThrow(problem);
    expect(of("'<f4'")().values.length).toBe(0);
  });

  it('names another kind of file', () => {
    const zip = Buffer.from(
      'PK\x03\x04\x2d\0\0\0\0\0\0\0!\0............\x09\0\x14\0arr_0.npy',
      'latin1',
    );
    expect(() => parseNpy(zip, 'a.npz')).toThrow(
      'a.npz: not a .npy file but an .npz archive of several arrays; save each',
    );
    expect(() => parseNpy(Buffer.from('x,y\n1,2\n'), 'x')).toThrow('does not begin with');
    expect(() => parseIdx(npy('<f4', [1], [1]), 'x')).toThrow(
      'not an IDX file but a .npy file; readNpy reads it',
    );
  });

  it('never does anything but read or refuse, whatever is changed or cut', () => {
    const good = npy('<i4', [3, 2], [1, 2, 3, 4, 5, 6], { fortran: true });
    fc.assert(
      fc.property(
        fc.nat(good.length),
        fc.array(fc.tuple(fc.nat(good.length - 1), fc.nat(255)), { maxLength: 4 }),
        fc.boolean(),
        (length, changes, whole) => {
          const bytes = Buffer.from(good);
          for (const [at, value] of changes) bytes[at] = value;
          readsOrRefuses(
            () => parseNpy(whole ? bytes : bytes.subarray(0, length), 'x'),
            good.length,
          );
        },
      ),
      { numRuns: 1000 },
    );
    const huge = npy('<f4', [10 ** 12, 10 ** 12], [1]);
    expect(() => parseNpy(huge, 'x')).toThrow(/its header says shape/);
  });
});

describe('a data file', () => {
  it('that is not there is DP_DATA_MISSING with its path and what to do', async () => {
    const path = join(folder, 'nowhere', 'x.idx');
    await expect(readIdx(path)).rejects.toMatchObject({
      code: 'DP_DATA_MISSING',
      message: expect.stringMatching(/nowhere.*x\.idx does not exist; .*DOWNPOUR_DATA/),
    });
    expect(await code(readIdx(folder))).toBe('DP_DATA_MISSING');
  });

  it('of truncated gzip is DP_DATA_CORRUPT with its name, wherever it was cut', async () => {
    const packed = gzipSync(
      idx(
        8,
        [2000],
        Array.from({ length: 2000 }, (_, i) => (i * i) % 251),
      ),
    );
    for (const length of [3, 10, 30, packed.length - 9, packed.length - 4, packed.length - 1]) {
      const path = await file('cut.gz', packed.subarray(0, length));
      await expect(readIdx(path)).rejects.toMatchObject({
        code: 'DP_DATA_CORRUPT',
        message: expect.stringContaining('cut.gz: the gzip data end too early'),
      });
    }
  });

  it('of damaged gzip is DP_DATA_CORRUPT: content, checksum, length', async () => {
    const packed = gzipSync(
      idx(
        8,
        [2000],
        Array.from({ length: 2000 }, (_, i) => (i * i) % 251),
      ),
    );
    for (const at of [200, packed.length - 6, packed.length - 2]) {
      const bytes = Buffer.from(packed);
      bytes[at]! ^= 0x55;
      expect(await code(readIdx(await file('damaged.gz', bytes)))).toBe('DP_DATA_CORRUPT');
    }
  });

  it('that unpacks to more than is allowed is refused, on both sides of the limit', async () => {
    const path = await file('bomb.gz', gzipSync(Buffer.alloc(1_000_000)));
    expect((await readDataFile(path, { bytesMax: 1_000_000 })).length).toBe(1_000_000);
    expect(await code(readDataFile(path, { bytesMax: 999_999 }))).toBe('DP_DATA_CORRUPT');
    const plain = await file('plain', Buffer.alloc(100));
    expect((await readDataFile(plain, { bytesMax: 100 })).length).toBe(100);
    expect(await code(readDataFile(plain, { bytesMax: 99 }))).toBe('DP_DATA_CORRUPT');
  });
});
