import type {
  Connection,
  ConnectionEvents,
  FrameHeader,
  Landing,
  PayloadPlace,
} from '../../wire/connection.ts';
import type { dial } from '../../wire/handshake.ts';

/** Connections in virtual time, as wire/connection.ts has them: each direction keeps its order, and what is cut is lost. */

/** Time and chance of a simulation. */
export interface VirtualWorld {
  /** Virtual ms. */
  readonly now: number;
  at(delayMs: number, act: () => void): void;
  /** Mostly short, now and then very long. */
  delayMs(usual: number): number;
}

/** Acts in a process: when it stands still, after that; when it is dead, never. */
export type Enter = (act: () => unknown) => void;

/** Where connections can be opened to. */
export interface VirtualHost {
  readonly host: string;
  readonly enter: Enter;
  /** Nobody listens there: it is dead. */
  readonly listens: boolean;
  accepted(path: string, end: VirtualEnd): void;
}

interface Frame {
  readonly header: FrameHeader;
  readonly payload: Uint8Array;
}

const NO_BYTES = new Uint8Array();

/** A copy of what has no numbers but in fields, as of a message. `structuredClone` takes 4 µs of a message, and this 0.5. */
export function copyOfFields<T>(value: T): T {
  if (typeof value !== 'object' || value === null) return value;
  if (Array.isArray(value)) return value.map(copyOfFields) as T;
  const copy: Record<string, unknown> = {};
  for (const name in value) copy[name] = copyOfFields(value[name]);
  return copy as T;
}

export const areSameBytes = (some: Uint8Array, others: Uint8Array): boolean =>
  Buffer.compare(some, others) === 0;

export function joinedBytes(parts: readonly Uint8Array[]): Uint8Array {
  const all = new Uint8Array(parts.reduce((sum, { length }) => sum + length, 0));
  let at = 0;
  for (const part of parts) {
    all.set(part, at);
    at += part.length;
  }
  return all;
}

/** Two ends; of a process that dies there is only the other one left. */
export class VirtualLink {
  readonly near: VirtualEnd;
  readonly far: VirtualEnd;
  readonly #world: VirtualWorld;
  lost = false;

  constructor(world: VirtualWorld, near: Enter, far: Enter) {
    this.#world = world;
    this.near = new VirtualEnd(world, this, near);
    this.far = new VirtualEnd(world, this, far);
    this.near.other = this.far;
    this.far.other = this.near;
  }

  /** Nothing passes any more; each end notices by itself, one of them perhaps much later. */
  cut(): void {
    this.lost = true;
    for (const end of [this.near, this.far]) end.notices(this.#world.delayMs(500));
  }
}

export class VirtualEnd {
  readonly transport = 'tcp' as const;
  readonly bytes = { received: 0, sent: 0 };
  readonly bufferedBytes = 0;
  readonly leftBytes = 0;
  readonly coming = null;
  readonly waiting = false;
  readonly holding = false;
  other!: VirtualEnd;
  readonly link: VirtualLink;
  readonly #world: VirtualWorld;
  readonly #enter: Enter;
  #events: ConnectionEvents | null = null;
  #isOpen = true;
  #isClosed = false;
  readonly #arriving: Frame[] = [];
  #reading: { landing: Landing | null } | null = null;
  #leavesAt = 0;
  #arrivesAt = 0;
  /** Told after each message that was dealt with. */
  dealtWith: (header: FrameHeader) => void = () => {};

  constructor(world: VirtualWorld, link: VirtualLink, enter: Enter) {
    this.#world = world;
    this.link = link;
    this.#enter = enter;
  }

  get open(): boolean {
    return this.#isOpen;
  }

  start(events: ConnectionEvents): void {
    this.#events = events;
    // It may have been lost before it was told.
    if (this.#isClosed) this.#world.at(0, () => this.#enter(() => events.closed(1006, 'lost')));
    this.#arrive();
  }

  send(message: object, parts: readonly Uint8Array[] = [], gone?: () => void): void {
    if (!this.#isOpen) {
      gone?.();
      return;
    }
    const world = this.#world;
    const header = copyOfFields(message) as FrameHeader;
    // The bytes are read when they leave: nobody may write to them until then.
    this.#leavesAt = Math.max(this.#leavesAt, world.now + world.delayMs(3));
    world.at(this.#leavesAt - world.now, () => {
      const frame = { header, payload: joinedBytes(parts) };
      gone?.();
      this.#travel(() => this.other.#came(frame));
    });
  }

