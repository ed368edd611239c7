import { DownpourError } from './errors.ts';
import { mix, STREAMS } from './random.ts';
import type { RowShape, TableRows } from './rows.ts';

/**
 * How the rows of a table are cut over shards. Keys form blocks of as many neighbours as there are shards. Each shard has
 * one key of each block: the block's hash says which. So neighbours, which are the hot rows where ids are sorted by how
 * often they appear, lie on different shards; all shards have equally many rows; and a row has its place on its shard without
 * a map (docs/decisions/0018-sparse-rows.md).
 */

/** The rows that one shard of several has. */
export interface RowShare {
  /** From 0: the server itself. */
  readonly index: number;
  readonly count: number;
}

export const ALL_ROWS: RowShare = { index: 0, count: 1 };

const turnOf = (block: number, count: number) => mix(block, STREAMS.rows) % count;

/** The shard that has the row of a key. */
export function shardOfRow(key: number, count: number): number {
  const block = Math.floor(key / count);
  return (key - block * count + turnOf(block, count)) % count;
}

/** Where the row of a key lies among those of its shard. */
export const placeOfRow = (key: number, { count }: RowShare): number => Math.floor(key / count);

/** The key whose row lies at a place. */
export function keyOfPlace(place: number, { index, count }: RowShare): number {
  return place * count + ((index - turnOf(place, count) + count) % count);
}

/** Rows of a table that one shard has at most. @param rows of the whole table, with ids below it. */
export const rowsOfShare = (rows: number, { count }: RowShare): number => Math.ceil(rows / count);

/** Deviations of a binomial share that rows of a growing table are given room for: 10⁻¹⁵ of all shares are larger. */
const SHARE_DEVIATIONS = 8;

/**
 * Room for rows of a growing table on one shard. A shard admits its part of the maximum, but a table that was full on another
 * number of shards must fit.
 */
export function roomOfShare(rowsMax: number, share: RowShare): number {
  const part = rowsOfShare(rowsMax, share);
  if (share.count === 1) return part;
  return Math.min(rowsMax, part + Math.ceil(SHARE_DEVIATIONS * Math.sqrt(part)) + 1);
}

/** @throws DownpourError DP_ROWS_INVALID: a key is of another shard. */
export function mustBeOwnRows(keys: Uint32Array, share: RowShare, { name }: RowShape): void {
  const { index, count } = share;
  if (count === 1) return;
  for (const key of keys) {
    const owner = shardOfRow(key, count);
    if (owner === index) continue;
    throw new DownpourError(
      'DP_ROWS_INVALID',
      `key ${key} of table '${name}' came to shard ${index}; of ${count} shards, shard ${owner} has it: see docs/protocol.md`,
    );
  }
}

/** How many keys each shard has, and whose each is. */
function ownersOf(keys: Uint32Array, count: number) {
  const owners = new Uint8Array(keys.length);
  const counts = new Array<number>(count).fill(0);
  for (let i = 0; i < keys.length; i++) {
    const owner = shardOfRow(keys[i]!, count);
    owners[i] = owner;
    counts[owner]!++;
  }
  return { owners, counts };
}

/** @param keys of one table, rising. @returns those of each shard, rising. */
export function cutKeys(keys: Uint32Array, count: number): Uint32Array[] {
  const { owners, counts } = ownersOf(keys, count);
  const parts = counts.map((size) => new Uint32Array(size));
  const at = new Uint32Array(count);
  for (let i = 0; i < keys.length; i++) {
    const owner = owners[i]!;
    parts[owner]![at[owner]!++] = keys[i]!;
  }
  return parts;
}

/** @param rows of one table. @returns those of each shard. */
export function cutRows({ keys, values }: TableRows, width: number, count: number): TableRows[] {
  const { owners, counts } = ownersOf(keys, count);
  const parts = counts.map((size) => ({
    keys: new Uint32Array(size),
    values: new Float32Array(size * width),
  }));
  const at = new Uint32Array(count);
  for (let i = 0; i < keys.length; i++) {
    const owner = owners[i]!;
    const part = parts[owner]!;
    const place = at[owner]!++;
    part.keys[place] = keys[i]!;
    for (let k = 0; k < width; k++) part.values[place * width + k] = values[i * width + k]!;
  }
  return parts;
}

/** Rows of one table from all shards, their keys rising again. */
export function mergeRows(parts: readonly TableRows[], width: number): TableRows {
  if (parts.length === 1) return parts[0]!;
  const n = parts.reduce((sum, { keys }) => sum + keys.length, 0);
  const keys = new Uint32Array(n);
  const values = new Float32Array(n * width);
  const at = new Uint32Array(parts.length);
  for (let i = 0; i < n; i++) {
    let from = -1;
    let least = Infinity;
    for (let p = 0; p < parts.length; p++) {
      const key = parts[p]!.keys[at[p]!] ?? Infinity;
      if (key >= least) continue;
      least = key;
      from = p;
    }
    const source = parts[from]!.values;
    const start = at[from]!++ * width;
    keys[i] = least;
    for (let k = 0; k < width; k++) values[i * width + k] = source[start + k]!;
  }
  return { keys, values };
}
