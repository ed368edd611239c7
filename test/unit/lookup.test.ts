import { expect, test } from 'vitest';
import { lookUpInto } from '../../worker/data/lookup.ts';

const table = Float32Array.from({ length: 256 }, (_, byte) => Math.fround(byte / 255 - 0.13));
const bytes = Uint8Array.from({ length: 300_000 }, (_, i) => (i * 7919) % 256);

/** By the plain loop. */
function expected(pieces: readonly (readonly [start: number, size: number, at: number])[]) {
  const target = new Float32Array(300_000).fill(7);
  for (const [start, size, at] of pieces) {
    for (let j = 0; j < size; j++) target[at + j] = table[bytes[start + j]!]!;
  }
  return target;
}

test.each([
  ['rows behind each other', Array.from({ length: 64 }, (_, i) => [i * 911, 784, i * 784])],
  ['rows of no multiple of four', Array.from({ length: 9 }, (_, i) => [i * 31, 7, i * 7])],
  [
    'rows apart from each other, and backwards',
    [
      [5, 10, 100],
      [50, 10, 20],
      [9, 3, 117],
    ],
  ],
  ['a row of more than is looked up at once', [[1, 200_001, 3]]],
  [
    'rows that end where that ends',
    [
      [0, 65_536, 0],
      [65_536, 65_536, 65_536],
      [3, 1, 131_072],
    ],
  ],
] as [string, [number, number, number][]][])('%s', (_, pieces) => {
  const target = new Float32Array(300_000).fill(7);
  const lookup = lookUpInto(target, table);
  for (const [start, size, at] of pieces) lookup.add(bytes, start, size, at);
  lookup.flush();
  const wanted = expected(pieces);
  // Element by element it would take seconds.
  expect(target.findIndex((value, i) => value !== wanted[i])).toBe(-1);
});

test('a table of another minibatch is another table', () => {
  const target = new Float32Array(2);
  lookUpInto(target, table).flush();
  const doubled = table.map((x) => 2 * x);
  const lookup = lookUpInto(target, doubled);
  lookup.add(Uint8Array.of(3, 200), 0, 2, 0);
  lookup.flush();
  expect([...target]).toEqual([doubled[3], doubled[200]]);
});
