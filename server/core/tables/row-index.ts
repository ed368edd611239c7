import { DownpourError } from '../../../shared/errors.ts';
import { LIMITS } from '../../../shared/limits.ts';
import { mix } from '../../../shared/random.ts';
import {
  keyOfPlace,
  placeOfRow,
  type RowShare,
  roomOfShare,
  rowsOfShare,
  shardOfRow,
} from '../../../shared/row-shards.ts';
import type { TableConfig } from '../../../shared/tables.ts';

/** Where the row of a key is kept: rows have slots, numbered from 0. */
export interface RowIndex {
  /** Most rows that have a slot at once. */
  readonly capacity: number;
  /** Gradients of rows that were dropped. */
  readonly dropped: number;
  /** A push begins: what the one before has admitted stands. */
  begin(): void;
  /** Takes the sightings of the last push back. The slots that it gave are freed one by one. */
  undo(): void;
  /** −1: the row has none, and its values are the initial ones. */
  find(key: number): number;
  /** The same of many keys. @param slots of at least their length. */
  findAll(keys: Uint32Array, slots: Int32Array): void;
  /** The slot of a key in a push, a new one if there is none. −1: the key is not admitted yet, or there is no room. */
  admit(key: number): number;
  /** Gives a key a slot whatever was seen of it. −1: there is no room. */
  insert(key: number): number;
  keyOf(slot: number): number;
  /** Frees the slot of a key. */
  remove(key: number): void;
  /** Forgets all. */
  clear(): void;
  /** Keys that wait to be admitted, with the pushes that had them, the oldest first; and pushes of keys that got no row. */
  state(): RowIndexState;
  restore(state: RowIndexState): void;
}

export interface RowIndexState {
  readonly waiting: readonly (readonly [key: number, sightings: number])[];
  /** Gradients of rows that were dropped: their key is not admitted yet, or there was no room for it. */
  readonly dropped: number;
}

const NOTHING_WAITS: RowIndexState = { waiting: [], dropped: 0 };

/** Most rows of a table that are kept here. */
export function rowCapacity({ rows, rowsMax }: TableConfig, share: RowShare): number {
  return rows === 'hash' ? roomOfShare(rowsMax, share) : rowsOfShare(rows, share);
}

export const fullTable = (name: string, capacity: number) =>
  new DownpourError(
    'DP_LAYOUT_INVALID',
    `table '${name}' has room for ${capacity} rows, and more are given: set tables.${name}.rowsMax higher`,
  );

export function createRowIndex(config: TableConfig, share: RowShare): RowIndex {
  return config.rows === 'hash' ? new HashIndex(config, share) : fixedIndex(config, share);
}

/** Each key has its slot, whatever others there are. */
function fixedIndex(config: TableConfig, share: RowShare): RowIndex {
  const isWhole = share.count === 1;
  const slotOf = isWhole ? (key: number) => key : (key: number) => placeOfRow(key, share);
  return {
    capacity: rowCapacity(config, share),
    dropped: 0,
    begin() {},
    undo() {},
    find: slotOf,
    findAll(keys, slots) {
      if (isWhole) slots.set(keys);
      else for (let i = 0; i < keys.length; i++) slots[i] = slotOf(keys[i]!);
    },
    admit: slotOf,
    insert: slotOf,
    keyOf: isWhole ? (slot) => slot : (slot) => keyOfPlace(slot, share),
    remove() {},
    clear() {},
    state: () => NOTHING_WAITS,
    restore() {},
  };
}

/** In the place of a slot: the key has none. */
const EMPTY = -1;
/**
 * Where keys lie in a map changes no result, so it may differ from process to process. Thus who chooses the keys of a push does
 * not know which of them would all be looked for at one place.
 */
const [SALT] = crypto.getRandomValues(new Uint32Array(1));
/** Another number for each key. */
const salted = (key: number): number => mix(key, SALT!);
/** Keys that wait to be admitted, at most: the oldest is forgotten for a new one. */
const WAITING_MAX = LIMITS.rowsWaitingMax;

/** In the place of sightings: the last push has admitted the key. */
const ADMITTED = -1;

/** A map from keys to slots with open addressing: linear probing, at most half full, nothing allocated later. */
class HashIndex implements RowIndex {
  readonly capacity: number;
  readonly #share: RowShare;
  readonly #admitAfter: number;
  /** Most rows that keys of pushes get. */
  readonly #admitMax: number;
  readonly #mask: number;
  /** At the places of keys their slots, plus 1; 0 where there is none: pages that nobody writes to take no memory. */
  readonly #places: Int32Array;
  readonly #keys: Uint32Array;
  /** Slots that were freed, the last one on top. */
  readonly #free: number[] = [];
  /** Slots from here on were never used. */
  #next = 0;
  /** By salted key. Until the next push begins there may be more than may wait, and keys that are admitted. */
  readonly #waiting = new Map<number, readonly [key: number, sightings: number]>();
  #dropped = 0;
  /** Keys that the last push has seen, and what had been seen of each before; 0: nothing. */
  readonly #seen: (readonly [key: number, before: number])[] = [];
  #droppedBefore = 0;

