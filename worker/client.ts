import { randomBytes } from 'node:crypto';
import { bytesOf, floatsOf } from '../shared/codec.ts';
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
import type { Connection, ConnectionEvents, Header, Landing } from '../wire/connection.ts';
import { dial } from '../wire/handshake.ts';
import { findLocalSocket, localSocketWanted } from '../wire/local-socket.ts';
import { Memories } from '../wire/memories.ts';
import { createDecoder } from './compressor.ts';

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
  /** False: never over the unix socket of a server on this machine. */
  readonly localSocket?: boolean;
  /** Payloads that are sent over it; 0: all, from the start. Default: LOCAL_SOCKET_BYTES_MIN. */
  readonly localSocketBytesMin?: number;
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
/**
 * A unix socket of Linux holds 208 KB, one of TCP up to 4 MB: below this size of a payload more
 * waiting costs more than the protocol saves (docs/decisions/0006-receive-in-place.md).
 */
export const LOCAL_SOCKET_BYTES_MIN = 8e6;
const HANDSHAKE_MS = 10_000;
const CLOSE_MS = 2_000;
/** Payloads in use at once: one arrives, one is read from, one is on the device. */
const MEMORIES_KEPT = 3;

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
  readonly header: Push;
  readonly run: string;
  readonly sequence: number;
  readonly lease: number;
  readonly payload: Landing;
  /** How often its bytes are on their way to the socket. */
  sending: number;
  /** Its memory goes back when nothing is sent from it any more. */
  done: boolean;
}

export class Client {
  readonly #options: ClientOptions;
  readonly #url: string;
  readonly #incarnation = randomBytes(8).toString('hex');
  readonly #now: () => number;
  readonly #random: () => number;
  readonly #startedAt: number;
  #connection: Connection | null = null;
  /** The handshake under way. */
  #dialing: { abort(): void } | null = null;
  #sequence = 0;
  #unacknowledged: Unacknowledged[] = [];
  readonly #pushed = new Memories(MEMORIES_KEPT);
  readonly #pulled = new Memories(MEMORIES_KEPT);
  readonly #decoder = createDecoder();
  #received: Received[] = [];
  #waiting: ((error?: unknown) => void) | null = null;
  #fatal: unknown = null;
  #attempt = 0;
  #everConnected = false;
  #closing = false;
  #closed: (() => void) | null = null;
  /** The server's unix socket is the faster way for the payloads at hand. */
  #wantsLocal: boolean;
  /** This connection is closed to be opened anew over another way. */
  #moving = false;
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
    this.#wantsLocal = options.localSocketBytesMin === 0;
    this.#onAbort = () => this.#wake(options.signal.reason);
    options.signal.addEventListener('abort', this.#onAbort, { once: true });
    this.#connect();
  }

  get incarnation(): string {
    return this.#incarnation;
  }