  /** To the other end, behind all that is under way. */
  #travel(act: () => void): void {
    const world = this.#world;
    this.#arrivesAt = Math.max(this.#arrivesAt, world.now + world.delayMs(20));
    world.at(this.#arrivesAt - world.now, () => {
      if (!this.link.lost) this.other.#enter(act);
    });
  }

  #came(frame: Frame): void {
    if (!this.#isOpen) return;
    this.#events?.alive();
    this.#arriving.push(frame);
    this.#arrive();
  }

  ping(): void {
    const isAlive = (end: VirtualEnd, then: () => void) => {
      if (this.link.lost) return;
      end.#enter(() => {
        if (!end.#isOpen) return;
        end.#events?.alive();
        then();
      });
    };
    // There and back in one: most of what happens are pings.
    this.#world.at(this.#world.delayMs(40), () =>
      isAlive(this.other, () => isAlive(this, () => {})),
    );
  }

  retry(): void {
    this.#arrive();
  }

  hold(): void {}

  move(): boolean {
    return false;
  }

  close(code = 1000, reason = ''): void {
    if (!this.#isOpen) return;
    this.#isOpen = false;
    const world = this.#world;
    // What was sent before leaves before.
    world.at(Math.max(0, this.#leavesAt - world.now), () =>
      this.#travel(() => this.other.#ends(code, reason)),
    );
    world.at(world.delayMs(50), () => this.#enter(() => this.#ends(code, reason)));
  }

  terminate(): void {
    this.#isOpen = false;
    this.link.lost = true;
    this.notices(0);
    this.other.notices(this.#world.delayMs(50));
  }

  /** Its process is gone. */
  died(): void {
    this.#isOpen = false;
    this.#isClosed = true;
    this.link.lost = true;
    this.other.notices(this.#world.delayMs(100));
  }

  /** The connection is lost, which this end notices after a while. */
  notices(delayMs: number): void {
    this.#world.at(delayMs, () => this.#enter(() => this.#ends(1006, 'connection lost')));
  }

  #ends(code: number, reason: string): void {
    if (this.#isClosed) return;
    this.#isOpen = false;
    this.#isClosed = true;
    this.#arriving.length = 0;
    this.#reading?.landing?.release();
    this.#reading = null;
    this.#events?.closed(code, reason);
  }

  /** Begins to read the next message, when there is a place for its payload. */
  #arrive(): void {
    const events = this.#events;
    const frame = this.#arriving[0];
    if (!events || !frame || this.#reading || !this.#isOpen) return;
    const { header, payload } = frame;
    let place: PayloadPlace = null;
    try {
      if (payload.length > 0) place = events.land(header, payload.length);
    } catch (error) {
      this.#arriving.shift();
      events.malformed(error as never);
      this.#arrive();
      return;
    }
    if (place === 'wait') return;
    this.#arriving.shift();
    const reading = { landing: place === 'nowhere' ? null : (place as Landing | null) };
    this.#reading = reading;
    // A payload takes its time, and the connection may be lost in the middle of it.
    this.#world.at(payload.length > 0 ? this.#world.delayMs(2) : 0, () =>
      this.#enter(() => {
        if (this.#reading !== reading) return;
        this.#reading = null;
        this.#deliver(header, place === 'nowhere' ? NO_BYTES : payload, reading.landing);
        this.#arrive();
      }),
    );
  }

  #deliver(header: FrameHeader, payload: Uint8Array, landing: Landing | null): void {
    const isThere = landing !== null && landing.bytes.length >= payload.length;
    if (isThere) landing.bytes.set(payload);
    const place = isThere ? landing.bytes.subarray(0, payload.length) : payload.slice();
    this.#events!.message(header, place, landing);
    this.dealtWith(header);
  }
}

/**
 * What opens connections from a process.
 * @param opened is told of each, before anything is sent on it.
 */
export function virtualDial(
  world: VirtualWorld,
  hosts: readonly VirtualHost[],
  enter: Enter,
  opened: (link: VirtualLink, to: VirtualHost) => void,
): typeof dial {
  return (options) => {
    let settled = false;
    const settle = (act: () => void) =>
      enter(() => {
        if (settled) return;
        settled = true;
        act();
      });
    const fail = (why: string) => settle(() => options.failed(new Error(why), null, 0));
    const { hostname, pathname } = new URL(options.url);
    const to = hosts.find(({ host }) => host === hostname)!;
    world.at(world.delayMs(5), () => {
      if (!to.listens) {
        world.at(world.delayMs(5), () => fail('nobody listens there'));
        return;
      }
      to.enter(() => {
        const link = new VirtualLink(world, enter, to.enter);
        to.accepted(pathname, link.far);
        world.at(world.delayMs(5), () => {
          if (settled) link.near.terminate();
          settle(() => {
            opened(link, to);
            const end = link.near as unknown as Connection;
            link.near.start(options.opened(end, new Set()));
          });
        });
      });
    });
    world.at(options.handshakeMs, () => fail('no answer'));
    return {
      abort: () => {
        settled = true;
      },
    };
  };
}
