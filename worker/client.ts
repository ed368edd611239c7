import type { ConnectionOptions } from 'node:tls';
import type { Aside } from '../shared/asides.ts';
import { BUNDLE_HEADER } from '../shared/bundle.ts';
import { bytesOf, floatsOf } from '../shared/codec.ts';
import { RESIDUAL_DECAY_HEADER } from '../shared/config.ts';
import { DownpourError, ERRORS, type ErrorCode, errorText } from '../shared/errors.ts';
import { GROUPS_HEADER } from '../shared/groups.ts';
import type { Layout } from '../shared/layout.ts';
import { LIMITS } from '../shared/limits.ts';
import { FRAGMENTS_HEADER, fragmentsOf, LOCAL_STEPS_HEADER } from '../shared/local-steps.ts';
import type { Log } from '../shared/log.ts';
import type { ServerAddress } from '../shared/message-fields.ts';
import {
  type Acknowledgement,
  type Assign,
  checkServerMessage,
  type Hello,
  type Initialised,
  type Join,
  knownCode,
  type Push,
  type ServerMessage,
  type Work,
  type WorkerMessage,
} from '../shared/protocol.ts';
import type { Connection, ConnectionEvents, FrameHeader, Landing } from '../wire/connection.ts';
import { dial } from '../wire/handshake.ts';
import { findLocalSocket, localSocketWanted } from '../wire/local-socket.ts';
import { Memories } from '../wire/memories.ts';
import { createDecoder } from './compressor.ts';
import { type Pull, rangesFor, ShardLinks } from './shard-links.ts';

/**
 * The worker's end of the wire. Keeps a connection to the server: a lost one is opened anew, with
 * growing random pauses, and begins with `hello`. A push is kept until the server has said what
 * became of it, and sent again under its old sequence after a `join` on a new connection; the
 * server applies a sequence once.
 */

export interface ClientOptions {
  /**
   * `ws://host:port` or `wss://…`; the path ends in `/ws`, which is added where it is missing. Of several, with commas between
   * them, the first that takes work is served.
   */
  readonly server: string;
  /** A function: asked anew for each connection, since it may change. */
  readonly token?: string | null | (() => string | null);
  readonly tls?: ConnectionOptions;
  readonly hello: Omit<Hello, 'type' | 'incarnation'>;
  readonly signal: AbortSignal;
  readonly log: Log;
  /** How long to look for a server that was never reached, ms; null: for ever. */
  readonly patienceMs?: number | null;
  /** False: never over the unix socket of a server on this machine. */
  readonly localSocket?: boolean;
  /** Whether it fetches experiments that operators have sent; absent: it knows nothing of them. */
  readonly acceptsBundles?: boolean;
  /** Payloads that are sent over it; 0: all, from the start. Default: LOCAL_SOCKET_BYTES_MIN. */
  readonly localSocketBytesMin?: number;
  /** Monotonic ms. */
  readonly now?: () => number;
  /** Uniform in [0, 1). */
  readonly random?: () => number;
}

/** What the server said. `payload` is the receiver's own until it calls `release`; possibly empty. */
export interface Received {
  readonly message: Exclude<ServerMessage, { type: 'error' | 'standby' }>;
  readonly payload: Float32Array;
  /** Gives the payload's memory back, to be received into again; absent: it is never used again. */
  readonly release?: () => void;
}

/**
 * Pauses between attempts to connect, ms, before the jitter: the first, the longest, and the longest
 * while the server has not been away for `awayShare` times as long.
 */
export const BACKOFF = { firstMs: 250, maxMs: 15_000, soonMs: 1_000, awayShare: 8 } as const;
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
 * limit, so that the workers of a cluster do not all come back at the same moment. The limit is an
 * eighth of the time that the server has been away: one that comes back after a few seconds, as after
 * a crash, has its workers within one.
 */
