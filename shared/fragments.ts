import { BLOCK } from './compression.ts';
import type { Layout } from './layout.ts';
import type { Range } from './partition.ts';

/**
 * Fragments of streaming DiLoCo (Douillard et al. 2025, arXiv:2501.18512): an exchange after local steps carries one part
 * of the parameters, the next exchange the next part. Worker and server compute from the layout where each lies. With
 * shards, a fragment has its share of each shard's range, so that all shards have the same work.
 */

/** Fragment `index` of `count`; `WHOLE` is all of the parameters. */
export interface Fragment {
  readonly index: number;
  readonly count: number;
}

export const WHOLE: Fragment = { index: 0, count: 1 };

/** What of one range, a shard's or all, is exchanged: elements of the whole vector. */
export interface FragmentPiece {
  /** Trainable elements. */
  readonly gradient: Range;
  /** Statistics: all of the range, whichever fragment it is. */
  readonly statistics: Range;
}

/**
 * Elements of a fragment among the first `trainableSize` of a range. It begins at a whole block of the int8 encoding.
 * Empty where there are fewer blocks than fragments.
 */
export function fragmentOf(trainableSize: number, { index, count }: Fragment): Range {
  const blocks = Math.ceil(trainableSize / BLOCK);
  const at = (k: number) => Math.min(trainableSize, BLOCK * Math.floor((blocks * k) / count));
  return { start: at(index), end: at(index + 1) };
}

/**
 * A fragment in each of the ranges. In a payload they follow each other in this order: of each the trainable elements,
 * then the statistics. Statistics lie behind all trainable elements, so these come first in the payload too.
 */
export function fragmentPieces(
  { trainableSize, exchangedSize }: Pick<Layout, 'trainableSize' | 'exchangedSize'>,
  ranges: readonly Range[],
  fragment: Fragment,
): FragmentPiece[] {
  return ranges.map(({ start, end }) => {
    const split = Math.max(start, Math.min(end, trainableSize));
    const last = Math.max(split, Math.min(end, exchangedSize));
    const part = fragmentOf(split - start, fragment);
    return {
      gradient: { start: start + part.start, end: start + part.end },
      statistics: { start: split, end: last },
    };
  });
}

/** Elements of a piece. */
export const pieceSize = ({ gradient, statistics }: FragmentPiece): number =>
  gradient.end - gradient.start + statistics.end - statistics.start;

/** @returns why a model cannot be cut into so many fragments, and what to do; null: it can. */
export function fragmentsProblem(
  { trainableSize }: Pick<Layout, 'trainableSize'>,
  count: number,
): string | null {
  const most = Math.max(1, Math.ceil(trainableSize / BLOCK));
  if (count <= most) return null;
  return `local.fragments is ${count}, and the model has ${trainableSize} trainable parameters; a fragment has at least ${BLOCK}, so ${most} is the most: set local.fragments to ${most} or less`;
}
