import { DownpourError } from '../../shared/errors.ts';
import { LIMITS } from '../../shared/limits.ts';
import type { ConnectionFacts } from '../../shared/rest.ts';
import type { Coming, Connection, Landing } from '../../wire/connection.ts';
import { type Account, type Borrowed, MemoryBudget, type MemoryHolder } from '../access/memory.ts';
import type { LandingRoom } from '../core/landing-rooms.ts';

/**
 * Where payloads land. A run has rooms for some pushes at once, whose payloads are read straight to where they are
 * used. Nobody can hold one: who waits for a room gets that of a push which comes slowly, and the slow one goes on in
 * memory of its own. The rule is in docs/protocol.md, under *Rooms*.
 */

/** How often who waits is looked at. */
export const LOOK_MS = 100;
/** Having waited so long, a push does without a room; and after a wait of half of it, for a while, it waits no more. */
const PATIENCE_MS = 300;
const IMPATIENT_MS = 10_000;
/** A push that comes more slowly loses its room to one that waits. */
const ROOM_BYTES_PER_SECOND = 2 ** 20;
/** Who waits for memory so long has those closed that send nothing for as long … */
const STALL_MS = 1_000;
/** … after which those are closed that take more than their share. */
const GREED_MS = 5_000;

/** What connections share: the order in which they get rooms, and memory. */
export class WaitingLine {
  readonly memory: MemoryBudget;
  /** The share of it that facts on their way may take: little, since a run needs them once. */
  readonly factsMemory: MemoryBudget;
  readonly now: () => number;
  readonly #desks = new Set<LandingDesk>();
  readonly #waiting = new Set<LandingDesk>();
  readonly #holders = new Map<string, MemoryHolder & { desks: number }>();
  /** Until then, somebody has waited not long ago. */
  #pressedUntil = Number.NEGATIVE_INFINITY;
  #moved = 0;