export function backoffMs(attempt: number, random: () => number, awayMs: number): number {
  const { firstMs, maxMs, soonMs, awayShare } = BACKOFF;
  const doubled = firstMs * 2 ** Math.min(attempt, 20);
  return random() * Math.min(maxMs, doubled, Math.max(soonMs, awayMs / awayShare));
}

/** @throws DownpourError DP_USAGE: one is not the address of a server. */
function socketUrls(servers: string): string[] {
  return servers.split(',').map((server) => socketUrl(server.trim()));
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
  // What stands before it is of an app that the server is part of, or of a proxy.
  if (!url.pathname.endsWith('/ws')) url.pathname = `${url.pathname.replace(/\/$/, '')}/ws`;
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
  /** One for each shard. */
  readonly payloads: readonly Landing[];
  /** How many of them are on their way to a socket. */
  sending: number;
  /** Its memory goes back when nothing is sent from it any more. */
  done: boolean;
  /** One of them has left. */
  readonly gone: () => void;
}

export class Client {
  readonly #options: ClientOptions;
  #hello: ClientOptions['hello'];
  /** The server that is asked, of those that were named and those that it has told of. */
  #url: string;
  readonly #named: readonly string[];
  #told: readonly string[] = [];
  /** So many of them have been asked in vain since the last pause. */
  #asked = 0;
  readonly #incarnation = drawIncarnation();
  readonly #now: () => number;
  readonly #random: () => number;
  readonly #startedAt: number;
  #connection: Connection | null = null;
  /** What its server takes beside work. */
  #takes: ReadonlySet<Aside> = new Set();
  #connections = 0;
  /** The handshake under way. */
  #dialing: { abort(): void } | null = null;
  #sequence = 0;
  #seen: { readonly run: string; readonly step: number; readonly generation: number } | null = null;
  #unacknowledged: Unacknowledged[] = [];
  #pushed = new Memories(MEMORIES_KEPT);
  readonly #pulled = new Memories(MEMORIES_KEPT);
  readonly #decoder = createDecoder();
  #received: (Received & { readonly pull?: Pull })[] = [];
  /** To the shards of the run; null: the server has all of it. */
  #links: ShardLinks | null = null;
  #waiting: ((error?: unknown) => void) | null = null;
  #fatal: unknown = null;
  #attempt = 0;
  #awaySince = 0;
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
    this.#hello = options.hello;
    this.#named = socketUrls(options.server);
    this.#url = this.#named[0]!;
    this.#now = options.now ?? (() => performance.now());
    this.#random = options.random ?? Math.random;
    this.#startedAt = this.#now();
    this.#wantsLocal = options.localSocketBytesMin === 0;
    this.#onAbort = () => this.#wake(options.signal.reason);
    options.signal.addEventListener('abort', this.#onAbort, { once: true });
    this.#connect();
  }

  /** How far a run was when the server last told of it, whichever life of the server that was. */
  seen(run: string): Join['seen'] {
    return this.#seen?.run === run
      ? { step: this.#seen.step, generation: this.#seen.generation }
      : null;
  }

  /** An evaluation is of an earlier step. */
  #look({ run, step, generation }: Work): void {
    const seen = this.#seen;
    const newer = seen?.run !== run || generation > seen.generation;
    if (newer || (generation === seen.generation && step > seen.step)) {
      this.#seen = { run, step, generation };
    }
  }

  /** Where the REST interface of the server is that it talks to. */
  get server(): string {
    return this.#url.replace(/^ws/, 'http').replace(/\/ws$/, '');
  }

  get incarnation(): string {
    return this.#incarnation;
  }

  get connected(): boolean {
    return this.#connection?.open === true;
  }

  /** How often it has been connected. */
  get connections(): number {
    return this.#connections;
  }

  /** The server that it is connected to takes this beside work. */
  takes(aside: Aside): boolean {
    return this.connected && this.#takes.has(aside);
  }

