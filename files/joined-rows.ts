import { concatFloats } from '../shared/codec.ts';
import { DownpourError } from '../shared/errors.ts';
import { type KeyedRows, wholeKeys } from '../shared/row-groups.ts';

/**
 * The rows of a checkpoint that continues others: those of the oldest file that no later one has, then those of the next
 * one, and so on. Only keys are held. All else is read from the files where it is asked for.
 */

/** Tensors that are read in pieces. */
export interface TensorSource {
  /** In the order of the file. */
  readonly tensors: readonly { readonly name: string; readonly shape: readonly number[] }[];
  /** Elements of a tensor; 0: there is none. */
  size(name: string): number;
  /** Elements [start, start + count). @throws DownpourError DP_CHECKPOINT_CORRUPT or DP_DISK. */
  read(name: string, start: number, count: number): Promise<Float32Array>;
}

/** One of the files. */
export interface RowsLink {
  readonly tensors: TensorSource;
  /** That continue those of the link before; none: all of it is here. */
  readonly groups: readonly KeyedRows[];
}

/** The rows of one file that no later one has. */
interface Segment {
  readonly tensors: TensorSource;
  /** Rows in the file. */
  readonly count: number;
  /** Which of them; null: all. */
  readonly rows: Int32Array | null;
}

interface Joined {
  /** Oldest first. */
  readonly segments: readonly Segment[];
  /** Numbers of a row. */
  readonly width: number;
  readonly size: number;
}

const liveOf = ({ rows, count }: Segment) => rows?.length ?? count;

/**
 * @param links oldest first, the first one with all rows. @returns the newest one's tensors, with the rows of all.
 * @throws DownpourError DP_CHECKPOINT_CORRUPT: they do not belong together.
 */
export async function joinRows(links: readonly RowsLink[]): Promise<TensorSource> {
  const newest = links.at(-1)!;
  const joined = new Map<string, Joined>();
  const gone = new Set<string>();
  for (const group of newest.groups) {
    const segments = await segmentsOf(links, group);
    for (const name of [group.keys, ...group.fields]) {
      const width = name === group.keys ? 2 : widthOf(name, segments);
      const rows = segments.reduce((sum, segment) => sum + liveOf(segment), 0);
      joined.set(name, { segments, width, size: rows * width });
    }
    if (group.gone !== undefined) gone.add(group.gone);
  }
  return {
    tensors: newest.tensors.tensors.flatMap(({ name, shape }) =>
      gone.has(name) ? [] : { name, shape: joined.has(name) ? [joined.get(name)!.size] : shape },
    ),
    size: (name) => (gone.has(name) ? 0 : (joined.get(name)?.size ?? newest.tensors.size(name))),
    async read(name, start, count) {
      const of = joined.get(name);
      return of ? readRows(name, of, start, count) : newest.tensors.read(name, start, count);
    },
  };
}

/** Where the rows of a group are, the newest of each key. */
async function segmentsOf(links: readonly RowsLink[], group: KeyedRows): Promise<Segment[]> {
  const segments: Segment[] = [];
  const later = new Set<number>();
  for (const { tensors, groups } of links.toReversed()) {
    const own = groups.find(({ keys }) => keys === group.keys);
    const keys = await keysIn(tensors, group.keys);
    const live = keys.flatMap((key, i) => (later.has(key) ? [] : i));
    const rows = live.length === keys.length ? null : Int32Array.from(live);
    segments.push({ tensors, count: keys.length, rows });
    // All of the group is here: what is older is of no use.
    if (!own) return segments.reverse();
    for (const key of keys) later.add(key);
    if (own.gone !== undefined) for (const key of await keysIn(tensors, own.gone)) later.add(key);
  }
  throw unjoined(group.keys, 'no file has all of its rows');
}

async function keysIn(tensors: TensorSource, name: string): Promise<number[]> {
  return wholeKeys(await tensors.read(name, 0, tensors.size(name)));
}

/** 0: no file has anything of it. */
function widthOf(name: string, segments: readonly Segment[]): number {
  let width = 0;
  for (const { tensors, count } of segments) {
    const size = tensors.size(name);
    if (size === 0) continue;
    const own = size / count;
    if (!Number.isInteger(own) || (width > 0 && own !== width)) {
      throw unjoined(name, `it has ${size} elements for ${count} rows in one of them`);
    }
    width = own;
  }
  return width;
}

async function readRows(
  name: string,
  { segments, width, size }: Joined,
  start: number,
  count: number,
): Promise<Float32Array> {
  if (count === 0) return new Float32Array();
  if (start + count > size) throw unjoined(name, `it has ${size} elements`);
  const first = Math.floor(start / width);
  const end = Math.ceil((start + count) / width);
  const parts: Float32Array[] = [];
  let before = 0;
  for (const segment of segments) {
    const from = Math.max(first - before, 0);
    const to = Math.min(end - before, liveOf(segment));
    if (from < to) parts.push(await readSegment(name, segment, width, from, to));
    before += liveOf(segment);
  }
  const skipped = start - first * width;
  return concatFloats(parts).subarray(skipped, skipped + count);
}

/** Rows [from, to) of those that count. */
async function readSegment(
  name: string,
  { tensors, rows }: Segment,
  width: number,
  from: number,
  to: number,
): Promise<Float32Array> {
  const count = to - from;
  // A flag that this file has of no row.
  if (tensors.size(name) === 0) return new Float32Array(width * count);
  if (!rows) return tensors.read(name, width * from, width * count);
  const first = rows[from]!;
  const span = rows[to - 1]! + 1 - first;
  const read = await tensors.read(name, width * first, width * span);
  const out = new Float32Array(width * count);
  for (let i = 0; i < count; i++) {
    const at = width * (rows[from + i]! - first);
    out.set(read.subarray(at, at + width), width * i);
  }
  return out;
}

const unjoined = (name: string, what: string) =>
  new DownpourError(
    'DP_CHECKPOINT_CORRUPT',
    `tensor '${name}' of a checkpoint and those that it continues do not fit together: ${what}; resume from an older checkpoint`,
  );
