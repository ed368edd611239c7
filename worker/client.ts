import { randomBytes } from 'node:crypto';
import WebSocket from 'ws';
import { bytesOf, decodeFrame, encodeHeader, floatsOf } from '../shared/codec.ts';
import { decodeGradient } from '../shared/compression.ts';
import { LIMITS } from '../shared/config.ts';
import { DownpourError, ERRORS, type ErrorCode, errorText } from '../shared/errors.ts';
import {
  type Acknowledgement,
  checkServerMessage,
  type Hello,
  knownCode,
  type Push,
  type ServerMessage,
  type WorkerMessage,
} from '../shared/protocol.ts';

/**
 * The worker's end of the wire. Keeps a connection to the server: a lost one is opened anew, with
 * growing random pauses, and begins with `hello`. A push is kept until the server has said what
 * became of it, and sent again under its old sequence after a `join` on a new connection; the
 * server applies a sequence once.
 */

export interface ClientOptions {
  /** `ws://host:port` or `wss://…`; the path `/ws` is added where there is none. */
  readonly server: string;
  readonly token?: string | null;
  readonly hello: Omit<Hello, 'type' | 'incarnation'>;
  readonly signal: AbortSignal;
  readonly log: (line: string) => void;
  /** How long to look for a server that was never reached, ms; null: for ever. */
  readonly patienceMs?: number | null;
  /** Monotonic ms. */
  readonly now?: () => number;
  /** Uniform in [0, 1). */
  readonly random?: () => number;
}

/** What the server said. `payload` is the receiver's own until it calls `release`; possibly empty. */
export interface Received {
  readonly message: Exclude<ServerMessage, { type: 'error' }>;
  readonly payload: Float32Array;
  /** Gives the payload's memory back, to be received into again; absent: it is never used again. */
  readonly release?: () => void;
}

/** First and longest pause between attempts to connect, ms, before the jitter. */
export const BACKOFF = { firstMs: 250, maxMs: 15_000 } as const;
const HANDSHAKE_MS = 10_000;
/** What a header may take beside its payload in a push's frame. */
const HEADER_ROOM = 1024;

/**
 * The pause before attempt `attempt` (0-based): uniform between 0 and an exponentially growing
 * limit, so that the workers of a cluster do not all come back at the same moment.
 */
export function backoffMs(attempt: number, random: () => number): number {
  return random() * Math.min(BACKOFF.maxMs, BACKOFF.firstMs * 2 ** Math.min(attempt, 20));
}

