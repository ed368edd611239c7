import fc from 'fast-check';
import { Packr } from 'msgpackr';
import { expect, test } from 'vitest';
import { decodeFrame, encodeHeader, writeHeader } from '../../shared/codec.ts';
import { packInto } from '../../shared/pack.ts';

/** The packer of headers beside msgpackr: the same bytes, or none. */

const packr = new Packr({ useRecords: false, variableMapSize: true, encodeUndefinedAsNil: false });
const ascii = fc.string({ unit: 'binary-ascii', maxLength: 300 });
const number = fc.oneof(
  fc.integer({ min: 0, max: 300 }),
  fc.integer({ min: 0, max: 70_000 }),
  fc.maxSafeInteger(),
  fc.double(),
);
const { value } = fc.letrec((tie) => ({
  value: fc.oneof(
    { maxDepth: 3 },
    number,
    ascii,
    fc.boolean(),
    fc.constant(null),
    fc.array(tie('value'), { maxLength: 20 }),
    fc.dictionary(ascii, tie('value'), { maxKeys: 20, noNullPrototype: true }),
  ),
}));

test('what it packs is what msgpackr packs, to the byte', () => {
  let packed = 0;
  fc.assert(
    fc.property(value, (each) => {
      const out = new Uint8Array(100_000).fill(0xff);
      const end = packInto(each, out, 1);
      if (end === 0) return;
      packed++;
      expect(Buffer.compare(out.subarray(1, end), packr.pack(each))).toBe(0);
      expect(out[end]).toBe(0xff);
    }),
    { numRuns: 1_000 },
  );
  // It would be right to pack nothing, and of no use.
  expect(packed).toBeGreaterThan(300);
});

test('it leaves alone what it does not know, and what does not fit', () => {
  const strange = ['é', undefined, 1n, new Map(), new Date(0), -1, { a: { b: 'é' } }, [undefined]];
  const out = new Uint8Array(1_000);
  for (const each of strange) expect(packInto(each, out, 8)).toBe(0);
  const work = { type: 'work', leases: [{ id: 3, part: 'train' }], loss: 0.5, none: null };
  const { length } = packr.pack(work);
  for (let room = 0; room < length; room++) {
    expect(packInto(work, new Uint8Array(8 + room), 8)).toBe(0);
  }
});

test('a header that is written in place is the one that is encoded apart', () => {
  for (let length = 0; length < 20; length++) {
    const header = { type: 'x'.repeat(length) };
    const out = new Uint8Array(100).fill(0xff);
    const end = writeHeader(header, out, 14);
    expect(out.subarray(14, end)).toEqual(encodeHeader(header));
    expect(decodeFrame(out.slice(14, end)).header).toEqual(header);
  }
});
