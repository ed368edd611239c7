import type { Layout, PlacedTensor } from './layout.ts';

/**
 * How a run's flat vector is cut into shards: contiguous ranges, so that what a worker exchanges with a
 * shard is one piece of memory on both ends. Both compute it from the layout and the number of shards.
 */

/** Elements [start, end) of the flat vector. */
export interface Range {
  readonly start: number;
  readonly end: number;
}

/** A tensor, or the part of it that lies in one range. */
export interface TensorPiece {
  readonly tensor: PlacedTensor;
  /** The place of its first element in the flat vector. */
  readonly start: number;
  /** Elements. */
  readonly size: number;
}

/** A shard that holds less is not worth its round trip. */
const SHARD_ELEMENTS_MIN = 2 ** 14;
/** A tensor is large, and may be split, from this share of a shard's elements. */
const LARGE_SHARE = 1 / 16;
/** Parts begin at whole blocks of the int8 encoding and of cache lines. */
const SPLIT_MULTIPLE = 256;

/**
 * Ranges of about equal size that cover [0, layout.size). A boundary that falls into a small tensor
 * moves to its nearer end; one in a large tensor splits it.
 * @param shards wanted. @returns at most that many, at least one, none empty: a small model has fewer.
 */
export function partition(layout: Pick<Layout, 'tensors' | 'size'>, shards: number): Range[] {
  const { size } = layout;
  const count = Math.max(1, Math.min(shards, Math.floor(size / SHARD_ELEMENTS_MIN)));
  const share = size / count;
  const ranges: Range[] = [];
  let start = 0;
  for (let k = 1; k <= count; k++) {
    const end = k === count ? size : boundaryAt(layout, Math.round(share * k), share);
    // Two boundaries in one small tensor move to the same end of it.
    if (end > start) ranges.push({ start, end });
    start = Math.max(start, end);
  }
  return ranges;
}

/**
 * Ranges of the shards of a run. If it has tables, each shard has rows: those that have no part of the vector get an empty
 * range at its end.
 */
export function rangesOfRun(
  layout: Pick<Layout, 'tensors' | 'size'>,
  shards: number,
  hasTables: boolean,
): Range[] {
  const ranges = partition(layout, shards);
  const { size } = layout;
  while (hasTables && ranges.length < shards) ranges.push({ start: size, end: size });
  return ranges;
}

function boundaryAt({ tensors }: Pick<Layout, 'tensors'>, wanted: number, share: number): number {
  const tensor = tensors.find(({ offset, size }) => wanted < offset + size);
  if (!tensor || tensor.offset === wanted) return wanted;
  const { offset, size } = tensor;
  if (size >= share * LARGE_SHARE) {
    const blocks = Math.round((wanted - offset) / SPLIT_MULTIPLE);
    return offset + Math.min(size, blocks * SPLIT_MULTIPLE);
  }
  return wanted - offset < offset + size - wanted ? offset : offset + size;
}

/** The tensors, or parts of tensors, that lie in a range, in their order. */
export function piecesOf(
  { tensors }: Pick<Layout, 'tensors'>,
  { start, end }: Range,
): TensorPiece[] {
  const pieces: TensorPiece[] = [];
  for (const tensor of tensors) {
    const from = Math.max(start, tensor.offset);
    const to = Math.min(end, tensor.offset + tensor.size);
    if (to > from) pieces.push({ tensor, start: from, size: to - from });
  }
  return pieces;
}

/**
 * The layout of one range by itself: tensors and parts of tensors, with offsets within the range. A part
 * keeps the name, role and shape of its whole tensor, and has its own size.
 */
export function rangeLayout(layout: Layout, range: Range): Layout {
  const { start, end } = range;
  if (start === 0 && end === layout.size) return layout;
  const { trainableSize, exchangedSize } = layout;
  const within = (from: number, to: number) =>
    Math.max(0, Math.min(end, to) - Math.max(start, from));
  return {
    tensors: piecesOf(layout, range).map(({ tensor, start: first, size }) => ({
      ...tensor,
      offset: first - start,
      size,
    })),
    trainableSize: within(0, trainableSize),
    statisticsSize: within(trainableSize, exchangedSize),
    frozenSize: within(exchangedSize, layout.size),
    exchangedSize: within(0, exchangedSize),
    size: end - start,
    hash: layout.hash,
  };
}