  /** The pushes that the server has not answered yet, oldest first. */
  get unacknowledged(): readonly { readonly sequence: number; readonly lease: number }[] {
    return this.#unacknowledged;
  }

  /** Something has come that `next` has not given yet. */
  get hasReceived(): boolean {
    const [first] = this.#received;
    return first !== undefined && !first.pull?.missing;
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
      if (this.hasReceived) {
        const { pull, ...received } = this.#received.shift()!;
        if (!pull) return received;
        return { ...received, payload: pull.values.subarray(0, pull.elements) };
      }
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
  send(message: Exclude<WorkerMessage, Push | Hello | Initialised>, payload?: Uint8Array): void {
    this.#connection?.send(message, payload ? [payload] : []);
  }

  /**
   * Sends fresh parameters, each part to its shard.
   * @param values shape [layout.size]; stays as it is for as long as the connections may read it.
   */
  initialise(message: Initialised, values: Float32Array): void {
    const links = this.#links;
    const { start, end } = links?.ranges[0] ?? { start: 0, end: values.length };
    this.#connection?.send(message, [bytesOf(values.subarray(start, end))]);
    const { run, grant } = message;
    for (const [k, range] of (links?.ranges ?? []).entries()) {
      if (k === 0) continue;
      const part = bytesOf(values.subarray(range.start, range.end));
      links!.send(k, { type: 'initialPart', run, grant }, part);
    }
  }

  /**
   * Connects to the shards of a run, if it has several.
   * @returns false: one of them is not there; everything is opened anew, and the run assigned again.
   */
  async attach({ session, shards, config }: Assign, layout: Layout): Promise<boolean> {
    this.#links?.close();
    this.#links = null;
    const parts = rangesFor(layout, shards).length;
    this.#pushed = new Memories(MEMORIES_KEPT * parts);
    if (parts === 1) return true;
    const connection = this.#connection;
    const { tls, localSocketBytesMin = LOCAL_SOCKET_BYTES_MIN } = this.#options;
    const partBytes = (4 * layout.exchangedSize) / parts;
    const links = new ShardLinks({
      shards,
      server: this.#url,
      session,
      layout,
      fragments: fragmentsOf(config),
      headers: this.#authorization(),
      ...(tls ? { tls } : {}),
      localSocket: localSocketWanted(this.#options.localSocket) && partBytes >= localSocketBytesMin,
      handshakeMs: HANDSHAKE_MS,
      closeMs: CLOSE_MS,
      now: this.#now,
      complete: () => this.#wake(),
      lost: (error) => {
        if (this.#links === links) this.#refusal = error;
        connection?.terminate();
      },
    });
    this.#links = links;
    try {
      await links.open();
      return this.connected && this.#connection === connection;
    } catch {
      return false;
    }
  }

  /**
   * Sends a gradient, now or when there is a connection again.
   * @param write fills the payload, at once; its memory, 8-byte aligned, stays as it is until the push
   *   is acknowledged or forgotten.
   * @returns its sequence.
   */
  push(
    push: Omit<Push, 'type' | 'sequence'>,
    payloadBytes: readonly number[],
    write: (payloads: readonly Uint8Array[]) => void,
  ): number {
    const payloads = payloadBytes.map((bytes) => this.#pushed.take(bytes));
    write(payloads.map(({ bytes }) => bytes));
    return this.pushReady(push, payloads);
  }

  /**
   * Sends a gradient that is a payload as it stands, without a copy.
   * @param payloads one for each shard; each stays as it is until it is released, once, when nothing is sent
   *   from it any more. @returns its sequence.
   */
  pushReady(push: Omit<Push, 'type' | 'sequence'>, payloads: readonly Landing[]): number {
    const sequence = ++this.#sequence;
    const { run, lease, step, generation, loss, computeMs, encoding, kind, fragment } = push;
    // Field by field: to copy an object takes V8 ten times as long, a microsecond for each push.
    const gradient: Push = {
      type: 'push',
      run,
      lease,
      step,
      generation,
      loss,
      computeMs,
      encoding,
      sequence,
    };
    const part = fragment === undefined ? {} : { fragment };
    const header = kind === undefined ? gradient : { ...gradient, kind, ...part };
    const kept: Unacknowledged = {
      header,
      run,
      sequence,
      lease,
      payloads,
      sending: 0,
      done: false,
      gone: () => {
        kept.sending--;
        if (kept.done && kept.sending === 0) releaseAll(kept);
      },
    };
    this.#unacknowledged.push(kept);
    if (this.connected) this.#sendPush(kept);
    return sequence;
  }

  #sendPush(push: Unacknowledged): void {
    const { header, payloads, run, sequence, gone } = push;
    push.sending += payloads.length;
    this.#connection!.send(header, [payloads[0]!.bytes], gone);
    for (let k = 1; k < payloads.length; k++) {
      const { encoding, kind, fragment } = header;
      const what = { ...(kind && { kind }), ...(fragment !== undefined && { fragment }) };
      const part = { type: 'part', run, sequence, encoding, ...what } as const;
      if (this.#links) this.#links.send(k, part, payloads[k]!.bytes, gone);
      else gone();
    }
  }

  #keepPushes(which: (push: Unacknowledged) => boolean): void {
    const all = this.#unacknowledged;
    this.#unacknowledged = all.filter(which);
    for (const push of all) {
      if (which(push)) continue;
      push.done = true;
      if (push.sending === 0) releaseAll(push);
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

  /** Has other experiments from now on, and says so by a `hello` on a new connection. */
  announce(experiments: Hello['experiments']): void {
    this.#hello = { ...this.#hello, experiments };
    if (!this.#connection?.open) return;
    this.#moving = true;
    this.#connection.close(1000);
  }

  /** Closes the connection, after what was sent has gone out. Resolves when it is closed. */
  async close(): Promise<void> {
    this.#closing = true;
    this.#options.signal.removeEventListener('abort', this.#onAbort);
    if (this.#timer) clearTimeout(this.#timer);
    if (this.#heartbeat) clearInterval(this.#heartbeat);
    this.#links?.close();
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

  /** What this worker can do that those of older releases cannot. */
  #announced(): Record<string, string> {
    const { acceptsBundles } = this.#options;
    return {
      [LOCAL_STEPS_HEADER]: 'yes',
      [GROUPS_HEADER]: 'yes',
      [FRAGMENTS_HEADER]: 'yes',
      [RESIDUAL_DECAY_HEADER]: 'yes',
      ...(acceptsBundles !== undefined && { [BUNDLE_HEADER]: acceptsBundles ? 'yes' : 'no' }),
    };
  }

  #authorization(): Record<string, string> {
    const { token } = this.#options;
    const now = typeof token === 'function' ? token() : token;
    return now ? { authorization: `Bearer ${now}` } : {};
  }

  /** Asking again would be of no use. */
  #isLasting(code: ErrorCode): boolean {
    // A token that is read from a file comes to servers and workers at different moments.
    const renewed = typeof this.#options.token === 'function' && this.#everConnected;
    if (code === 'DP_UNAUTHORIZED' && renewed) return false;
    return ERRORS[code].retry === 'never';
  }

  async #findLocalSocket(): Promise<string | null> {
    return localSocketWanted(this.#options.localSocket) ? findLocalSocket(this.#url) : null;
  }

  /** @param path of the server's unix socket; null: over TCP. */
  #dial(path: string | null): void {
    const { tls } = this.#options;
    this.#dialing = dial({
      url: this.#url,
      path,
      handshakeMs: this.#patience().handshakeMs,
      closeMs: CLOSE_MS,
      headers: { ...this.#authorization(), ...this.#announced() },
      ...(tls ? { tls } : {}),
      opened: (connection, takes) => {
        this.#takes = takes;
        this.#connections++;
        return this.#opened(connection, path);
      },
      failed: (error, status, retryAfterSeconds) => {
        this.#dialing = null;
        if (path !== null && status === null && !this.#closing) {
          this.#options.log(`${path} does not answer (${error.message}); trying TCP`);
          this.#dial(null);
          return;
        }
        this.#refusal = refusalOfStatus(status, this.#url);
        // Where several addresses were tried, there is only the code.
        const text = errorText(error) || (error as NodeJS.ErrnoException).code;
        this.#lost(1006, text ?? 'connection closed', 1000 * retryAfterSeconds);
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
    this.#lastSeen = this.#now();
    this.#startBeats(connection);
    const first: Hello = { type: 'hello', ...this.#hello, incarnation: this.#incarnation };
    connection.send(first);
    return {
      land: (header, payloadBytes) => this.#land(header, payloadBytes),
      message: (header, payload, landing) => this.#receive(header, payload, landing),
      malformed: (error) => this.#misunderstood(error),
      broken: (error) => this.#misunderstood(error),
      alive: () => {
        this.#lastSeen = this.#now();
      },
      closed: (code, reason) => {
        this.#connection = null;
        this.#links?.close();
        this.#links = null;
        this.#lost(code, reason);
        this.#closed?.();
      },
    };
  }

  #land(header: FrameHeader, payloadBytes: number | null): Landing | null {
    if (payloadBytes === null) return null;
    const { type, pull, encoding, fragment } = header;
    if (type === 'work' && typeof pull === 'number' && encoding === 'f32') {
      return this.#links?.place(0, pull, payloadBytes, fragment) ?? null;
    }
    if (type === 'work' && encoding === 'bf16') {
      const landing = this.#decoder.land(payloadBytes);
      if (landing) return landing;
    }
    return this.#pulled.take(payloadBytes);
  }

  #receive(header: FrameHeader, payload: Uint8Array, landing: Landing | null): void {
    try {
      const message = checkServerMessage(header);
      // Only a server that lets the worker in counts as reached; else a refusing one would be
      // asked without a pause.
      // The shards of an assignment may not.
      const toShards = message.type === 'assign' && message.shards.length > 0;
      if (message.type !== 'error' && !toShards) this.#attempt = this.#asked = 0;
      if (message.type === 'error') {
        landing?.release();
        this.#refused(knownCode(message.code), message.message);
        return;
      }
      if (message.type === 'standby') {
        landing?.release();
        this.#told = message.servers.map((address) => besideOf(this.#url, address));
        if (this.#connection) this.#startBeats(this.#connection);
        return;
      }
      if (message.type === 'work') this.#look(message);
      if (message.type === 'work' && message.pull !== null) {
        this.#receivePart(message, message.pull, payload, landing);
      } else {
        this.#received.push({ message, ...this.#numbersOf(message, payload, landing) });
        this.#wake();
      }
    } catch (error) {
      landing?.release();
      this.#misunderstood(error);
    }
  }

  /** The first part of a vector whose other parts come from the shards. */
  #receivePart(message: Work, id: number, payload: Uint8Array, landing: Landing | null): void {
    const links = this.#links;
    if (!links) {
      throw new DownpourError('DP_PROTOCOL_ORDER', 'parts of parameters came without shards');
    }
    const { fragment = null } = message;
    const pull = links.pull(id, fragment);
    const { release } = pull;
    this.#received.push({ message, payload: pull.values, release, pull });
    links.take(0, id, payload, message.encoding, fragment);
    landing?.release();
  }

  /** A payload as f32, with what gives its memory back. */
  #numbersOf(
    message: ServerMessage,
    payload: Uint8Array,
    landing: Landing | null,
  ): Pick<Received, 'payload' | 'release'> {
    if (message.type === 'work' && message.encoding !== 'f32') {
      const decoded = this.#decoder.take(payload);
      if (decoded) {
        landing?.release();
        return { payload: decoded.values, release: decoded.release };
      }
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
    const { close } = ERRORS[code];
    const error = new DownpourError(code, message);
    // The connection stays open: one message was refused, the next one may not be.
    if (close === null) {
      this.#options.log(`the server refused: ${code} ${message}`, { level: 'warn', code });
    } else if (this.#isLasting(code) && !(code === 'DP_PROTOCOL_ORDER' && this.#crossed)) {
      this.#fail(error);
    } else this.#refusal = error;
  }

  /** @param notBeforeMs that the server wants to hear nothing for. */
  #lost(code: number, reason: string, notBeforeMs = 0): void {
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
    if (refusal && this.#isLasting(refusal.code) && !this.#crossed) {
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
    if (this.#attempt === 0 && this.#asked === 0) this.#awaySince = this.#now();
    const others = this.#others();
    // The one that was lost is asked first; then all, one after the other, and then there is a pause.
    if (this.#attempt > 0 && others.length > 0) {
      this.#url = others[0]!;
      if (++this.#asked <= others.length) {
        this.#connect();
        return;
      }
    }
    this.#asked = 0;
    const awayMs = this.#now() - this.#awaySince;
    const pause = notBeforeMs + backoffMs(this.#attempt++, this.#random, awayMs);
    const why = refusal ? `${refusal.code} ${refusal.message}` : reason;
    // The first failures and then ever fewer, not a line a second.
    if ((this.#attempt & (this.#attempt - 1)) === 0) {
      this.#options.log(`no connection to ${this.#url} (${why}); trying again`, { level: 'warn' });
    }
    this.#timer = setTimeout(() => this.#connect(), pause);
  }

  /** Whom else to ask, the next one first. */
  #others(): string[] {
    const all = [...new Set([...this.#named, ...this.#told, this.#url])];
    const at = all.indexOf(this.#url);
    return [...all.slice(at + 1), ...all.slice(0, at)];
  }

  #startBeats(connection: Connection): void {
    if (this.#heartbeat) clearInterval(this.#heartbeat);
    this.#lastBeat = this.#now();
    this.#heartbeat = setInterval(() => this.#beat(connection), this.#patience().beatMs);
  }

  /** How long a server that stands still is waited for: less where there is another one. */
  #patience(): { beatMs: number; silenceMs: number; handshakeMs: number } {
    if (this.#others().length === 0) {
      const { heartbeatMs: beatMs, silenceMs } = LIMITS;
      return { beatMs, silenceMs, handshakeMs: HANDSHAKE_MS };
    }
    const { standbyBeatMs: beatMs, standbySilenceMs: silenceMs } = LIMITS;
    return { beatMs, silenceMs, handshakeMs: silenceMs };
  }

  #beat(connection: Connection): void {
    const now = this.#now();
    const { beatMs, silenceMs } = this.#patience();
    // A computation held the process up: what has arrived meanwhile has not been read yet.
    const held = now - this.#lastBeat > 2 * beatMs;
    this.#lastBeat = now;
    if (held) this.#lastSeen = now;
    this.#links?.beat(held);
    if (now - this.#lastSeen > silenceMs) connection.terminate();
    else connection.ping();
  }
}

/** 64 random bits, hexadecimal. */
function drawIncarnation(): string {
  const [high, low] = crypto.getRandomValues(new Uint32Array(2));
  return [high!, low!].map((half) => half.toString(16).padStart(8, '0')).join('');
}

/** The address of a standby, as seen by who has reached the primary at `url`. */
function besideOf(url: string, { host, port }: ServerAddress): string {
  const beside = new URL(url);
  if (host !== null) beside.hostname = host.includes(':') ? `[${host}]` : host;
  beside.port = String(port);
  return beside.href;
}

function releaseAll({ payloads }: Unacknowledged): void {
  for (const payload of payloads) payload.release();
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
