import {
  checkPayloadLength,
  cutShort,
  decodeHeader,
  type Frame,
  headerLength,
  PREFIX_BYTES,
  payloadStart,
  tooShort,
} from '../shared/codec.ts';
import { DownpourError } from '../shared/errors.ts';
import { LIMITS } from '../shared/limits.ts';
import {
  CONTROL_BYTES_MAX,
  FRAME_HEAD_MAX,
  frameHeadLength,
  frameLength,
  frameMask,
  OPCODES,
  unmask,
} from './frames.ts';

/**
 * Takes the binary messages of one WebSocket connection to their place in memory, and leaves all else to `ws`: control
 * frames, text, and whatever breaks the protocol. Heads and headers come through a small memory that all connections
 * share; a payload is read where it is to be. Does no I/O: who owns the socket reads into `next()` and says so with
 * `filled`, or hands over chunks with `feed`.
 */

export type FrameHeader = Frame['header'];

/** Memory that a payload is read into. */
export interface Landing {
  /** As long as the payload, or longer when its length was not known. What does not fit goes on in the receiver's memory. */
  readonly bytes: Uint8Array;
  /** Size of the payload, where its length is not known before its end: more of it is refused. Default: as a frame has. */
  readonly bytesMax?: number;
  /** So many bytes are there, but not all of them. Called now and then. */
  came?(bytes: number): void;
  /** The memory may be used for something else. Called once. */
  release(): void;
}

/** `wait`: nowhere yet. `nowhere`: it is read past, and its message delivered without it. Null: in memory of the receiver. */
export type PayloadPlace = Landing | 'wait' | 'nowhere' | null;

export interface ReceiverEvents {
  /**
   * The header of a message is there: where shall its payload be? After 'wait' nothing more is read until `retry`.
   * @param payloadBytes above 0; null: not known, since the message came in fragments.
   * @throws DownpourError the message is refused before there is memory for its payload.
   */
  land(header: FrameHeader, payloadBytes: number | null): PayloadPlace;
  /** Memory of the receiver's own that grew by so many bytes, or shrank: what is small is not told. */
  memory?(change: number): void;
  /**
   * A whole message. Its landing is the callee's to release. Without one the payload is the
   * receiver's, to be used until return.
   * @param more the beginning of another one was read, or may be there to be read at once.
   */
  message(header: FrameHeader, payload: Uint8Array, landing: Landing | null, more: boolean): void;
  /** A message that is no Downpour frame: it is skipped. */
  malformed(error: DownpourError): void;
  /**
   * Bytes that `ws` reads, as they came: of no binary message, or of what only `ws` can judge. Never of two frames,
   * unless the protocol is broken, and in memory of their own.
   * @param endsText a text message is whole now, if it is right.
   */
  pass(bytes: Buffer, endsText: boolean): void;
}

/** The receiver uses up what it reads at once, so one memory does for all connections. */
const SCRATCH = Buffer.allocUnsafeSlow(64 * 1024);
/** After a large payload the next is large too, as a rule: then little of it shall come in between. */
const SMALL = SCRATCH.subarray(0, 4 * 1024);
const LARGE_BYTES = 256 * 1024;
/** From so many missing bytes on, a payload is read in place instead of being copied there. */
const STRAIGHT_BYTES_MIN = 8 * 1024;
/** No more of a payload is read at once, so that a core's cache still has it when its landing is told. */
const READ_BYTES_MAX = 256 * 1024;
/** The first size of the receiver's own memory; it is doubled while bytes come, not when announced. */
const OWN_BYTES_MIN = 64 * 1024;
/** Own memory larger than this is not kept for the next message. */
const OWN_BYTES_KEPT = 2 ** 16;
/** The same of memory for headers. */
const PREFIX_BYTES_KEPT = 2 ** 14;
/** There are no text messages in the protocol; a long one is not even collected by `ws`. */
export const TEXT_BYTES_MAX = 2 ** 16;
const EMPTY = new Uint8Array();

export interface ReceiverOptions {
  /** Frames must be masked when they come from a client, and must not when from a server. */
  readonly fromClient: boolean;
  readonly events: ReceiverEvents;
  /** Size of one message. */
  readonly frameBytesMax?: number;
}