  get connected(): boolean {
    return this.#connection?.open === true;
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

  /**
   * Sends what need not survive a lost connection; without one it is dropped.
   * @param payload stays as it is for as long as the connection may read it.
   */
  send(message: Exclude<WorkerMessage, Push | Hello>, payload?: Float32Array): void {
    this.#connection?.send(message, payload ? [bytesOf(payload)] : []);
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
    const payload = this.#pushed.take(payloadBytes);
    write(payload.bytes);
    const { run, lease } = push;
    const header: Push = { type: 'push', ...push, sequence };
    const kept = { header, run, sequence, lease, payload, sending: 0, done: false };
    this.#unacknowledged.push(kept);
    if (this.connected) this.#sendPush(kept);
    return sequence;
  }

  #sendPush(push: Unacknowledged): void {
    push.sending++;
    this.#connection!.send(push.header, [push.payload.bytes], () => {
      push.sending--;
      if (push.done && push.sending === 0) push.payload.release();
    });
  }

  #keepPushes(which: (push: Unacknowledged) => boolean): void {
    const all = this.#unacknowledged;
    this.#unacknowledged = all.filter(which);
    for (const push of all) {
      if (which(push)) continue;
      push.done = true;
      if (push.sending === 0) push.payload.release();
    }
  }

  /** The server has answered: this push and all before it need not be sent again. */
  acknowledge({ sequence }: Acknowledgement): void {
    this.#keepPushes((push) => push.sequence > sequence);
  }

  /** Sends again what the server did not answer before the connection was lost. @returns how many. */
  resend(run: string): number {
    this.forget(run);
    if (!this.connected) return 0;
    for (const push of this.#unacknowledged) this.#sendPush(push);
    return this.#unacknowledged.length;
  }

  /** Nobody waits any more for the pushes of runs other than this. */
  forget(exceptRun: string | null): void {
    if (this.#unacknowledged.some((push) => push.run !== exceptRun)) this.#crossed = true;
    this.#keepPushes((push) => push.run === exceptRun);
  }

  /**
   * Takes the faster way to a server on this machine, for payloads of this size.
   * @returns true: the connection is opened anew over it, so what was said on this one is void.
   */
  async suit(payloadBytes: number): Promise<boolean> {
    const { localSocketBytesMin = LOCAL_SOCKET_BYTES_MIN } = this.#options;
    this.#wantsLocal = payloadBytes >= localSocketBytesMin;
    const connection = this.#connection;
    if (!connection?.open || (connection.transport === 'unix') === this.#wantsLocal) return false;
    if (this.#wantsLocal && (await this.#findLocalSocket()) === null) return false;
    // It was lost meanwhile, and is opened anew in the right way.
    if (connection !== this.#connection) return true;
    this.#moving = true;
    connection.close(1000);
    return true;
  }

  /** Closes the connection, after what was sent has gone out. Resolves when it is closed. */
  async close(): Promise<void> {
    this.#closing = true;
    this.#options.signal.removeEventListener('abort', this.#onAbort);
    if (this.#timer) clearTimeout(this.#timer);
    if (this.#heartbeat) clearInterval(this.#heartbeat);
    this.#dialing?.abort();
    if (!this.#connection) return;
    await new Promise<void>((resolve) => {
      this.#closed = resolve;
      this.#connection!.close(1000);
    });
  }

  // Inside.

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
    if (!this.#wantsLocal) this.#dial(null);
    else void this.#findLocalSocket().then((path) => this.#closing || this.#dial(path));
  }

  async #findLocalSocket(): Promise<string | null> {
    return localSocketWanted(this.#options.localSocket) ? findLocalSocket(this.#url) : null;
  }

  /** @param path of the server's unix socket; null: over TCP. */
  #dial(path: string | null): void {
    const { token } = this.#options;
    this.#dialing = dial({
      url: this.#url,
      path,
      handshakeMs: HANDSHAKE_MS,
      closeMs: CLOSE_MS,
      headers: token ? { authorization: `Bearer ${token}` } : {},
      opened: (connection) => this.#opened(connection, path),
      failed: (error, status) => {
        this.#dialing = null;
        if (path !== null && status === null && !this.#closing) {
          this.#options.log(`${path} does not answer (${error.message}); trying TCP`);
          this.#dial(null);
          return;
        }
        this.#refusal = refusalOfStatus(status, this.#url);
        // Of several addresses that were tried, there is only the code.
        const text = errorText(error) || (error as NodeJS.ErrnoException).code;
        this.#lost(1006, text ?? 'connection closed');
      },
    });
  }

  #opened(connection: Connection, path: string | null): ConnectionEvents {
    this.#dialing = null;
    this.#connection = connection;
    if (!this.#everConnected || this.#attempt > 0 || this.#moving) {
      const through = path === null ? '' : `, over its unix socket ${path}`;
      this.#options.log(`connected to ${this.#url}${through}`);
    }
    this.#everConnected = true;
    this.#moving = false;
    this.#lastSeen = this.#lastBeat = this.#now();
    this.#heartbeat = setInterval(() => this.#beat(connection), LIMITS.heartbeatMs);
    const { hello } = this.#options;
    const first: Hello = { type: 'hello', ...hello, incarnation: this.#incarnation };
    connection.send(first);
    return {
      land: (_, payloadBytes) => (payloadBytes === null ? null : this.#pulled.take(payloadBytes)),
      message: (header, payload, landing) => this.#receive(header, payload, landing),
      malformed: (error) => this.#misunderstood(error),
      broken: (error) => this.#misunderstood(error),
      alive: () => {
        this.#lastSeen = this.#now();
      },
      closed: (code, reason) => {
        this.#connection = null;
        this.#lost(code, reason);
        this.#closed?.();
      },
    };
  }

  #receive(header: Header, payload: Uint8Array, landing: Landing | null): void {
    try {
      const message = checkServerMessage(header);
      // Only a server that lets the worker in counts as reached; else a refusing one would be
      // asked without a pause.
      if (message.type !== 'error') this.#attempt = 0;
      if (message.type === 'error') {
        landing?.release();
        this.#refused(knownCode(message.code), message.message);
      } else {
        this.#received.push({ message, ...this.#numbersOf(message, payload, landing) });
        this.#wake();
      }
    } catch (error) {
      landing?.release();
      this.#misunderstood(error);
    }
  }

  /** A payload as f32, with what gives its memory back. */
  #numbersOf(
    message: ServerMessage,
    payload: Uint8Array,
    landing: Landing | null,
  ): Pick<Received, 'payload' | 'release'> {
    if (message.type === 'work' && message.encoding !== 'f32') {
      const memory = this.#pulled.take(2 * payload.length);
      this.#decoder.decode(payload, floatsOf(memory.bytes));
      landing?.release();
      return { payload: floatsOf(memory.bytes), release: memory.release };
    }
    if (landing) return { payload: floatsOf(payload), release: landing.release };
    // The receiver reads the next one into the same memory.
    return { payload: floatsOf(payload.slice()) };
  }

  /** The server speaks another language. */
  #misunderstood(error: unknown): void {
    this.#fail(error);
    this.#connection?.close(1002, error instanceof DownpourError ? error.code : 'DP_INTERNAL');
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
    for (const { release } of this.#received) release?.();
    this.#received = [];
    if (this.#closing || this.#fatal !== null) return;
    if (this.#moving && code === 1000) {
      this.#connect();
      return;
    }
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

  #beat(connection: Connection): void {
    const now = this.#now();
    // A computation held the process up: what has arrived meanwhile has not been read yet.
    const held = now - this.#lastBeat > 2 * LIMITS.heartbeatMs;
    this.#lastBeat = now;
    if (held) this.#lastSeen = now;
    if (now - this.#lastSeen > LIMITS.silenceMs) connection.terminate();
    else connection.ping();
  }
}

/** What the answer to the handshake says; null: try again. */
function refusalOfStatus(status: number | null, url: string): DownpourError | null {
  if (status === 401 || status === 403) {
    return new DownpourError(
      'DP_UNAUTHORIZED',
      `the server at ${url} refuses this worker's token: set DOWNPOUR_TOKEN or --token as on the server`,
    );
  }
  if (status === 426 || status === 400) {
    return new DownpourError(
      'DP_PROTOCOL_VERSION',
      `the server at ${url} answers HTTP status ${status}: is it a Downpour server of this release?`,
    );
  }
  return null;
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