/** @throws DownpourError DP_USAGE: not an address of a server. */
export function socketUrl(server: string): string {
  let url: URL;
  try {
    url = new URL(/^[a-z]+:\/\//.test(server) ? server : `ws://${server}`);
  } catch (cause) {
    throw badAddress(server, cause);
  }
  if (url.protocol === 'http:') url.protocol = 'ws:';
  if (url.protocol === 'https:') url.protocol = 'wss:';
  if (url.protocol !== 'ws:' && url.protocol !== 'wss:') throw badAddress(server);
  if (url.pathname === '/') url.pathname = '/ws';
  return url.href;
}

const badAddress = (server: string, cause?: unknown) =>
  new DownpourError(
    'DP_USAGE',
    `'${server}' is not the address of a server; write it like ws://host:7420`,
    { cause },
  );

interface Unacknowledged {
  readonly run: string;
  readonly sequence: number;
  readonly lease: number;
  readonly frame: Uint8Array;
}

export class Client {
  readonly #options: ClientOptions;
  readonly #url: string;
  readonly #incarnation = randomBytes(8).toString('hex');
  readonly #now: () => number;
  readonly #random: () => number;
  readonly #startedAt: number;
  #socket: WebSocket | null = null;
  #sequence = 0;
  #unacknowledged: Unacknowledged[] = [];
  /** Memory of acknowledged pushes, for the next: fresh pages cost more than the copy. */
  #spare: Uint8Array | null = null;
  #received: Received[] = [];
  #waiting: ((error?: unknown) => void) | null = null;
  #fatal: unknown = null;
  #attempt = 0;
  #everConnected = false;
  #closing = false;
  #timer: NodeJS.Timeout | null = null;
  #heartbeat: NodeJS.Timeout | null = null;
  #lastSeen = 0;
  #lastBeat = 0;
  /** What the server said before it closed the connection. */
  #refusal: DownpourError | null = null;
  /** A push crossed the end of its run on the wire: the server may call it out of order. */
  #crossed = false;
  readonly #onAbort: () => void;

  constructor(options: ClientOptions) {
    this.#options = options;
    this.#url = socketUrl(options.server);
    this.#now = options.now ?? (() => performance.now());
    this.#random = options.random ?? Math.random;
    this.#startedAt = this.#now();
    this.#onAbort = () => this.#wake(options.signal.reason);
    options.signal.addEventListener('abort', this.#onAbort, { once: true });
    this.#connect();
  }

  get incarnation(): string {
    return this.#incarnation;
  }

  get connected(): boolean {
    return this.#socket?.readyState === WebSocket.OPEN;
  }

  /** The pushes that the server has not answered yet, oldest first. */
  get unacknowledged(): readonly { readonly sequence: number; readonly lease: number }[] {
    return this.#unacknowledged;
  }

  /** Something has come that `next` has not given yet. */
  get hasReceived(): boolean {
    return this.#received.length > 0;
  }

  /**
   * The next message. Messages of a connection that is lost meanwhile are gone: an `assign` of the
   * new one follows.
   * @throws DownpourError with the server's code when it will never let this worker take part;
   *   DP_FRAME_MALFORMED or DP_PROTOCOL_VERSION: it speaks another language; DP_SERVER_UNREACHABLE:
   *   it was not found within `patienceMs`; the signal's reason when aborted.
   */
  async next(): Promise<Received> {
    for (;;) {
      this.#options.signal.throwIfAborted();
      const received = this.#received.shift();
      if (received) return received;
      if (this.#fatal !== null) throw this.#fatal;
      await new Promise<void>((resolve, reject) => {
        this.#waiting = (error) => (error === undefined ? resolve() : reject(error));
      });
    }
  }

  /** Sends what need not survive a lost connection; without one it is dropped. */
  send(message: Exclude<WorkerMessage, Push | Hello>, payload?: Float32Array): void {
    if (!this.connected) return;
    const head = encodeHeader(message);
    if (!payload || payload.length === 0) {
      this.#socket!.send(head, { binary: true });
      return;
    }
    this.#socket!.send(head, { binary: true, fin: false });
    this.#socket!.send(bytesOf(payload), { binary: true, fin: true });
  }

  /**
   * Sends a gradient, now or when there is a connection again.
   * @param write fills the payload, at once; its memory, 8-byte aligned, stays as it is until the push
   *   is acknowledged or forgotten.
   * @returns its sequence.
   */
  push(
    push: Omit<Push, 'type' | 'sequence'>,
    payloadBytes: number,
    write: (payload: Uint8Array) => void,
  ): number {
    const sequence = ++this.#sequence;
    const head = encodeHeader({ type: 'push', ...push, sequence });
    const frame = this.#memory(head.length + payloadBytes);
    frame.set(head);
    write(frame.subarray(head.length));
    this.#unacknowledged.push({ run: push.run, sequence, lease: push.lease, frame });
    if (this.connected) this.#socket!.send(frame, { binary: true });
    return sequence;
  }

  /** The server has answered: this push and all before it need not be sent again. */
  acknowledge({ sequence }: Acknowledgement): void {
    for (const push of this.#unacknowledged) {
      if (push.sequence <= sequence) this.#spare = new Uint8Array(push.frame.buffer);
    }
    this.#unacknowledged = this.#unacknowledged.filter((push) => push.sequence > sequence);
  }

  /** Sends again what the server did not answer before the connection was lost. @returns how many. */
  resend(run: string): number {
    this.forget(run);
    if (!this.connected) return 0;
    for (const { frame } of this.#unacknowledged) this.#socket!.send(frame, { binary: true });
    return this.#unacknowledged.length;
  }

  /** Nobody waits any more for the pushes of runs other than this. */
  forget(exceptRun: string | null): void {
    const kept = this.#unacknowledged.filter((push) => push.run === exceptRun);
    if (kept.length < this.#unacknowledged.length) this.#crossed = true;
    this.#unacknowledged = kept;
  }

  /** Closes the connection, after what was sent has gone out. Resolves when it is closed. */
  async close(): Promise<void> {
    this.#closing = true;
    this.#options.signal.removeEventListener('abort', this.#onAbort);
    if (this.#timer) clearTimeout(this.#timer);
    if (this.#heartbeat) clearInterval(this.#heartbeat);
    const socket = this.#socket;
    if (!socket || socket.readyState === WebSocket.CLOSED) return;
    await new Promise<void>((resolve) => {
      // A server that hangs must not keep the worker from ending.
      const timer = setTimeout(() => socket.terminate(), 2000);
      socket.once('close', () => {
        clearTimeout(timer);
        resolve();
      });
      if (socket.readyState === WebSocket.CONNECTING) socket.terminate();
      else socket.close(1000);
    });
  }

  // Inside.

  #memory(length: number): Uint8Array {
    const spare = this.#spare;
    this.#spare = null;
    if (spare && spare.length >= length && spare.length <= 2 * length + HEADER_ROOM) {
      return spare.subarray(0, length);
    }
    return new Uint8Array(length + HEADER_ROOM).subarray(0, length);
  }

  #wake(error?: unknown): void {
    const waiting = this.#waiting;
    this.#waiting = null;
    waiting?.(error);
  }

  #fail(error: unknown): void {
    if (this.#closing) return;
    this.#fatal ??= error;
    this.#wake();
  }

  #connect(): void {
    this.#timer = null;
    this.#refusal = null;
    this.#crossed = false;
    const { token, hello } = this.#options;
    const socket = new WebSocket(this.#url, {
      perMessageDeflate: false,
      maxPayload: LIMITS.frameBytesMax,
      handshakeTimeout: HANDSHAKE_MS,
      // A mask protects proxies from what browsers are made to send; it costs 0.4–0.8 CPU seconds
      // a gigabyte on each side. One of zeros is valid and skipped.
      generateMask: (mask) => mask.fill(0),
      ...(token ? { headers: { authorization: `Bearer ${token}` } } : {}),
    });
    this.#socket = socket;
    let reason = 'connection closed';
    socket.on('open', () => {
      if (!this.#everConnected || this.#attempt > 0) this.#options.log(`connected to ${this.#url}`);
      this.#everConnected = true;
      this.#lastSeen = this.#lastBeat = this.#now();
      this.#heartbeat = setInterval(() => this.#beat(socket), LIMITS.heartbeatMs);
      const first: Hello = { type: 'hello', ...hello, incarnation: this.#incarnation };
      socket.send(encodeHeader(first), { binary: true });
    });
    socket.on('message', (data, isBinary) => this.#receive(socket, data as Buffer, isBinary));
    for (const event of ['ping', 'pong'] as const) {
      socket.on(event, () => {
        this.#lastSeen = this.#now();
      });
    }
    socket.on('unexpected-response', (request, response) => {
      const status = response.statusCode ?? 0;
      reason = `HTTP status ${status}`;
      if (status === 401 || status === 403) {
        this.#refusal = new DownpourError(
          'DP_UNAUTHORIZED',
          `the server at ${this.#url} refuses this worker's token: set DOWNPOUR_TOKEN or --token as on the server`,
        );
      } else if (status === 426 || status === 400) {
        this.#refusal = new DownpourError(
          'DP_PROTOCOL_VERSION',
          `the server at ${this.#url} answers HTTP status ${status}: is it a Downpour server of this release?`,
        );
      }
      request.destroy();
      socket.terminate();
    });
    socket.on('error', (error) => {
      reason = errorText(error) || ((error as NodeJS.ErrnoException).code ?? reason);
    });
    socket.on('close', (code, text) => {
      if (this.#socket === socket) this.#lost(code, text.toString() || reason);
    });
  }

  #receive(socket: WebSocket, data: Buffer, isBinary: boolean): void {
    if (this.#socket !== socket) return;
    this.#lastSeen = this.#now();
    try {
      if (!isBinary) {
        throw new DownpourError(
          'DP_FRAME_MALFORMED',
          'malformed frame: the server sent a text message; is it a Downpour server?',
        );
      }
      const { header, payload } = decodeFrame(data);
      const message = checkServerMessage(header);
      // Only a server that lets the worker in counts as reached; else a refusing one would be
      // asked without a pause.
      if (message.type !== 'error') this.#attempt = 0;
      if (message.type === 'error') this.#refused(knownCode(message.code), message.message);
      else {
        this.#received.push({ message, payload: numbersOf(message, payload) });
        this.#wake();
      }
    } catch (error) {
      this.#fail(error);
      socket.close(1002, error instanceof DownpourError ? error.code : 'DP_INTERNAL');
    }
  }

  #refused(code: ErrorCode, message: string): void {
    const { close, retry } = ERRORS[code];
    const error = new DownpourError(code, message);
    // The connection stays open: one message was refused, the next one may not be.
    if (close === null) this.#options.log(`the server refused: ${code} ${message}`);
    else if (retry === 'never' && !(code === 'DP_PROTOCOL_ORDER' && this.#crossed)) {
      this.#fail(error);
    } else this.#refusal = error;
  }

  #lost(code: number, reason: string): void {
    if (this.#heartbeat) clearInterval(this.#heartbeat);
    this.#heartbeat = null;
    this.#received = [];
    if (this.#closing || this.#fatal !== null) return;
    const refusal = this.#refusal ?? refusalOf(code, reason);
    if (refusal && ERRORS[refusal.code].retry === 'never' && !this.#crossed) {
      this.#fail(refusal);
      return;
    }
    const { patienceMs = null } = this.#options;
    if (!this.#everConnected && patienceMs !== null) {
      if (this.#now() - this.#startedAt >= patienceMs) {
        this.#fail(
          new DownpourError(
            'DP_SERVER_UNREACHABLE',
            `no server at ${this.#url} within ${patienceMs / 1000} s (${reason}): start one with downpour serve, or correct --server`,
          ),
        );
        return;
      }
    }
    const pause = backoffMs(this.#attempt++, this.#random);
    const why = refusal ? `${refusal.code} ${refusal.message}` : reason;
    // The first failures and then ever fewer, not a line a second.
    if ((this.#attempt & (this.#attempt - 1)) === 0) {
      this.#options.log(`no connection to ${this.#url} (${why}); trying again`);
    }
    this.#timer = setTimeout(() => this.#connect(), pause);
  }

  #beat(socket: WebSocket): void {
    const now = this.#now();
    // A computation held the process up: what has arrived meanwhile has not been read yet.
    const held = now - this.#lastBeat > 2 * LIMITS.heartbeatMs;
    this.#lastBeat = now;
    if (held) this.#lastSeen = now;
    if (now - this.#lastSeen > LIMITS.silenceMs) socket.terminate();
    else if (socket.readyState === WebSocket.OPEN) socket.ping();
  }
}

/** A payload as f32: of parameters in bf16, a new array. */
function numbersOf(message: ServerMessage, payload: Uint8Array): Float32Array {
  if (message.type !== 'work' || message.encoding === 'f32') return floatsOf(payload);
  const values = new Float32Array(payload.length / 2);
  decodeGradient(message.encoding, payload, values);
  return values;
}

/** What a close code says when no error message came before it; null: try again. */
function refusalOf(close: number, reason: string): DownpourError | null {
  if (reason in ERRORS) {
    return new DownpourError(reason as ErrorCode, `the server closed the connection: ${reason}`);
  }
  if (close === 4401) {
    return new DownpourError('DP_UNAUTHORIZED', "the server refuses this worker's token");
  }
  if (close === 1009) {
    return new DownpourError('DP_FRAME_TOO_LARGE', `the server closed the connection: ${reason}`);
  }
  return null;
}