/** Where in a binary message it is: `pending`, the header is whole, but is there a payload? */
type ReadStage = 'none' | 'header' | 'pending' | 'payload' | 'skip';

/** A payload that is being read. */
export interface Coming {
  /** Counts the payloads of this connection: another number is another payload. */
  readonly number: number;
  /** So many bytes are there, of so many; null: not known. */
  readonly bytes: number;
  readonly of: number | null;
  readonly landing: Landing | null;
}

export class Receiver {
  readonly #events: ReceiverEvents;
  readonly #fromClient: boolean;
  readonly #frameBytesMax: number;
  /** Messages are not delivered any more; control frames are passed on. */
  deaf = false;
  #dead = false;
  /** The protocol is broken, and `ws` says how: all that comes is passed on. */
  #odd = false;
  #excess: string | null = null;

  // The frame.
  readonly #head = new Uint8Array(FRAME_HEAD_MAX);
  #headBytes = 0;
  #inFrame = false;
  #opcode = 0;
  #final = true;
  #length = 0;
  #left = 0;
  #mask = 0;
  /** It is for `ws`. */
  #passes = false;

  // A text message, which `ws` collects.
  #inText = false;
  #textBytes = 0;

  // A binary message.
  #stage: ReadStage = 'none';
  #messageBytes = 0;
  #prefix = new Uint8Array(256);
  #prefixBytes = 0;
  #header: FrameHeader | null = null;
  #memory: Uint8Array = EMPTY;
  #memoryBytes = 0;
  #landing: Landing | null = null;
  #own: Uint8Array = EMPTY;
  /** What `next` gave last was the payload's place. A socket keeps it while it is paused. */
  #inPlace = false;
  #more = false;
  /** The last message was. */
  #large = false;
  /** Its payload is read past, and it is delivered all the same. */
  #nowhere = false;
  #payloads = 0;
  /** As `memory` was told. */
  #told = 0;

  // What could not be used yet, since there is no landing, or the owner wants no more now.
  #waiting = false;
  #halted = false;
  #held: Uint8Array = EMPTY;
  #heldClear = 0;
  #landedBytes = 0;

  constructor({ fromClient, events, frameBytesMax = LIMITS.frameBytesMax }: ReceiverOptions) {
    this.#fromClient = fromClient;
    this.#events = events;
    this.#frameBytesMax = frameBytesMax;
  }

  /** It was told to wait for a landing: nothing may be read until `retry` says otherwise. */
  get waiting(): boolean {
    return this.#waiting;
  }