  constructor(config: TableConfig, share: RowShare) {
    const { rowsMax, admitAfter } = config;
    this.capacity = rowCapacity(config, share);
    this.#share = share;
    this.#admitAfter = admitAfter;
    this.#admitMax = rowsOfShare(rowsMax, share);
    const places = 2 ** Math.ceil(Math.log2(2 * this.capacity));
    this.#mask = places - 1;
    this.#places = new Int32Array(places);
    this.#keys = new Uint32Array(this.capacity);
  }

  get dropped(): number {
    return this.#dropped;
  }

  /** The place where a key is, or would be. */
  #place(key: number): number {
    let place = this.#home(key);
    for (;;) {
      const slot = this.#places[place]! - 1;
      if (slot === EMPTY || this.#keys[slot] === key) return place;
      place = (place + 1) & this.#mask;
    }
  }

  #home(key: number): number {
    return salted(key) & this.#mask;
  }

  find(key: number): number {
    return this.#places[this.#place(key)]! - 1;
  }

  findAll(keys: Uint32Array, slots: Int32Array): void {
    for (let i = 0; i < keys.length; i++) slots[i] = this.find(keys[i]!);
  }

  begin(): void {
    this.#settle();
    this.#droppedBefore = this.#dropped;
  }

  /** The last push stands: who waits too long is forgotten, and who is admitted waits no longer. */
  #settle(): void {
    for (const [key] of this.#seen) {
      const own = salted(key);
      if (this.#waiting.get(own)?.[1] === ADMITTED) this.#waiting.delete(own);
    }
    this.#seen.length = 0;
    if (this.#waiting.size <= WAITING_MAX) return;
    for (const own of this.#waiting.keys()) {
      this.#waiting.delete(own);
      if (this.#waiting.size <= WAITING_MAX) return;
    }
  }

  undo(): void {
    // The last one first. None has left its place in the line, so those that wait are in their old order.
    for (const [key, before] of this.#seen.reverse()) {
      if (before === 0) this.#waiting.delete(salted(key));
      else this.#waiting.set(salted(key), [key, before]);
    }
    this.#seen.length = 0;
    this.#dropped = this.#droppedBefore;
  }

  admit(key: number): number {
    const slot = this.find(key);
    if (slot !== EMPTY) return slot;
    const own = salted(key);
    const before = this.#waiting.get(own)?.[1] ?? 0;
    const seen = before + 1;
    if (seen >= this.#admitAfter && this.#next - this.#free.length < this.#admitMax) {
      const given = this.insert(key);
      if (given !== EMPTY) {
        if (before > 0) this.#see(own, key, before, ADMITTED);
        return given;
      }
    }
    this.#dropped++;
    if (this.#admitAfter > 1) this.#see(own, key, before, Math.min(seen, this.#admitAfter));
    return EMPTY;
  }

  #see(own: number, key: number, before: number, now: number): void {
    this.#seen.push([key, before]);
    this.#waiting.set(own, [key, now]);
  }

  insert(key: number): number {
    const place = this.#place(key);
    const known = this.#places[place]! - 1;
    if (known !== EMPTY) return known;
    const slot = this.#free.pop() ?? (this.#next < this.capacity ? this.#next++ : EMPTY);
    if (slot === EMPTY) return EMPTY;
    this.#places[place] = slot + 1;
    this.#keys[slot] = key;
    return slot;
  }

  keyOf(slot: number): number {
    return this.#keys[slot]!;
  }

  remove(key: number): void {
    let hole = this.#place(key);
    const slot = this.#places[hole]! - 1;
    if (slot === EMPTY) return;
    this.#free.push(slot);
    this.#places[hole] = 0;
    // Those that were put behind it for lack of room move up, so that no search ends too early.
    for (let place = (hole + 1) & this.#mask; this.#places[place] !== 0; ) {
      const home = this.#home(this.#keys[this.#places[place]! - 1]!);
      if (((place - home) & this.#mask) >= ((place - hole) & this.#mask)) {
        this.#places[hole] = this.#places[place]!;
        this.#places[place] = 0;
        hole = place;
      }
      place = (place + 1) & this.#mask;
    }
  }

  clear(): void {
    if (this.#next > 0) this.#places.fill(0);
    this.#free.length = 0;
    this.#next = 0;
    this.#waiting.clear();
    this.#seen.length = 0;
    this.#dropped = 0;
  }

  state(): RowIndexState {
    this.#settle();
    return { waiting: [...this.#waiting.values()], dropped: this.#dropped };
  }

  restore({ waiting, dropped }: RowIndexState): void {
    const { index, count } = this.#share;
    this.#waiting.clear();
    this.#seen.length = 0;
    for (const [key, sightings] of waiting) {
      if (shardOfRow(key, count) === index) this.#waiting.set(salted(key), [key, sightings]);
    }
    // Several shards may have had more together than one may have.
    this.#settle();
    // The sum of all shards is what counts.
    this.#dropped = index === 0 ? dropped : 0;
  }
}