  constructor(memory: MemoryBudget, now: () => number) {
    this.memory = memory;
    this.factsMemory = new MemoryBudget(now, LIMITS.factsAtOnceBytesMax, 'facts on their way take');
    this.now = now;
    memory.freed = this.factsMemory.freed = () => {
      if (this.#waiting.size > 0) queueMicrotask(() => this.#moreMemory());
    };
  }

  /** Pushes that lost their room to another one and went on elsewhere. */
  get moved(): number {
    return this.#moved;
  }

  facts(): ConnectionFacts {
    const { bytes, bytesMax, closed, closedSecondsAgo } = this.memory;
    const since = [closedSecondsAgo, this.factsMemory.closedSecondsAgo].filter(
      (each) => each !== null,
    );
    return {
      ...{ bytes, bytesMax, closed: closed + this.factsMemory.closed, moved: this.#moved },
      closedSecondsAgo: since.length === 0 ? null : Math.min(...since),
    };
  }

  /** Somebody had to wait for a room lately: those who have not shown yet that they are quick get none. */
  get isPressed(): boolean {
    return this.now() < this.#pressedUntil;
  }

  /** @param name of the token's holder; null: this connection stands for itself. */
  enter(desk: LandingDesk, name: string | null): MemoryHolder {
    this.#desks.add(desk);
    if (name === null) return { rooms: 0 };
    const holder = this.#holders.get(name) ?? { rooms: 0, desks: 0 };
    this.#holders.set(name, holder);
    holder.desks++;
    return holder;
  }

  leave(desk: LandingDesk, name: string | null): void {
    this.#waiting.delete(desk);
    if (!this.#desks.delete(desk) || name === null) return;
    const holder = this.#holders.get(name);
    if (holder && --holder.desks === 0) this.#holders.delete(name);
  }

  await(desk: LandingDesk): void {
    this.#waiting.add(desk);
  }

  /** A run has room for one more push: of who waits, it is for the one whose holder has the fewest. */
  freed(run: unknown): void {
    if (this.#waiting.size === 0) return;
    let next: LandingDesk | null = null;
    for (const desk of this.#waiting) {
      if (desk.run !== run) continue;
      if (!next || desk.holder.rooms < next.holder.rooms) next = desk;
    }
    if (next) this.#retry(next);
  }

  #moreMemory(): void {
    const next = (a: LandingDesk, b: LandingDesk) =>
      a.account.bytes - b.account.bytes || a.wantedBytes - b.wantedBytes;
    for (const desk of [...this.#waiting].sort(next)) {
      if (desk.waits === 'memory') this.#retry(desk);
    }
  }

  #retry(desk: LandingDesk): void {
    this.#waiting.delete(desk);
    const waitedMs = this.now() - desk.waitsSince;
    if (desk.waits === 'room' && waitedMs >= PATIENCE_MS / 2) {
      this.#pressedUntil = this.now() + IMPATIENT_MS;
      desk.impatientUntil = this.#pressedUntil;
    }
    // Not within the push that has just been dealt with.
    queueMicrotask(() => desk.retry());
  }

  /** About ten times a second: who waits gets what others hold and do not use. */
  look(): void {
    if (this.#waiting.size === 0) return;
    const now = this.now();
    const runs = new Set<unknown>();
    for (const { run, waits } of this.#waiting) if (waits === 'room') runs.add(run);
    if (runs.size > 0) this.#makeRoom(runs, now);
    for (const desk of [...this.#waiting]) {
      const waitedMs = now - desk.waitsSince;
      if (desk.waits === 'memory') this.#makeMemory(desk, waitedMs, now);
      else if (waitedMs >= PATIENCE_MS) this.#retry(desk);
    }
  }

  /** Once a second: what comes too slowly, or waits too long, is closed. */
  tick(): void {
    this.look();
    this.memory.tick();
    this.factsMemory.tick();
  }

  /** Takes rooms from pushes that are slow, and from holders that have more than their share of them. */
  #makeRoom(wanted: ReadonlySet<unknown>, now: number): void {
    const inRooms: LandingDesk[] = [];
    const shares = new Map<unknown, { rooms: number; holders: Set<MemoryHolder> }>();
    const shareOf = (run: unknown) => {
      const share = shares.get(run) ?? { rooms: 0, holders: new Set<MemoryHolder>() };
      shares.set(run, share);
      return share;
    };
    for (const desk of this.#desks) {
      const run = desk.comingInto;
      if (run === null || !wanted.has(run)) continue;
      inRooms.push(desk);
      const share = shareOf(run);
      share.rooms++;
      share.holders.add(desk.holder);
    }
    for (const desk of this.#waiting) shareOf(desk.run).holders.add(desk.holder);
    for (const desk of inRooms) {
      const { rooms, holders } = shareOf(desk.comingInto);
      const isGreedy = desk.holder.rooms > Math.ceil(rooms / holders.size);
      const isSlow = desk.isSlow(now);
      if ((isSlow || isGreedy) && desk.move()) this.#moved++;
    }
  }

  #makeMemory(desk: LandingDesk, waitedMs: number, now: number): void {
    const memory = desk.wants;
    if (waitedMs >= LIMITS.memoryWaitMs) {
      this.#waiting.delete(desk);
      memory.close(
        desk.accountOf(memory),
        new DownpourError(
          'DP_LIMIT',
          `this message has waited ${Math.round(waitedMs / 1000)} s for memory; at most ${LIMITS.memoryWaitMs / 1000} s are allowed, and ${memory.what} ${memory.bytes} of ${memory.bytesMax} bytes: try again later, or give the server more memory`,
        ),
      );
      return;
    }
    if (waitedMs < STALL_MS) {
      // What sends nothing is known by then.
      for (const other of this.#desks) other.isStalled(now, memory);
      return;
    }
    const stalled = [...this.#desks].filter((other) => other.isStalled(now, memory));
    for (const other of stalled) memory.close(other.accountOf(memory), other.tooSlow(now));
    if (stalled.length > 0 || waitedMs < GREED_MS) return;
    const greedy = memory.greedy(desk.accountOf(memory));
    if (greedy) memory.close(greedy);
  }
}

/** A push's room: who waits for one is told when it is free. */
class RoomLanding implements Landing {
  readonly bytes: Uint8Array;
  readonly bytesMax: number;
  readonly room: LandingRoom;
  readonly run: unknown;
  readonly #desk: LandingDesk;

  constructor(room: LandingRoom, desk: LandingDesk, run: unknown, bytesMax: number) {
    this.bytes = room.bytes;
    this.bytesMax = bytesMax;
    this.room = room;
    this.run = run;
    this.#desk = desk;
    desk.holder.rooms++;
  }

  came(bytes: number): void {
    this.room.came(bytes);
  }

  release(): void {
    this.room.release();
    this.#desk.holder.rooms--;
    this.#desk.line.freed(this.run);
  }
}

export interface LandingAsk {
  readonly run: unknown;
  /** Length of the payload; what a room has, where the length is not known. */
  readonly bytes: number;
  /** Length of a room: what is larger need not wait for one. */
  readonly roomBytes: number;
  /** Length of the largest payload of the run. */
  readonly bytesMax: number;
  /** A room of the run; null: there is none now. */
  take(bytes: number): LandingRoom | null;
}

type Desk = Pick<
  Connection,
  'retry' | 'coming' | 'move' | 'bufferedBytes' | 'leftBytes' | 'terminate'
>;

/** Closed for what it took, a connection has so long for its last words: it may not read them. */
const LAST_WORDS_MS = 1_000;

/** A payload that stays in use after its message: the receiver uses memory of its own for the next one. */
export function keep(payload: Uint8Array, landing: Landing | null): Uint8Array {
  return payload.buffer === landing?.bytes.buffer ? payload : new Uint8Array(payload);
}

/** Since when, and from where on, something is measured. */
interface ProgressMark {
  number: number;
  bytes: number;
  at: number;
}
const unmarked = (): ProgressMark => ({ number: -1, bytes: 0, at: 0 });

/** Where the payloads of one connection land: a push in its run's memory when there is room. */
export class LandingDesk {
  readonly line: WaitingLine;
  readonly holder: MemoryHolder;
  readonly account: Account;
  readonly #facts: Account;
  readonly #name: string | null;
  readonly #connection: Desk;
  /** The run that its connection, which stands still until then, wants room of. */
  run: unknown = null;
  /** What it waits for; null: it does not. */
  waits: 'room' | 'memory' | null = null;
  waitsSince = 0;
  /** Which memory it waits for, and how much of it. */
  wants: MemoryBudget;
  wantedBytes = 0;
  /** Until then it does without a room where there is none at once. */
  impatientUntil = Number.NEGATIVE_INFINITY;
  // Bytes of the receiver's memory: reserved, taken, and counted.
  #reserved = 0;
  #ownBytes = 0;
  #counted = 0;
  /** Answers of its own that have not left. */
  #answersBytes = 0;
  /** Its last push came quickly. */
  #isProven = false;
  readonly #inRoom = unmarked();
  readonly #inMemory = unmarked();
  readonly #inAll = unmarked();
  /** When the payload that is coming was first looked at. */
  readonly #begun = unmarked();
  /** When something left last, of what waits to be sent. */
  readonly #leaving = unmarked();

  /** @param name of the holder of its token; null: the server has none. @param fail tells it why, and closes it. */
  constructor(
    line: WaitingLine,
    connection: Desk,
    name: string | null,
    fail: (error: DownpourError) => void,
  ) {
    this.line = line;
    this.#connection = connection;
    this.#name = name;
    this.holder = line.enter(this, name);
    const unsent = () => Math.max(0, connection.bufferedBytes - this.#answersBytes);
    const close = (error: DownpourError) => {
      fail(error);
      setTimeout(() => connection.terminate(), LAST_WORDS_MS).unref();
    };
    this.account = line.memory.open(this.holder, { unsent, close });
    this.#facts = line.factsMemory.open(this.holder, { unsent: () => 0, close });
    this.wants = line.memory;
  }

  accountOf(memory: MemoryBudget): Account {
    return memory === this.line.factsMemory ? this.#facts : this.account;
  }

  /** For a push. */
  land(ask: LandingAsk): Landing | 'wait' {
    const { run, bytes, roomBytes, bytesMax, take } = ask;
    const { line } = this;
    const isBorrower = bytes > roomBytes || (!this.#isProven && line.isPressed);
    if (!isBorrower) {
      const room = take(bytes);
      if (room) return this.#landed(room, run, bytesMax);
      const now = line.now();
      if (this.waits === null) this.#wait('room', run, now);
      const isPatient = now >= this.impatientUntil && now - this.waitsSince < PATIENCE_MS;
      if (this.waits === 'room' && isPatient) {
        line.await(this);
        return 'wait';
      }
    }
    const borrowed = this.#borrow(bytes, bytesMax);
    if (borrowed) {
      this.waits = null;
      return borrowed;
    }
    const room = bytes > roomBytes ? null : take(bytes);
    if (room) return this.#landed(room, run, bytesMax);
    if (this.waits !== 'memory') this.#wait('memory', run, line.now());
    this.wants = line.memory;
    this.wantedBytes = bytes;
    line.await(this);
    return 'wait';
  }

  /** For facts: few are received at once. */
  landFacts(bytes: number, bytesMax: number): Landing | 'wait' {
    // A receiver has so much in any case.
    if (bytes <= FEW_BYTES) return this.own(bytes, bytesMax);
    const { line, account } = this;
    const { factsMemory } = line;
    // What is given back at once would have all who wait ask again, without end.
    if (!factsMemory.has(bytes)) return this.#awaitFor(factsMemory, bytes);
    if (!line.memory.take(account, bytes)) return this.#awaitFor(line.memory, bytes);
    const borrowed = factsMemory.borrow(this.#facts, bytes)!;
    this.waits = null;
    const release = () => {
      borrowed.release();
      line.memory.change(account, -bytes);
    };
    return { bytes: borrowed.bytes, bytesMax, release };
  }

  /** For another message: memory of the receiver's, which grows as bytes come. */
  own(bytes: number, bytesMax: number): Landing | 'wait' {
    const { line, account } = this;
    const more = Math.max(0, bytes - this.#ownBytes);
    if (!line.memory.take(account, more)) return this.#awaitFor(line.memory, bytes);
    this.waits = null;
    this.#reserved += bytes;
    this.#counted += more;
    return { bytes: NOTHING, bytesMax, release: () => this.#count(-bytes, 0) };
  }

  /**
   * Memory for an answer that no other connection shares, with anything in it. It is counted until its `release`, wherever it
   * waits: in the socket, or for a standby.
   */
  answer(bytes: number): Borrowed {
    const borrowed = this.line.memory.mustBorrow(this.account, bytes);
    return { bytes: borrowed.bytes, release: this.#underWay(bytes, borrowed.release) };
  }

  /** The same of one that has memory already. @returns call it once: it has left, or never will. */
  counted(bytes: number): () => void {
    const { memory } = this.line;
    memory.change(this.account, bytes);
    return this.#underWay(bytes, () => memory.change(this.account, -bytes));
  }

  /** @param release of the memory of an answer. @returns the same, when the answer is under way no longer. */
  #underWay(bytes: number, release: () => void): () => void {
    this.#answersBytes += bytes;
    return () => {
      this.#answersBytes -= bytes;
      release();
    };
  }

  #awaitFor(memory: MemoryBudget, bytes: number): 'wait' {
    const { line } = this;
    if (this.waits !== 'memory' || this.wants !== memory) this.#wait('memory', null, line.now());
    this.wants = memory;
    this.wantedBytes = bytes;
    line.await(this);
    return 'wait';
  }

  /** The receiver's own memory has grown, or shrunk. */
  grew(bytes: number): void {
    this.#count(0, bytes);
  }

  /** The larger counts: what is reserved for the receiver's memory, or what it has taken. */
  #count(reserved: number, own: number): void {
    this.#reserved += reserved;
    this.#ownBytes += own;
    const change = Math.max(this.#reserved, this.#ownBytes) - this.#counted;
    this.#counted += change;
    this.line.memory.change(this.account, change);
  }

  #wait(what: 'room' | 'memory', run: unknown, now: number): void {
    this.waits = what;
    this.run = run;
    this.waitsSince = now;
  }

  #landed(room: LandingRoom, run: unknown, bytesMax: number): Landing {
    this.waits = null;
    return new RoomLanding(room, this, run, bytesMax);
  }

  #borrow(bytes: number, bytesMax: number): Landing | null {
    const borrowed = this.line.memory.borrow(this.account, bytes);
    return borrowed && { ...borrowed, bytesMax };
  }

  /** Asks again for what its message waits for. */
  retry(): void {
    this.#connection.retry();
  }

  /** A push is there. @param landing where it came to. @returns the room of its run; null: it is not in one. */
  arrived(landing: Landing | null): LandingRoom | null {
    if (!(landing instanceof RoomLanding)) return null;
    this.#isProven = true;
    return landing.room;
  }

  /** The run whose room a push is coming into; null: into none. */
  get comingInto(): unknown {
    const landing = this.#connection.coming?.landing;
    return landing instanceof RoomLanding ? landing.run : null;
  }

  /** Gives the room of the push that is coming away, and goes on elsewhere. @returns whether it could. */
  move(): boolean {
    const coming = this.#connection.coming;
    if (!(coming?.landing instanceof RoomLanding) || coming.of === null) return false;
    const to = this.#borrow(coming.of, coming.landing.bytesMax);
    if (!to) return false;
    if (!this.#connection.move(to)) {
      to.release();
      return false;
    }
    this.#isProven = false;
    return true;
  }

  // How quickly.

  /** Whether the push that is coming into a room comes more slowly than a room is for. */
  isSlow(now: number): boolean {
    const rate = rateOf(this.#connection.coming, this.#inRoom, { now, windowMs: 0.9 * LOOK_MS });
    return rate !== null && rate < ROOM_BYTES_PER_SECOND;
  }

  /** Whether a payload that takes memory comes more slowly than any may. */
  isStalled(now: number, memory: MemoryBudget): boolean {
    const { coming } = this.#connection;
    const account = this.accountOf(memory);
    if (!coming || account.closing || account.bytes === 0) return false;
    this.#look(coming, now);
    const rate = rateOf(coming, this.#inMemory, { now, windowMs: 0.9 * STALL_MS });
    return rate !== null && rate < LIMITS.payloadBytesPerSecondMin;
  }

  /**
   * Call once a second.
   * @param windowMs in which it must get on: it may be in the middle of a gradient.
   * @returns why it must be closed; null: it need not be.
   */
  problem(now: number, windowMs: number): DownpourError | null {
    return this.#sends(now, windowMs) ?? this.#reads(now, windowMs);
  }

  #sends(now: number, windowMs: number): DownpourError | null {
    const { coming } = this.#connection;
    if (!coming?.landing || this.waits !== null) return null;
    this.#look(coming, now);
    const rate = rateOf(coming, this.#inAll, { now, windowMs });
    const bytes = coming.of ?? coming.bytes;
    const allowedMs = windowMs + (1000 * bytes) / LIMITS.payloadBytesPerSecondMin;
    const isSlow = rate !== null && rate < LIMITS.payloadBytesPerSecondMin;
    return isSlow || now - this.#begun.at > allowedMs ? this.tooSlow(now) : null;
  }

  #look({ number }: Coming, now: number): void {
    if (this.#begun.number !== number) Object.assign(this.#begun, { number, at: now });
  }

  /** Why a payload that does not come is not waited for. */
  tooSlow(now: number): DownpourError {
    const coming = this.#connection.coming;
    const seconds = ((now - this.#begun.at) / 1000).toFixed(0);
    const of = coming?.of === null ? '' : ` of ${coming?.of}`;
    return new DownpourError(
      'DP_SLOW_SENDER',
      `a payload comes too slowly: ${coming?.bytes ?? 0}${of} bytes in ${seconds} s; at least ${LIMITS.payloadBytesPerSecondMin} bytes/s are needed: connect again and send it once more, with a smaller model, compression.push or a faster network if it happens again`,
    );
  }

  /** Something must leave of what waits to be sent to it. */
  #reads(now: number, windowMs: number): DownpourError | null {
    const { bufferedBytes, leftBytes } = this.#connection;
    const mark = this.#leaving;
    if (mark.number < 0 || bufferedBytes === 0 || leftBytes !== mark.bytes) {
      Object.assign(mark, { number: 0, bytes: leftBytes, at: now });
      return null;
    }
    const allowedMs = windowMs + (1000 * bufferedBytes) / LIMITS.payloadBytesPerSecondMin;
    if (now - mark.at <= allowedMs) return null;
    return new DownpourError(
      'DP_SLOW_READER',
      `${bufferedBytes} bytes wait for this worker, and it has taken nothing for ${Math.round((now - mark.at) / 1000)} s; at most ${Math.round(allowedMs / 1000)} s are allowed: read answers as they come, and connect again`,
    );
  }

  /** The connection is lost. */
  leave(): void {
    this.line.leave(this, this.#name);
    this.line.memory.end(this.account);
    this.line.factsMemory.end(this.#facts);
  }
}

const NOTHING = new Uint8Array();
/** A receiver has as much in any case. */
const FEW_BYTES = 2 ** 16;

/**
 * Bytes a second of a payload over a window.
 * @param mark of this payload where the window began; it is moved on when the window is over.
 * @returns null: not known yet, or nothing is coming.
 */
function rateOf(
  coming: Coming | null,
  mark: ProgressMark,
  { now, windowMs }: { now: number; windowMs: number },
): number | null {
  if (!coming) {
    mark.number = -1;
    return null;
  }
  const { number, bytes } = coming;
  if (mark.number !== number) {
    Object.assign(mark, { number, bytes, at: now });
    return null;
  }
  if (now - mark.at < windowMs) return null;
  const rate = (1000 * (bytes - mark.bytes)) / (now - mark.at);
  Object.assign(mark, { bytes, at: now });
  return rate;
}
