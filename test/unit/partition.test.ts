import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { createLayout, type TensorRole } from '../../shared/layout.ts';
import { partition, piecesOf } from '../../shared/partition.ts';

function layoutOf(...sizes: number[]) {
  return createLayout(
    sizes.map((size, i) => ({ name: `t${i}`, shape: [size], role: 'trainable' as const })),
  );
}

const MLP = layoutOf(784 * 256, 256, 2560, 10);

describe('ranges', () => {
  test('one shard holds all', () => {
    expect(partition(MLP, 1)).toEqual([{ start: 0, end: 203_530 }]);
  });

  test('a large tensor is split at a whole block', () => {
    // The half of 203,530 is 101,765, nearest to 398 blocks of 256.
    expect(partition(MLP, 2)).toEqual([
      { start: 0, end: 101_888 },
      { start: 101_888, end: 203_530 },
    ]);
  });

  test('a small tensor stays whole, in the shard that it mostly lies in', () => {
    expect(partition(layoutOf(49_000, 2_000, 49_000), 2)[0]).toEqual({ start: 0, end: 51_000 });
    expect(partition(layoutOf(49_500, 2_000, 48_500), 2)[0]).toEqual({ start: 0, end: 49_500 });
  });

  test('a small model has fewer shards than asked for', () => {
    expect(partition(layoutOf(10), 8)).toEqual([{ start: 0, end: 10 }]);
    expect(partition(layoutOf(50_000), 8).length).toBe(3);
  });

  test('cover every element once, in balance, whatever the tensors', () => {
    const sizes = fc.array(fc.integer({ min: 0, max: 60_000 }), { minLength: 1, maxLength: 40 });
    const roles = fc.array(fc.constantFrom<TensorRole>('trainable', 'statistics', 'frozen'));
    fc.assert(
      fc.property(sizes, roles, fc.integer({ min: 1, max: 9 }), (lengths, kinds, shards) => {
        const layout = createLayout([
          { name: 'first', shape: [1], role: 'trainable' },
          ...lengths.map((size, i) => {
            const role = kinds[i] ?? 'trainable';
            const momentum = role === 'statistics' ? { momentum: 0.9 } : {};
            return { name: `t${i}`, shape: [size], role, ...momentum };
          }),
        ]);
        const ranges = partition(layout, shards);
        expect(ranges.length).toBeLessThanOrEqual(shards);
        let at = 0;
        for (const range of ranges) {
          expect(range.start).toBe(at);
          expect(range.end).toBeGreaterThan(range.start);
          at = range.end;
          const pieces = piecesOf(layout, range);
          expect(pieces.reduce((sum, piece) => sum + piece.size, 0)).toBe(range.end - range.start);
          // Each boundary moves by at most half a small tensor, a 32nd of a share, or half a block.
          const share = layout.size / ranges.length;
          if (ranges.length === shards) {
            expect(range.end - range.start).toBeLessThan(share * (1 + 2 / 32) + 2 * 256);
          }
        }
        expect(at).toBe(layout.size);
      }),
    );
  });
});