  /** A payload that has begun and not ended; null: there is none. */
  get coming(): Coming | null {
    if (this.#stage !== 'payload' || this.#header === null || this.#nowhere) return null;
    if (this.#odd || this.#dead) return null;
    const of = this.#final ? this.#memoryBytes + this.#left : null;
    return { number: this.#payloads, bytes: this.#memoryBytes, of, landing: this.#landing };
  }

  /**
   * The payload that is coming goes on in another place, which is as long as the payload; its landing is released.
   * Who reads into `next()` must ask again before anything is read.
   */
  move(to: Landing): void {
    to.bytes.set(this.#memory.subarray(0, this.#memoryBytes));
    this.#landing?.release();
    this.#landing = to;
    this.#memory = to.bytes;
  }

  /** Nothing may be read: it waits for a landing, or was halted. */
  get standing(): boolean {
    return this.#waiting || this.#halted;
  }

  /** All that came was of whole messages. */
  get between(): boolean {
    const inMessage = this.#stage !== 'none' || this.#inText;
    return !inMessage && !this.#inFrame && this.#headBytes === 0;
  }

  /** Why a message is too large, where one was: `ws` closes the connection. */
  get excess(): string | null {
    return this.#excess;
  }

  /** Nothing that comes is looked at any more. */
  stop(): void {
    this.#dead = true;
  }

  /** Bytes of all payloads so far that were read into landings. */
  get landedBytes(): number {
    return this.#landedBytes;
  }

  /** To be called by who is told a message: no more is told until `goOn`, whatever has been read. */
  halt(): void {
    this.#halted = true;
  }

  /** After `halt`. @returns whether reading can go on. */
  goOn(): boolean {
    this.#halted = false;
    if (!this.#waiting) this.#feedHeld();
    return !this.standing;
  }

  /** Where the next bytes are to be read; no more than fit. */
  next(): Uint8Array {
    this.#inPlace = this.#readsInPlace();
    if (!this.#inPlace) return this.#large ? SMALL : SCRATCH;
    if (this.#memoryBytes === this.#memory.length) this.#grow(this.#memoryBytes + 1);
    const most = this.#memoryBytes + Math.min(this.#left, READ_BYTES_MAX);
    const end = Math.min(this.#memory.length, most);
    return this.#memory.subarray(this.#memoryBytes, end);
  }

  #readsInPlace(): boolean {
    if (this.#stage !== 'payload' || this.#nowhere) return false;
    if (this.#dead || this.deaf || this.standing) return false;
    return this.#inFrame && !this.#passes && this.#left >= STRAIGHT_BYTES_MIN;
  }

  /**
   * So many bytes were read into the beginning of what `next` gave last.
   * @returns whether a frame ended where reading in place did: nobody knows what is behind it.
   */
  filled(bytes: number): boolean {
    if (!this.#inPlace) {
      this.feed(SCRATCH.subarray(0, bytes));
      return false;
    }
    if (this.#dead) return false;
    if (this.#mask !== 0) {
      const came = this.#memory.subarray(this.#memoryBytes, this.#memoryBytes + bytes);
      unmask(came, this.#mask, this.#length - this.#left);
    }
    this.#memoryBytes += bytes;
    this.#left -= bytes;
    if (this.#landing) this.#landedBytes += bytes;
    if (this.#left === 0) {
      this.#more = true;
      this.#endFrame();
      return true;
    }
    if (this.#memory === this.#landing?.bytes) this.#landing.came?.(this.#memoryBytes);
    return false;
  }

  /**
   * Bytes that are wherever they are; masks are undone there.
   * @param clear so many at the beginning are unmasked already. @param own the chunk may be kept.
   */
  feed(chunk: Uint8Array, clear = 0, own = false): void {
    let at = 0;
    while (!this.#dead) {
      if (this.#waiting || this.#halted) {
        this.#hold(chunk.subarray(at), Math.max(0, clear - at), own);
        return;
      }
      if (this.#odd) {
        if (at < chunk.length) this.#events.pass(Buffer.from(chunk.subarray(at)), false);
        return;
      }
      if (!this.#inFrame) {
        at = this.#beginFrame(chunk, at);
        if (this.#odd) continue;
        if (!this.#inFrame) return;
      }
      if (this.#passes) {
        const available = Math.min(this.#left, chunk.length - at);
        this.#left -= available;
        this.#passOn(chunk.subarray(at, at + available));
        if (this.#left > 0) return;
        at += available;
        this.#endFrame();
        continue;
      }
      if (this.#stage === 'pending') {
        this.#beginPayload();
        if (this.#waiting) continue;
      }
      if (this.#left > 0) {
        const available = Math.min(this.#left, chunk.length - at);
        if (available === 0) return;
        if (this.#mask !== 0 && clear < at + available) {
          const masked = Math.max(clear, at);
          const position = this.#length - this.#left + masked - at;
          unmask(chunk.subarray(masked, at + available), this.#mask, position);
          clear = at + available;
        }
        const used = this.#take(chunk, at, available);
        at += used;
        this.#left -= used;
        if (this.#left > 0 || this.#stage === 'pending') continue;
      }
      this.#more = at < chunk.length;
      this.#endFrame();
    }
  }

  /**
   * Asks again for the landing that there was none for.
   * @returns whether reading can go on.
   */
  retry(): boolean {
    if (!this.#waiting) return true;
    this.#waiting = false;
    this.#beginPayload();
    if (!this.standing) this.#feedHeld();
    return !this.standing;
  }

  /** @param clear so many bytes at the beginning are unmasked. @param own they may be kept. */
  #hold(bytes: Uint8Array, clear: number, own: boolean): void {
    if (this.#held.length > 0) {
      // A socket that was about to be read has given once more.
      this.#held = Buffer.concat([this.#held, bytes]);
      return;
    }
    this.#held = own ? bytes : new Uint8Array(bytes);
    this.#heldClear = clear;
  }

  #feedHeld(): void {
    const held = this.#held;
    this.#held = EMPTY;
    if (held.length > 0) this.feed(held, this.#heldClear, true);
  }

  /** The socket is gone: gives the memory back. */
  end(): void {
    this.#dead = true;
    this.#waiting = this.#halted = false;
    this.#held = EMPTY;
    this.#reset();
    this.#own = this.#prefix = EMPTY;
    this.#textBytes = 0;
    this.#tell();
  }

  #tell(): void {
    const bytes = this.#own.length + this.#prefix.length + this.#textBytes;
    if (bytes === this.#told) return;
    const change = bytes - this.#told;
    this.#told = bytes;
    this.#events.memory?.(change);
  }

  // Frames.

  /**
   * @returns where its payload begins, or, where `ws` is to have all of the frame, the frame; at the end of the chunk when
   *   the head is not whole.
   */
  #beginFrame(chunk: Uint8Array, at: number): number {
    const available = chunk.length - at;
    if (this.#headBytes === 0 && available >= 2) {
      const length = frameHeadLength(chunk[at + 1]!);
      if (available >= length) {
        this.#readHead(chunk, at);
        if (!this.#passes) return this.#odd ? at : at + length;
        this.#left += length;
        return at;
      }
    }
    while (at < chunk.length) {
      this.#head[this.#headBytes++] = chunk[at++]!;
      if (this.#headBytes < 2 || this.#headBytes < frameHeadLength(this.#head[1]!)) continue;
      const head = this.#head.subarray(0, this.#headBytes);
      this.#headBytes = 0;
      this.#readHead(head, 0);
      if (this.#odd || this.#passes) this.#passOn(head);
      return at;
    }
    return at;
  }

  /** Whether a frame that begins so must not stand here: `ws` knows what is wrong with it. */
  #isOdd(head: Uint8Array, at: number): boolean {
    const first = head[at]!;
    const second = head[at + 1]!;
    const opcode = first & 0x0f;
    if ((first & 0x70) !== 0 || ((second & 0x80) !== 0) !== this.#fromClient) return true;
    if (opcode >= OPCODES.close) {
      const isSmall = (second & 0x7f) <= CONTROL_BYTES_MAX;
      return opcode > OPCODES.pong || (first & 0x80) === 0 || !isSmall;
    }
    const inMessage = this.#stage !== 'none' || this.#inText;
    return opcode > OPCODES.binary || (opcode === OPCODES.continuation) !== inMessage;
  }

  #readHead(head: Uint8Array, at: number): void {
    this.#passes = false;
    if (this.#isOdd(head, at)) {
      this.#odd = true;
      // `ws` has seen nothing of a binary message that is not whole: it is told that there is one.
      if (this.#stage !== 'none') {
        this.#passOn(
          Uint8Array.of(OPCODES.binary, ...(this.#fromClient ? [0x80, 0, 0, 0, 0] : [0])),
        );
      }
      return;
    }
    this.#opcode = head[at]! & 0x0f;
    this.#length = this.#left = frameLength(head, at);
    this.#mask = frameMask(head, at);
    if (this.#opcode >= OPCODES.close) {
      this.#inFrame = this.#passes = true;
      return;
    }
    this.#final = (head[at]! & 0x80) !== 0;
    if (this.#opcode === OPCODES.text) this.#inText = true;
    const bytes = (this.#inText ? this.#textBytes : this.#messageBytes) + this.#length;
    const most = this.#inText ? TEXT_BYTES_MAX : this.#frameBytesMax;
    if (bytes > most && this.#stage === 'none') {
      this.#excess = `a message of ${bytes} bytes; at most ${most} are allowed`;
      this.#odd = true;
      return;
    }
    this.#inFrame = true;
    if (this.#inText) {
      this.#passes = true;
      this.#textBytes = bytes;
      this.#tell();
      return;
    }
    this.#messageBytes = bytes;
    if (this.#opcode === OPCODES.binary) this.#stage = this.deaf ? 'skip' : 'header';
    if (bytes > most && this.#stage !== 'skip') {
      const what = `a message of ${bytes} bytes; at most ${most} are allowed`;
      this.#refuse(new DownpourError('DP_FRAME_TOO_LARGE', what));
    } else this.#checkFragment();
  }

  /** Hands bytes of the present frame to `ws`. */
  #passOn(bytes: Uint8Array): void {
    const isText = !this.#odd && this.#opcode < OPCODES.close;
    if (bytes.length === 0 || (this.deaf && isText)) return;
    this.#events.pass(Buffer.from(bytes), isText && this.#final && this.#left === 0);
  }

  /** Checks how long a payload is by now whose length was not known. */
  #checkFragment(): void {
    const bytesMax = this.#landing?.bytesMax;
    if (this.#stage !== 'payload' || bytesMax === undefined) return;
    const bytes = this.#memoryBytes + this.#left;
    if (bytes <= bytesMax) return;
    this.#refuse(
      new DownpourError(
        'DP_FRAME_TOO_LARGE',
        `a '${this.#header!.type}' with a payload of ${bytes} bytes; at most ${bytesMax} are allowed`,
      ),
    );
  }

  #endFrame(): void {
    this.#inFrame = false;
    if (this.#opcode === OPCODES.close) this.#dead = true;
    // A control frame may stand between the fragments of a message.
    if (this.#opcode >= OPCODES.close || !this.#final) return;
    if (!this.#inText) {
      this.#endMessage();
      return;
    }
    this.#inText = false;
    this.#textBytes = 0;
    this.#tell();
  }

  // Messages.

  /** Uses some of the `available` bytes of the present frame. @returns how many. */
  #take(chunk: Uint8Array, at: number, available: number): number {
    if (this.#stage === 'header') return this.#takeHeader(chunk, at, available);
    if (this.#nowhere || this.deaf) return available;
    if (this.#stage === 'payload') {
      const needed = this.#memoryBytes + available;
      if (needed > this.#memory.length) this.#grow(needed);
      this.#memory.set(chunk.subarray(at, at + available), this.#memoryBytes);
      this.#memoryBytes = needed;
      if (this.#landing) this.#landedBytes += available;
    }
    return available;
  }

  #takeHeader(chunk: Uint8Array, at: number, available: number): number {
    try {
      // As a rule all of it is there, and is read where it is.
      if (this.#prefixBytes === 0 && available >= PREFIX_BYTES) {
        const length = headerLength(chunk, at);
        const end = PREFIX_BYTES + length;
        if (available >= payloadStart(length)) {
          this.#header = decodeHeader(chunk.subarray(at + PREFIX_BYTES, at + end));
          this.#stage = 'pending';
          return payloadStart(length);
        }
      }
      const known = this.#prefixBytes >= PREFIX_BYTES;
      const needed = known ? payloadStart(headerLength(this.#prefix)) : PREFIX_BYTES;
      const used = Math.min(available, needed - this.#prefixBytes);
      this.#keepPrefix(chunk.subarray(at, at + used));
      if (this.#prefixBytes === PREFIX_BYTES) headerLength(this.#prefix);
      else if (known && this.#prefixBytes === needed) {
        this.#header = this.#keptHeader();
        this.#stage = 'pending';
      }
      return used;
    } catch (error) {
      this.#refuse(error);
      return available;
    }
  }

  #keepPrefix(bytes: Uint8Array): void {
    const needed = this.#prefixBytes + bytes.length;
    if (needed > this.#prefix.length) {
      const larger = new Uint8Array(Math.max(needed, 2 * this.#prefix.length));
      larger.set(this.#prefix.subarray(0, this.#prefixBytes));
      this.#prefix = larger;
      this.#tell();
    }
    this.#prefix.set(bytes, this.#prefixBytes);
    this.#prefixBytes = needed;
  }

  #keptHeader(): FrameHeader {
    const end = PREFIX_BYTES + headerLength(this.#prefix);
    if (this.#prefixBytes < end) throw cutShort(end - PREFIX_BYTES, this.#prefixBytes);
    return decodeHeader(this.#prefix.subarray(PREFIX_BYTES, end));
  }

  /** The header is whole. Nothing happens while it is not known whether there is a payload. */
  #beginPayload(): void {
    if (this.#left === 0 && !this.#final) return;
    try {
      if (this.#final) checkPayloadLength(this.#left);
    } catch (error) {
      this.#refuse(error);
      return;
    }
    if (this.deaf) {
      this.#stage = 'skip';
      return;
    }
    if (this.#left > 0 && !this.#findPlace()) return;
    this.#stage = 'payload';
    this.#checkFragment();
  }

  /** @returns whether the payload may be read now. */
  #findPlace(): boolean {
    let place: PayloadPlace;
    try {
      place = this.#events.land(this.#header!, this.#final ? this.#left : null);
    } catch (error) {
      this.#refuse(error);
      return false;
    }
    if (place === 'wait') {
      this.#waiting = true;
      return false;
    }
    this.#nowhere = place === 'nowhere';
    this.#landing = place === 'nowhere' ? null : place;
    this.#memory = this.#landing?.bytes ?? this.#own;
    this.#payloads++;
    return true;
  }

  /** Makes room for more of a payload whose length was not known, or that has no landing. */
  #grow(needed: number): void {
    const larger = Math.max(needed, OWN_BYTES_MIN, 2 * this.#memory.length);
    const whole = this.#final && this.#inFrame ? this.#memoryBytes + this.#left : Infinity;
    const most = Math.max(OWN_BYTES_MIN, Math.min(whole, this.#frameBytesMax + OWN_BYTES_MIN));
    const memory = Buffer.allocUnsafeSlow(Math.min(larger, most));
    memory.set(this.#memory.subarray(0, this.#memoryBytes));
    this.#own = this.#memory = memory;
    this.#tell();
  }

  #endMessage(): void {
    if (this.#stage === 'payload' && !this.deaf) {
      this.#deliver();
      return;
    }
    try {
      if (this.#stage === 'header') {
        // Complete all the same when only the zeros that pad the header are missing.
        if (this.#prefixBytes < PREFIX_BYTES) throw tooShort(this.#prefixBytes);
        this.#header = this.#keptHeader();
        this.#stage = 'payload';
        this.#deliver();
        return;
      }
    } catch (error) {
      this.#refuse(error);
    }
    this.#reset();
  }

  #deliver(): void {
    const header = this.#header!;
    const payload = this.#memory.subarray(0, this.#memoryBytes);
    const landing = this.#landing;
    try {
      checkPayloadLength(payload.length);
    } catch (error) {
      this.#refuse(error);
      this.#reset();
      return;
    }
    this.#landing = null;
    this.#reset();
    this.#events.message(header, payload, landing, this.#more);
  }

  /** The message is none of ours: what is left of it is skipped, and what was kept of it let go. */
  #refuse(error: unknown): void {
    this.#stage = 'skip';
    this.#landing?.release();
    this.#landing = null;
    this.#memory = EMPTY;
    if (!this.deaf) this.#events.malformed(error as DownpourError);
  }

  /** Ready for the next message. */
  #reset(): void {
    this.#landing?.release();
    this.#landing = null;
    this.#stage = 'none';
    this.#header = null;
    this.#large = this.#messageBytes > LARGE_BYTES;
    this.#messageBytes = 0;
    this.#prefixBytes = 0;
    this.#memory = EMPTY;
    this.#memoryBytes = 0;
    this.#nowhere = false;
    const keeps = this.#own.length <= OWN_BYTES_KEPT && this.#prefix.length <= PREFIX_BYTES_KEPT;
    if (keeps) return;
    if (this.#own.length > OWN_BYTES_KEPT) this.#own = EMPTY;
    if (this.#prefix.length > PREFIX_BYTES_KEPT) this.#prefix = new Uint8Array(256);
    this.#tell();
  }
}
