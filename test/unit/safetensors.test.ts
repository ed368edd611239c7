import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { DownpourError, errorCode } from '../../shared/errors.ts';
import {
  decodeSafetensorsHeader,
  encodeSafetensorsHeader,
  HEADER_BYTES_MAX,
  safetensorsHeaderLength,
} from '../../shared/safetensors.ts';

const spec = fc.record({
  name: fc.string({ maxLength: 20, unit: 'grapheme' }).filter((name) => name !== '__metadata__'),
  shape: fc.array(fc.integer({ min: 0, max: 7 }), { maxLength: 4 }),
});
const specs = fc.uniqueArray(spec, { maxLength: 12, selector: ({ name }) => name });

function entriesOf(tensors: readonly { name: string; shape: number[] }[]) {
  return tensors.map((t) => ({ ...t, byteLength: 4 * t.shape.reduce((a, b) => a * b, 1) }));
}

/** A file with that header text and so many bytes of data. */
function fileOf(header: string, dataBytes: number): Uint8Array {
  const json = new TextEncoder().encode(header);
  const file = new Uint8Array(8 + json.length + dataBytes);
  new DataView(file.buffer).setBigUint64(0, BigInt(json.length), true);
  file.set(json, 8);
  return file;
}

describe('the header of a safetensors file', () => {
  it('comes back as it was written, its data aligned to 8 bytes', () => {
    fc.assert(
      fc.property(specs, fc.dictionary(fc.string(), fc.string()), (tensors, metadata) => {
        const entries = entriesOf(tensors);
        const bytes = encodeSafetensorsHeader(entries, metadata);
        const dataBytes = entries.reduce((sum, e) => sum + e.byteLength, 0);
        const header = decodeSafetensorsHeader(bytes, bytes.length + dataBytes);
        expect(header.dataStart).toBe(bytes.length);
        expect(header.dataStart % 8).toBe(0);
        expect({ ...header.metadata }).toEqual({ ...metadata });
        const byName = new Map(header.tensors.map((t) => [t.name, t]));
        expect(byName.size).toBe(entries.length);
        let begin = 0;
        for (const { name, shape, byteLength } of entries) {
          const end = begin + byteLength;
          expect(byName.get(name)).toEqual({ name, dtype: 'F32', shape, begin, end });
          begin = end;
        }
      }),
    );
  });

  it('is read from a file that the Python library wrote', () => {
    // safetensors 0.8.0: save({b: f32 [[1.5, -2], [3, 4]], a: f32 7, empty: f32 (0, 3), labels: u8}).
    const file = Buffer.from(
      'CAEAAAAAAAB7Il9fbWV0YWRhdGFfXyI6eyJieSI6Im51bXB5In0sImEiOnsiZHR5cGUiOiJGMzIiLCJzaGFwZSI6W10s' +
        'ImRhdGFfb2Zmc2V0cyI6WzAsNF19LCJiIjp7ImR0eXBlIjoiRjMyIiwic2hhcGUiOlsyLDJdLCJkYXRhX29mZnNldHMi' +
        'Ols0LDIwXX0sImVtcHR5Ijp7ImR0eXBlIjoiRjMyIiwic2hhcGUiOlswLDNdLCJkYXRhX29mZnNldHMiOlsyMCwyMF19' +
        'LCJsYWJlbHMiOnsiZHR5cGUiOiJVOCIsInNoYXBlIjpbM10sImRhdGFfb2Zmc2V0cyI6WzIwLDIzXX19ICAgICAAAOBA' +
        'AADAPwAAAMAAAEBAAACAQAEC+g==',
      'base64',
    );
    const { tensors, metadata, dataStart } = decodeSafetensorsHeader(file);
    expect({ ...metadata }).toEqual({ by: 'numpy' });
    expect(tensors.map(({ name, dtype, shape }) => [name, dtype, shape])).toEqual([
      ['a', 'F32', []],
      ['b', 'F32', [2, 2]],
      ['empty', 'F32', [0, 3]],
      ['labels', 'U8', [3]],
    ]);
    const b = tensors[1]!;
    const data = file.subarray(dataStart + b.begin, dataStart + b.end);
    expect([0, 4, 8, 12].map((i) => data.readFloatLE(i))).toEqual([1.5, -2, 3, 4]);
  });

  it.each([
    ['nothing', new Uint8Array(0), /0 bytes/],
    ['less than a length', new Uint8Array(7), /7 bytes/],
    ['a length beyond the file', fileOf('{}', 0).fill(9, 0, 1), /header of 9 bytes/],
    ['a length beyond the limit', fileOf('{}', 0).fill(255, 0, 8), /at most 67108864/],
    ['text that is no JSON', fileOf('{"a":', 0), /not JSON/],
    ['an array', fileOf('[]', 0), /not JSON/],
    ['space before the header', fileOf(' {}', 0), /not JSON/],
    ['bytes that are not UTF-8', fileOf('{}', 0).fill(0xff, 9, 10), /not JSON/],
    ['data without a tensor', fileOf('{}', 1), /take 0 bytes, its data has 1/],
    ['an entry that is no object', fileOf('{"a":1}', 0), /"a" is not an object/],
    ['an unknown type', one('F8', '[1]', '[0,4]'), /"F8", read are F32/],
    ['an inherited type', one('toString', '[1]', '[0,4]'), /"toString", read are/],
    ['a negative size', one('F32', '[-1]', '[0,4]'), /shape "\[-1\]"/],
    ['a fractional size', one('F32', '[0.5]', '[0,2]'), /shape/],
    ['a product beyond counting', one('F32', '[4294967296,4294967296]', '[0,4]'), /shape/],
    ['too many dimensions', one('F32', JSON.stringify(Array(33).fill(1)), '[0,4]'), /shape/],
    ['a shape that is no list', one('F32', '1', '[0,4]'), /shape "1"/],
    ['offsets that contradict the shape', one('F32', '[2]', '[0,4]'), /its shape takes 8/],
    ['offsets backwards', one('F32', '[1]', '[4,0]'), /lies at "\[4,0\]"/],
    ['negative offsets', one('F32', '[1]', '[-4,0]'), /lies at/],
    ['offsets beyond the data', one('F32', '[2]', '[0,8]'), /take 8 bytes, its data has 4/],
    ['three offsets', one('F32', '[1]', '[0,4,4]'), /lies at/],
    ['a hole', one('F32', '[0]', '[4,4]'), /bytes 0 to 4 of its data have no tensor/],
    ['an unknown field', one('F32', '[1]', '[0,4],"extra":1'), /unknown field "extra"/],
    ['metadata that is no text', fileOf('{"__metadata__":{"a":1}}', 0), /"a" is not text/],
    [
      'an overlap',
      fileOf(`{"a":${entry('F32', '[1]', '[0,4]')},"b":${entry('F32', '[1]', '[0,4]')}}`, 4),
      /"b" overlaps/,
    ],
  ])('refuses %s, saying so', (_, file, message) => {
    expect(() => decodeSafetensorsHeader(file)).toThrow(message);
    expect(codeOf(() => decodeSafetensorsHeader(file))).toBe('DP_CHECKPOINT_CORRUPT');
  });

  it('takes a header of the largest size and refuses one byte more', () => {
    const prefix = new Uint8Array(8);
    const view = new DataView(prefix.buffer);
    view.setBigUint64(0, BigInt(HEADER_BYTES_MAX), true);
    expect(safetensorsHeaderLength(prefix, 2 ** 40)).toBe(HEADER_BYTES_MAX);
    view.setBigUint64(0, BigInt(HEADER_BYTES_MAX + 1), true);
    expect(codeOf(() => safetensorsHeaderLength(prefix, 2 ** 40))).toBe('DP_CHECKPOINT_CORRUPT');
  });

  it('is read or refused with its code whatever bytes are changed', () => {
    const entries = entriesOf([
      { name: 'kernel', shape: [3, 2] },
      { name: 'bias', shape: [2] },
    ]);
    const whole = encodeSafetensorsHeader(entries, { run: 'r' });
    const change = fc.tuple(fc.nat(whole.length - 1), fc.nat(255));
    fc.assert(
      fc.property(fc.array(change, { minLength: 1, maxLength: 4 }), (changes) => {
        const bytes = whole.slice();
        for (const [at, value] of changes) bytes[at] = value;
        try {
          for (const t of decodeSafetensorsHeader(bytes, bytes.length + 32).tensors) {
            expect(t.end).toBeLessThanOrEqual(32);
          }
        } catch (error) {
          expect(error).toBeInstanceOf(DownpourError);
        }
      }),
      { numRuns: 2000 },
    );
  });

  it.each([
    ['a name twice', [named('a', 4), named('a', 4)]],
    ['the name of the metadata', [named('__metadata__', 4)]],
    ['a size that contradicts the shape', [named('a', 8)]],
    ['a shape that is none', [{ name: 'a', shape: [Number.NaN], byteLength: 4 }]],
  ])('does not write %s', (_, tensors) => {
    expect(codeOf(() => encodeSafetensorsHeader(tensors))).toBe('DP_LAYOUT_INVALID');
  });
});

function named(name: string, byteLength: number) {
  return { name, shape: [1], byteLength };
}

function entry(dtype: string, shape: string, offsets: string): string {
  return `{"dtype":"${dtype}","shape":${shape},"data_offsets":${offsets}}`;
}

function one(dtype: string, shape: string, offsets: string): Uint8Array {
  return fileOf(`{"a":${entry(dtype, shape, offsets)}}`, 4);
}

function codeOf(action: () => unknown): string {
  try {
    action();
  } catch (error) {
    return errorCode(error);
  }
  return 'no error';
}
