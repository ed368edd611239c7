import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import {
  BLOCK,
  checkTopk,
  decodeGradient,
  ENCODINGS,
  type Encoding,
  encodeBf16,
  encodedBytes,
  encodeInt8,
  encodeTopk,
  gradientBytes,
} from '../../shared/compression.ts';
import { DownpourError } from '../../shared/errors.ts';
import { random } from '../../shared/random.ts';

/** Lengths around the block of 256 and the vector of 4 and 16. */
const lengths = fc.oneof(fc.integer({ min: 1, max: 40 }), fc.integer({ min: 250, max: 600 }));
const seeds = fc.integer({ min: 0, max: 2 ** 31 });

function gaussian(n: number, seed: number, scale = 1): Float32Array {
  const draw = random(seed, 1);
  return Float32Array.from({ length: n }, () => scale * draw.normal());
}

function through(
  encoding: Encoding,
  values: Float32Array,
  { k = values.length, residual = null }: { k?: number; residual?: Float32Array | null } = {},
): { decoded: Float32Array; bytes: Uint8Array } {
  // Dirt, so that padding that is not written shows.
  const bytes = new Uint8Array(encodedBytes(encoding, values.length, k)).fill(0xa5);
  if (encoding === 'f32') bytes.set(new Uint8Array(values.buffer, 0, values.byteLength));
  else if (encoding === 'bf16') encodeBf16(values, bytes);
  else if (encoding === 'int8') encodeInt8(values, residual, bytes);
  else encodeTopk(values, k, bytes);
  const decoded = new Float32Array(values.length);
  decodeGradient(encoding, bytes, decoded);
  return { decoded, bytes };
}

describe('sizes', () => {
  test('of 1,000 elements', () => {
    expect(ENCODINGS.map((encoding) => encodedBytes(encoding, 1000, 10))).toEqual([
      4000,
      2000,
      4 * 4 + 1000,
      84,
    ]);
    expect(encodedBytes('bf16', 3)).toBe(8);
    expect(encodedBytes('int8', 257)).toBe(8 + 260);
  });

  test.each(ENCODINGS)('a %s payload of another size is refused with both sizes', (encoding) => {
    const { bytes } = through(encoding, gaussian(300, 1), { k: 5 });
    const payload = new Uint8Array(bytes.length + 8);
    payload.set(bytes);
    expect(gradientBytes(encoding, payload, 300, 8)).toBe(bytes.length);
    for (const wrong of [payload.subarray(0, -4), new Uint8Array(0)]) {
      expect(() => gradientBytes(encoding, wrong, 300, 8)).toThrow(
        `has ${wrong.length} bytes; ${encoding}`,
      );
    }
  });

  test('topk cannot say more elements than there are', () => {
    const payload = new Uint8Array(12);
    new DataView(payload.buffer).setUint32(0, 2 ** 31, true);
    expect(() => gradientBytes('topk', payload, 300, 0)).toThrow(/2147483648 elements/);
  });
});

describe('bf16', () => {
  test('is off by at most half of its last bit, a 256th', () => {
    fc.assert(
      fc.property(lengths, seeds, (n, seed) => {
        const values = gaussian(n, seed, 10 ** ((seed % 60) - 30));
        const { decoded } = through('bf16', values);
        for (let i = 0; i < n; i++) {
          expect(Math.abs(decoded[i]! - values[i]!)).toBeLessThanOrEqual(
            Math.abs(values[i]!) / 256,
          );
        }
      }),
    );
  });

  test('rounds ties to even, and keeps what is not finite', () => {
    const bits = (x: number) => new Float32Array(new Uint32Array([x]).buffer)[0]!;
    const values = Float32Array.from([
      bits(0x3f80_8000),
      bits(0x3f81_8000),
      bits(0x3f80_8001),
      Number.NaN,
      Infinity,
      -Infinity,
      bits(0x7f7f_ffff),
      -0,
    ]);
    const { decoded } = through('bf16', values);
    const expected = [bits(0x3f80_0000), bits(0x3f82_0000), bits(0x3f81_0000)];
    expect([...decoded]).toEqual([...expected, Number.NaN, Infinity, -Infinity, Infinity, -0]);
  });

  test('a NaN whose only bits are in the lower half stays NaN', () => {
    const values = new Float32Array(new Uint32Array([0x7f80_0001]).buffer);
    expect(through('bf16', values).decoded[0]).toBeNaN();
  });
});

