import type { Socket } from 'node:net';
import { WebSocket } from 'ws';
import { encodeHeader, writeHeader } from '../shared/codec.ts';
import { DownpourError } from '../shared/errors.ts';
import { CONTROL_BYTES_MAX, FRAME_HEAD_MAX, OPCODES, writeFrameHead } from './frames.ts';
import { type ReadWay, readElsewhere, readInto, type Sink } from './node-sockets.ts';
import {
  type Coming,
  type FrameHeader,
  type Landing,
  type PayloadPlace,
  Receiver,
} from './receiver.ts';

export type { ReadWay } from './node-sockets.ts';
export type { Coming, FrameHeader, Landing, PayloadPlace } from './receiver.ts';

/**
 * One end of a Downpour connection, server's or worker's, after the handshake: whole frames come in, their payloads in
 * memory that the owner names, and frames of several pieces go out without being joined. The receiver stands before
 * `ws` at the socket and takes the binary messages; all else of the WebSocket protocol, closing among it, is `ws`'s.
 */

export interface ConnectionEvents {
  /** See `ReceiverEvents.land`; after 'wait', `retry` asks again. */
  land(header: FrameHeader, payloadBytes: number | null): PayloadPlace;
  /** See `ReceiverEvents.memory`. */
  memory?(change: number): void;
  /** See `ReceiverEvents.message`. */
  message(header: FrameHeader, payload: Uint8Array, landing: Landing | null, more?: boolean): void;
  /** A message was no Downpour frame. The connection stays open unless you close it. */
  malformed(error: DownpourError): void;
  /** The WebSocket protocol was broken; `ws` closes the connection. */
  broken(error: DownpourError): void;
  /** Bytes came: the other end lives. Called often. */
  alive(): void;
  /** Bytes have come and are looked at next, in this turn. */
  reading?(): void;
  /** They have been. @param begun some of them are of a message that is not whole, and has no landing for them. */
  read?(begun: boolean): void;
  /** A ping or pong came. */
  control?(): void;
  /** All messages that could be read at once have been told. */
  drained?(): void;
  /**
   * The end, exactly once. @param code of the other end's close frame, 1005: it had none, 1006: there
   * was no close frame. @param reason what it said, or what went wrong.
   */
  closed(code: number, reason: string): void;
}

export interface ConnectionOptions {
  readonly role: 'server' | 'client';
  /** `copied` does without the parts of Node that are not documented. */
  readonly way?: ReadWay;
  /** How long the other end may take over the closing handshake, ms. */
  readonly closeMs?: number;
  /** Size of one message. */
  readonly frameBytesMax?: number;
}

/** Bytes [start, end) that leave together. */
interface OutgoingPiece {
  readonly bytes: Uint8Array;
  readonly start: number;
  end: number;
  readonly gone: (() => void) | undefined;
}

/** A payload up to this size is copied behind its header: to write it by itself costs Node more. */
const JOINED_BYTES_MAX = 4_096;
/**
 * Headers and small payloads are put together here, of all connections one after another. What has been written
 * is not touched again; when it is full there is a new one.
 */
let slab = Buffer.allocUnsafeSlow(32 * 1024);
let slabUsed = 0;
/** Less is not enough for a header as a rule, and a small payload. */
const SLAB_LEFT_MIN = 2_048 + JOINED_BYTES_MAX;
const CLOSE_MS = 5_000;
/** Pongs that wait to be sent; beyond, only the last ping is answered (RFC 6455, section 5.5.3). */
const PONGS_MAX = 64;

export class Connection {
  readonly #ws: WebSocket;
  readonly #socket: Socket;
  readonly #options: ConnectionOptions;
  readonly #receiver: Receiver;
  readonly transport: 'tcp' | 'unix';
  /** Written in this turn; leaves at its end. */
  #queue: OutgoingPiece[] = [];
  #queuedBytes = 0;
  /** Bytes of all frames since the connection was opened. */
  #enqueuedBytes = 0;
  // Why nothing is told and read: see `halt` and `hold`.
  #halted = false;
  #holding = false;
  /** Who waits to hear that what was copied is of no more use. */
  #copied: (() => void)[] = [];
  #error = '';
  #timer: NodeJS.Timeout | null = null;
  /** `drained` is told then. */
  #drain: NodeJS.Immediate | null = null;
  #texts = 0;
  #pongs = 0;
  #lastPing: Uint8Array | null = null;
  #way: ReadWay | null = null;
  /** Bytes of payloads that were read into landings, in all reads but the last. */
  #landedBytes = 0;
  #events: ConnectionEvents | null = null;
  /** For whoever reads the socket; see `start`. */
  readonly sink: Sink;