describe('int8', () => {
  test('is off by at most half a scale; the largest of a block is exact to rounding', () => {
    fc.assert(
      fc.property(lengths, seeds, (n, seed) => {
        const values = gaussian(n, seed, 10 ** ((seed % 30) - 15));
        const { decoded } = through('int8', values);
        for (let start = 0; start < n; start += BLOCK) {
          const block = values.subarray(start, start + BLOCK);
          const largest = Math.max(...block.map(Math.abs));
          block.forEach((value, i) => {
            expect(Math.abs(decoded[start + i]! - value)).toBeLessThanOrEqual(
              (largest / 127) * 0.500001,
            );
          });
        }
      }),
    );
  });

  test('error feedback: what was sent and what is left add up to what there was', () => {
    const n = 700;
    const residual = new Float32Array(n);
    const sum = new Float64Array(n);
    const sent = new Float64Array(n);
    for (let step = 0; step < 50; step++) {
      const values = gaussian(n, step);
      const { decoded } = through('int8', values, { residual });
      for (let i = 0; i < n; i++) {
        sum[i]! += values[i]!;
        sent[i]! += decoded[i]!;
      }
    }
    // Without feedback the difference would grow with the square root of the steps: 0.06.
    for (let i = 0; i < n; i++)
      expect(Math.abs(sum[i]! - sent[i]! - residual[i]!)).toBeLessThan(1e-4);
    expect(Math.max(...residual.map(Math.abs))).toBeLessThan(0.05);
  });

  test.each([Number.NaN, Infinity, -Infinity])('a block with %s is not a number', (bad) => {
    const values = gaussian(600, 3);
    values[300] = bad;
    const { decoded } = through('int8', values);
    expect(decoded.findIndex(Number.isNaN)).toBe(256);
    expect(decoded.findLastIndex(Number.isNaN)).toBe(511);
  });

  test('zeros and the smallest numbers there are give zeros or themselves, not NaN', () => {
    const values = new Float32Array(512);
    values[300] = 1e-44;
    expect(Math.max(...through('int8', values).decoded.map(Math.abs))).toBeLessThanOrEqual(1e-44);
  });
});

describe('topk', () => {
  test('sends the k largest, first come of equal ones, and zeros for the rest', () => {
    fc.assert(
      fc.property(lengths, seeds, fc.boolean(), (n, seed, coarse) => {
        const values = gaussian(n, seed);
        // Many equal sizes.
        if (coarse) for (let i = 0; i < n; i++) values[i] = Math.round(values[i]!);
        const k = 1 + (seed % n);
        const { decoded } = through('topk', values, { k });
        const order = [...values.keys()].sort(
          (a, b) => Math.abs(values[b]!) - Math.abs(values[a]!) || a - b,
        );
        const expected = new Float32Array(n);
        for (const i of order.slice(0, k)) expected[i] = values[i]!;
        expect([...decoded]).toEqual([...expected]);
      }),
    );
  });

  test.each([
    ['an index twice', [3, 3]],
    ['a falling index', [5, 2]],
    ['an index out of range', [1, 300]],
  ])('%s is refused', (_, indices) => {
    const bytes = new Uint8Array(encodedBytes('topk', 300, 2));
    new Uint32Array(bytes.buffer).set([2, ...indices]);
    expect(() => checkTopk(bytes, 300)).toThrow(DownpourError);
  });
});