  /**
   * @internal
   * @param ws open, on this socket, from which nothing has been read since.
   */
  constructor(ws: WebSocket, socket: Socket, options: ConnectionOptions) {
    this.#ws = ws;
    this.#socket = socket;
    this.#options = options;
    this.transport = socket.remotePort === undefined ? 'unix' : 'tcp';
    const { role, frameBytesMax } = options;
    const toWs = standBefore(socket);
    const receiver = new Receiver({
      fromClient: role === 'server',
      ...(frameBytesMax === undefined ? {} : { frameBytesMax }),
      events: {
        land: (header, bytes) => this.#events!.land(header, bytes),
        memory: (change) => this.#events?.memory?.(change),
        message: (header, payload, landing, more) =>
          this.#events!.message(header, payload, landing, more),
        malformed: (error) => this.#events!.malformed(error),
        pass: (bytes, endsText) => {
          const texts = this.#texts;
          // What was sent before leaves before what `ws` answers.
          this.#flush();
          toWs(bytes);
          if (ws.readyState !== WebSocket.OPEN) this.#end();
          // It says what is wrong with it a little later.
          else if (endsText && this.#texts === texts) receiver.stop();
        },
      },
    });
    this.#receiver = receiver;
    this.sink = {
      next: () => receiver.next(),
      filled: (bytes) => {
        this.#events!.reading?.();
        this.#came(receiver.filled(bytes), bytes);
      },
      feed: (chunk) => {
        this.#events!.reading?.();
        receiver.feed(chunk);
        this.#came(false, chunk.length);
      },
    };
    socket.on('error', (error) => {
      this.#error ||= error.message;
    });
    socket.on('drain', () => this.#left());
    // Half open: nothing more can be asked of the other end. `ws` ends it then, when what was sent has left.
    socket.prependListener('end', () => {
      this.#flush();
      this.#end();
    });
    ws.pause();
    ws.on('ping', (payload: Buffer) => {
      this.#answer(payload);
      this.#events!.control?.();
    });
    ws.on('pong', () => this.#events!.control?.());
    ws.on('message', () => {
      this.#texts++;
      this.#events!.malformed(
        new DownpourError(
          'DP_FRAME_MALFORMED',
          'malformed frame: a text message; frames are binary',
        ),
      );
    });
    ws.on('error', (error) => this.#broken(error));
    ws.on('close', (code, reason) => {
      if (this.#timer) clearTimeout(this.#timer);
      receiver.end();
      this.#flush();
      const why = code === 1006 ? this.#error || 'connection lost' : reason.toString();
      this.#events?.closed(code, why);
    });
  }

  /**
   * Reads from now on.
   * @param way of a socket that gives what it reads to `sink` already; else it is made to.
   */
  start(events: ConnectionEvents, way?: ReadWay): void {
    this.#events = events;
    // What came with the handshake, `ws` has put back.
    const head = this.#socket.readableLength > 0 ? (this.#socket.read() as Buffer | null) : null;
    if (head) this.sink.feed(head);
    this.#way = way ?? readInto(this.#socket, this.sink, this.#options.way);
    if (!this.#receiver.standing) this.#ws.resume();
  }

  get way(): ReadWay | null {
    return this.#way;
  }

  /** That have come and gone since the socket was opened. */
  get bytes(): { received: number; sent: number } {
    return { received: this.#socket.bytesRead, sent: this.#socket.bytesWritten };
  }

  /** Messages can be sent. */
  get open(): boolean {
    return this.#ws.readyState === WebSocket.OPEN && this.#socket.writable;
  }

  /** Reading stands still until there is a landing. */
  get waiting(): boolean {
    return this.#receiver.waiting;
  }

  /** Reading stands still until what was sent has left: see `hold`. */
  get holding(): boolean {
    return this.#holding;
  }

  /** A payload that has begun and not ended. */
  get coming(): Coming | null {
    return this.#receiver.coming;
  }

  /** Bytes that have left, of all that were sent: as whole pieces have. */
  get leftBytes(): number {
    return this.#enqueuedBytes - this.bufferedBytes;
  }

  /** Bytes that have been sent and have not left yet. */
  get bufferedBytes(): number {
    return this.#socket.writableLength + this.#queuedBytes;
  }

  // Sending.

  /**
   * Sends a frame. Its parts are not copied, but for small ones: they must stay as they are until `gone`.
   * @param gone called once, and not at once: the parts are of no more use.
   */
  send(header: object, parts: readonly Uint8Array[] = [], gone?: () => void): void {
    if (!this.open) {
      if (gone) process.nextTick(gone);
      return;
    }
    let bytes = 0;
    for (const part of parts) bytes += part.length;
    this.#writeHead(header, bytes);
    let last = parts.length - 1;
    while (last >= 0 && parts[last]!.length === 0) last--;
    for (let i = 0; i <= last; i++) {
      const part = parts[i]!;
      if (part.length > 0 && !this.#join(part)) this.#write(part, i === last ? gone : undefined);
      else if (i === last && gone) this.#copied.push(gone);
    }
    if (last < 0 && gone) this.#copied.push(gone);
  }

  /** @param bytes of the payload that follows. */
  #writeHead(header: object, bytes: number): void {
    if (slab.length - slabUsed < SLAB_LEFT_MIN) {
      slab = Buffer.allocUnsafeSlow(slab.length);
      slabUsed = 0;
    }
    const masked = this.#options.role === 'client';
    const at = slabUsed + FRAME_HEAD_MAX;
    const end = writeHeader(header, slab, at);
    if (end === 0) {
      const rest = encodeHeader(header);
      const head = new Uint8Array(FRAME_HEAD_MAX + rest.length);
      const length = rest.length + bytes;
      const start = writeFrameHead(head, FRAME_HEAD_MAX, {
        opcode: OPCODES.binary,
        length,
        masked,
      });
      head.set(rest, FRAME_HEAD_MAX);
      this.#write(head.subarray(start), undefined);
      return;
    }
    // Not more room than the head needs, so that one message follows the other.
    const length = end - at + bytes;
    const start = writeFrameHead(slab, at, { opcode: OPCODES.binary, length, masked });
    slab.copyWithin(slabUsed, start, end);
    this.#grow(end - start);
  }

  /** Copies a small piece behind what was written last. @returns whether it did. */
  #join(part: Uint8Array): boolean {
    if (part.length > JOINED_BYTES_MAX || slab.length - slabUsed < part.length) return false;
    slab.set(part, slabUsed);
    this.#grow(part.length);
    return true;
  }

  /** So many bytes behind `slabUsed` are to be sent. */
  #grow(bytes: number): void {
    const last = this.#queue.at(-1);
    const start = slabUsed;
    slabUsed += bytes;
    if (last?.bytes === slab && last.end === start) {
      last.end = slabUsed;
      this.#queuedBytes += bytes;
      this.#enqueuedBytes += bytes;
    } else this.#enqueue({ bytes: slab, start, end: slabUsed, gone: undefined });
  }

  ping(): void {
    if (!this.open) return;
    this.#flush();
    this.#countControl(0);
    this.#ws.ping();
  }

  /** `ws` sends a control frame. @param bytes of its payload. */
  #countControl(bytes: number): void {
    this.#enqueuedBytes += 2 + (this.#options.role === 'client' ? 4 : 0) + bytes;
  }

  #write(bytes: Uint8Array, gone?: () => void): void {
    this.#enqueue({ bytes, start: 0, end: bytes.length, gone });
  }

  #enqueue(piece: OutgoingPiece): void {
    if (this.#queue.length === 0) process.nextTick(this.#flush);
    this.#queue.push(piece);
    this.#queuedBytes += piece.end - piece.start;
    this.#enqueuedBytes += piece.end - piece.start;
  }

  /** What is written in one turn leaves with one system call. */
  readonly #flush = (): void => {
    const queue = this.#queue;
    if (queue.length === 0) return;
    this.#queue = [];
    this.#queuedBytes = 0;
    const socket = this.#socket;
    // After its closing frame none may follow.
    if (this.open) {
      const joins = queue.length > 1;
      if (joins) socket.cork();
      for (const { bytes, start, end, gone } of queue) {
        socket.write(end - start === bytes.length ? bytes : bytes.subarray(start, end), gone);
      }
      if (joins) socket.uncork();
    } else for (const { gone } of queue) gone?.();
    if (this.#holding && !socket.writableNeedDrain) this.#left();
    const copied = this.#copied;
    if (copied.length === 0) return;
    this.#copied = [];
    for (const gone of copied) gone();
  };

  // Receiving.

  readonly #drained = (): void => {
    this.#drain = null;
    this.#events?.drained?.();
  };

  /** @param more may be there: it is read before the turn of the event loop ends. @param bytes that came. */
  #came(more: boolean, bytes: number): void {
    const events = this.#events!;
    events.alive();
    if (events.drained) {
      if (more && !this.#drain) this.#drain = setImmediate(this.#drained);
      if (!this.#drain) events.drained();
    }
    const landed = this.#receiver.landedBytes - this.#landedBytes;
    this.#landedBytes += landed;
    events.read?.(!this.#receiver.between && 2 * landed < bytes);
    if (this.#receiver.standing) this.#ws.pause();
  }

  /** After `land` said 'wait': asks again. */
  retry(): void {
    if (!this.#receiver.waiting) return;
    this.#events?.reading?.();
    const goesOn = this.#receiver.retry();
    this.#again(goesOn);
  }

  /** To be called within an event: no other message is told, and nothing is read, until `goOn`. */
  halt(): void {
    this.#halted = true;
    this.#receiver.halt();
  }

  goOn(): void {
    this.#halted = false;
    this.#resume();
  }

  /** To be called within an event: no other message is told, and nothing is read, until all that was sent has left. */
  hold(): void {
    if (this.#holding || !this.open) return;
    this.#holding = true;
    this.#receiver.halt();
    // The event may be none of a message.
    this.#ws.pause();
  }

  #left(): void {
    if (!this.#holding) return;
    this.#holding = false;
    this.#resume();
  }

  #resume(): void {
    if (this.#halted || this.#holding) return;
    this.#events?.reading?.();
    const goesOn = this.#receiver.goOn();
    this.#again(goesOn);
  }

  #again(goesOn: boolean): void {
    this.#events?.drained?.();
    this.#events?.read?.(!this.#receiver.between);
    // What was told last may have halted it.
    if (goesOn && !this.#receiver.standing) this.#ws.resume();
  }

  /**
   * The payload that is coming goes on in another place; see `Receiver.move`.
   * @returns false: not on this machine's sockets. Nothing has changed.
   */
  move(to: Landing): boolean {
    if (this.#way === 'straight' && !readElsewhere(this.#socket)) return false;
    this.#receiver.move(to);
    if (this.#way === 'straight') readElsewhere(this.#socket, this.sink);
    return true;
  }

  #answer(ping: Uint8Array): void {
    if (!this.open) return;
    if (this.#pongs >= PONGS_MAX) {
      this.#lastPing = ping;
      return;
    }
    this.#pongs++;
    this.#countControl(ping.length);
    this.#ws.pong(ping, undefined, () => {
      this.#pongs--;
      const last = this.#lastPing;
      this.#lastPing = null;
      if (last) this.#answer(last);
    });
  }

  /** `ws` has found what breaks the protocol, and closes the connection. */
  #broken(error: Error & { code?: string }): void {
    this.#receiver.stop();
    const { excess } = this.#receiver;
    const what = error.message.replace('Invalid WebSocket frame: ', '');
    this.#events!.broken(
      excess === null
        ? new DownpourError('DP_FRAME_MALFORMED', `malformed frame: ${what}`)
        : new DownpourError('DP_FRAME_TOO_LARGE', excess),
    );
    this.#end();
  }

  // Closing.

  /**
   * Closes after what was sent before has left. Messages that still come are not delivered.
   * @param reason of at most 123 bytes.
   */
  close(code: number, reason = ''): void {
    if (!this.open) return;
    this.#flush();
    const text = Buffer.from(reason).subarray(0, CONTROL_BYTES_MAX - 2);
    if (code === 1005) this.#ws.close();
    else this.#ws.close(code, text);
    this.#end();
  }

  /** Ends at once, without the closing handshake. */
  terminate(): void {
    this.#ws.terminate();
  }

  /** It is closing: nothing more is told, and the socket is gone soon, whatever the other end does. */
  #end(): void {
    this.#receiver.deaf = true;
    this.#timer ??= setTimeout(() => this.#socket.destroy(), this.#options.closeMs ?? CLOSE_MS);
    this.#left();
    this.retry();
  }
}

/** Takes the place of those who listen to what a socket reads. @returns what hands bytes on to them. */
function standBefore(socket: Socket): (bytes: Buffer) => void {
  const listeners = socket.listeners('data') as ((bytes: Buffer) => void)[];
  for (const listener of listeners) socket.off('data', listener);
  return (bytes) => {
    for (const listener of listeners) listener.call(socket, bytes);
  };
}
