import type { ConnectionOptions } from 'node:tls';
import type { Aside } from '../shared/asides.ts';
import { BUNDLE_HEADER } from '../shared/bundle.ts';
import { bytesOf } from '../shared/codec.ts';
import { RESIDUAL_DECAY_HEADER } from '../shared/config.ts';
import { DownpourError, ERRORS, type ErrorCode, errorText } from '../shared/errors.ts';
import { GROUPS_HEADER } from '../shared/groups.ts';
import type { Layout } from '../shared/layout.ts';
import { LIMITS } from '../shared/limits.ts';
import { FRAGMENTS_HEADER, fragmentsOf, LOCAL_STEPS_HEADER } from '../shared/local-steps.ts';
import type { Log } from '../shared/log.ts';
import {
  type Acknowledgement,
  type Assign,
  checkServerMessage,
  type Hello,
  type Initialised,
  type Join,
  knownCode,
  type Push,
  type Work,
  type WorkerMessage,
} from '../shared/protocol.ts';
import type { InitialRows } from '../shared/row-messages.ts';
import { causeOf, Said } from '../shared/said.ts';
import { ROW_SHARDS_HEADER, TABLES_HEADER } from '../shared/tables.ts';
import type { Connection, ConnectionEvents, FrameHeader, Landing } from '../wire/connection.ts';
import { dial } from '../wire/handshake.ts';
import { findLocalSocket, localSocketWanted } from '../wire/local-socket.ts';
import { Memories } from '../wire/memories.ts';
import { Heartbeat, type Patience } from './heartbeat.ts';
import { Inbox, MEMORIES_KEPT, type Received } from './inbox.ts';
import { refusalOf, refusalOfStatus } from './refusals.ts';
import { RowRequests, type RowsAnswer, RowsLost } from './rows/requests.ts';
import type { RowPuller, RowsOfPush } from './rows/rows-exchange.ts';
import { backoffMs, Servers } from './servers.ts';
import { rangesFor, ShardLinks } from './shard-links.ts';
import { type KeptPush, UnacknowledgedPushes } from './unacknowledged.ts';

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

/**
 * A unix socket of Linux holds 208 KB, one of TCP up to 4 MB: below this size of a payload more
 * waiting costs more than the protocol saves (docs/decisions/0006-receive-in-place.md).
 */
export const LOCAL_SOCKET_BYTES_MIN = 8e6;
const HANDSHAKE_MS = 10_000;
const CLOSE_MS = 2_000;

export class Client implements RowPuller {
  readonly #options: ClientOptions;
  /** Messages that the server has refused, as the log has said. */
  readonly #refusals = new Said();
  #hello: ClientOptions['hello'];
  readonly #servers: Servers;
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
  readonly #unacknowledged = new UnacknowledgedPushes();
  #pushed = new Memories(MEMORIES_KEPT);
  /** To the shards of the run; null: the server has all of it. */
  #links: ShardLinks | null = null;
  readonly #requests = new RowRequests();
  readonly #inbox = new Inbox({
    links: () => this.#links,
    requests: this.#requests,
    wake: () => this.#wake(),
  });
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
  readonly #heartbeat: Heartbeat;
  /** What the server said before it closed the connection. */
  #refusal: DownpourError | null = null;
  /** A push crossed the end of its run on the wire: the server may call it out of order. */
  #crossed = false;
  readonly #onAbort: () => void;

  constructor(options: ClientOptions) {
    this.#options = options;
    this.#hello = options.hello;
    this.#servers = new Servers(options.server);
    this.#now = options.now ?? (() => performance.now());
    this.#random = options.random ?? Math.random;
    this.#startedAt = this.#now();
    this.#heartbeat = new Heartbeat(
      this.#now,
      () => this.#patience(),
      (held) => this.#links?.beat(held),
    );
    this.#wantsLocal = options.localSocketBytesMin === 0;
    this.#onAbort = () => {
      this.#requests.fail(options.signal.reason);
      this.#wake(options.signal.reason);
    };
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
    return this.#servers.url.replace(/^ws/, 'http').replace(/\/ws$/, '');
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
    return this.#unacknowledged.all;
  }

  /** Something has come that `next` has not given yet. */
  get hasReceived(): boolean {
    return this.#inbox.hasReceived;
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
      const received = this.#inbox.next();
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
      links!.send(k, { type: 'initialPart', run, grant }, [part]);
    }
  }

  /**
   * Gives rows of tables their initial values, before `initialise`.
   * @param rows as `encodeRows` has them. @returns when they have left. @throws RowsLost: there is no connection.
   */
  async giveRows(message: InitialRows, rows: Uint8Array): Promise<void> {
    const connection = this.#connection;
    if (!connection?.open) throw new RowsLost('there is no connection');
    await new Promise<void>((resolve) => connection.send(message, [rows], resolve));
  }

  /**
   * Connects to the shards of a run, if it has several.
   * @returns false: one of them is not there; everything is opened anew, and the run assigned again.
   */
  async attach(assign: Assign, layout: Layout): Promise<boolean> {
    const { session, shards, config } = assign;
    this.#links?.close();
    this.#links = null;
    const ranges = rangesFor(layout, assign);
    const parts = ranges.length;
    this.#pushed = new Memories(MEMORIES_KEPT * parts);
    if (parts === 1) return true;
    const connection = this.#connection;
    const { tls, localSocketBytesMin = LOCAL_SOCKET_BYTES_MIN } = this.#options;
    const partBytes = (4 * layout.exchangedSize) / parts;
    const links = new ShardLinks({
      shards,
      server: this.#servers.url,
      session,
      layout,
      ranges,
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
   *   is acknowledged or forgotten. @param rows what follows each payload, if `push` has rows.
   * @returns its sequence.
   */
  push(
    push: Omit<Push, 'type' | 'sequence'>,
    payloadBytes: readonly number[],
    write: (payloads: readonly Uint8Array[]) => void,
    rows?: readonly RowsOfPush[],
  ): number {
    const payloads = payloadBytes.map((bytes) => this.#pushed.take(bytes));
    write(payloads.map(({ bytes }) => bytes));
    return this.pushReady(push, payloads, rows);
  }

  /**
   * Sends a gradient that is a payload as it stands, without a copy.
   * @param payloads one for each shard; each stays as it is until it is released, once, when nothing is sent
   *   from it any more. @param rows as for `push`. @returns its sequence.
   */
  pushReady(
    push: Omit<Push, 'type' | 'sequence'>,
    payloads: readonly Landing[],
    rows?: readonly RowsOfPush[],
  ): number {
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
    const plain = kind === undefined ? gradient : { ...gradient, kind, ...part };
    const header = push.rows === undefined ? plain : { ...plain, rows: push.rows };
    const kept = this.#unacknowledged.add(header, payloads, rows);
    if (this.connected) this.#sendPush(kept);
    return sequence;
  }

  #sendPush(push: KeptPush): void {
    const { header, payloads, run, sequence, gone, rows } = push;
    push.sending += payloads.length;
    const first = payloads[0]!.bytes;
    this.#connection!.send(header, rows ? [first, rows[0]!.tail] : [first], gone);
    for (let k = 1; k < payloads.length; k++) {
      const { encoding, kind, fragment } = header;
      const what = { ...(kind && { kind }), ...(fragment !== undefined && { fragment }) };
      const more = rows?.[k];
      const dense = { type: 'part', run, sequence, encoding, ...what } as const;
      const part = more ? { ...dense, rows: more.rows } : dense;
      const { bytes } = payloads[k]!;
      if (this.#links) this.#links.send(k, part, more ? [bytes, more.tail] : [bytes], gone);
      else gone();
    }
  }

  pullRows(message: Parameters<RowPuller['pullRows']>[0], keys: Uint8Array): Promise<RowsAnswer> {
    const connection = this.#connection;
    if (!connection?.open) return Promise.reject(new RowsLost('there is no connection'));
    return this.#requests.ask((request) =>
      connection.send({ type: 'pullRows', ...message, request }, [keys]),
    );
  }

  /** The server has answered: this push and all before it need not be sent again. */
  acknowledge({ sequence }: Acknowledgement): void {
    this.#unacknowledged.keep((push) => push.sequence > sequence);
  }

  /** Sends again what the server did not answer before the connection was lost. @returns how many. */
  resend(run: string): number {
    this.forget(run);
    if (!this.connected) return 0;
    for (const push of this.#unacknowledged.all) this.#sendPush(push);
    return this.#unacknowledged.all.length;
  }

  /** Nobody waits any more for the pushes of runs other than this. */
  forget(exceptRun: string | null): void {
    if (this.#unacknowledged.all.some((push) => push.run !== exceptRun)) this.#crossed = true;
    this.#unacknowledged.keep((push) => push.run === exceptRun);
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
    this.#heartbeat.stop();
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
      [TABLES_HEADER]: 'yes',
      [ROW_SHARDS_HEADER]: 'yes',
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
    return localSocketWanted(this.#options.localSocket) ? findLocalSocket(this.#servers.url) : null;
  }

  /** @param path of the server's unix socket; null: over TCP. */
  #dial(path: string | null): void {
    const { tls } = this.#options;
    this.#dialing = dial({
      url: this.#servers.url,
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
        this.#refusal = refusalOfStatus(status, this.#servers.url);
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
      this.#options.log(`connected to ${this.#servers.url}${through}`);
    }
    this.#everConnected = true;
    this.#moving = false;
    this.#heartbeat.seen();
    this.#heartbeat.start(connection);
    const first: Hello = { type: 'hello', ...this.#hello, incarnation: this.#incarnation };
    connection.send(first);
    return {
      land: (header, payloadBytes) => this.#inbox.land(header, payloadBytes),
      message: (header, payload, landing) => this.#receive(header, payload, landing),
      malformed: (error) => this.#misunderstood(error),
      broken: (error) => this.#misunderstood(error),
      alive: () => {
        this.#heartbeat.seen();
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

  #receive(header: FrameHeader, payload: Uint8Array, landing: Landing | null): void {
    try {
      const message = checkServerMessage(header);
      // Only a server that lets the worker in counts as reached; else a refusing one would be
      // asked without a pause.
      // The shards of an assignment may not.
      const toShards = message.type === 'assign' && message.shards.length > 0;
      if (message.type !== 'error' && !toShards) {
        this.#attempt = 0;
        this.#servers.reached();
      }
      if (message.type === 'error') {
        landing?.release();
        this.#refused(knownCode(message.code), message.message);
        return;
      }
      if (message.type === 'standby') {
        landing?.release();
        this.#servers.tell(message.servers);
        if (this.#connection) this.#heartbeat.start(this.#connection);
        return;
      }
      if (message.type === 'work') this.#look(message);
      this.#inbox.put(message, payload, landing);
    } catch (error) {
      landing?.release();
      this.#misunderstood(error);
    }
  }

  /** The server speaks another language. */
  #misunderstood(error: unknown): void {
    this.#fail(error);
    this.#connection?.close(1002, error instanceof DownpourError ? error.code : 'DP_INTERNAL');
  }

  #refused(code: ErrorCode, message: string): void {
    const { close } = ERRORS[code];
    const error = new DownpourError(code, message);
    this.#requests.fail(error);
    // The connection stays open: one message was refused, the next one may not be.
    if (close === null) {
      if (this.#refusals.isNew(causeOf(`${code} ${message}`))) {
        this.#options.log(`the server refused: ${code} ${message}`, { level: 'warn', code });
      }
    } else if (this.#isLasting(code) && !(code === 'DP_PROTOCOL_ORDER' && this.#crossed)) {
      this.#fail(error);
    } else this.#refusal = error;
  }

  /** @param notBeforeMs that the server wants to hear nothing for. */
  #lost(code: number, reason: string, notBeforeMs = 0): void {
    this.#heartbeat.stop();
    this.#requests.fail(new RowsLost('the connection was lost'));
    this.#inbox.clear();
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
            `no server at ${this.#servers.url} within ${patienceMs / 1000} s (${reason}): start one with downpour serve, or correct --server`,
          ),
        );
        return;
      }
    }
    if (this.#attempt === 0) this.#awaySince = this.#now();
    // The one that was lost is asked first; then all, one after the other, and then there is a pause.
    else if (this.#servers.goOn()) {
      this.#connect();
      return;
    }
    const awayMs = this.#now() - this.#awaySince;
    const pause = notBeforeMs + backoffMs(this.#attempt++, this.#random, awayMs);
    const why = refusal ? `${refusal.code} ${refusal.message}` : reason;
    // The first failures and then ever fewer, not a line a second.
    if ((this.#attempt & (this.#attempt - 1)) === 0) {
      this.#options.log(`no connection to ${this.#servers.url} (${why}); trying again`, {
        level: 'warn',
      });
    }
    this.#timer = setTimeout(() => this.#connect(), pause);
  }

  /** How long a server that stands still is waited for: less where there is another one. */
  #patience(): Patience & { handshakeMs: number } {
    if (this.#servers.others.length === 0) {
      const { heartbeatMs: beatMs, silenceMs } = LIMITS;
      return { beatMs, silenceMs, handshakeMs: HANDSHAKE_MS };
    }
    const { standbyBeatMs: beatMs, standbySilenceMs: silenceMs } = LIMITS;
    return { beatMs, silenceMs, handshakeMs: silenceMs };
  }
}

/** 64 random bits, hexadecimal. */
function drawIncarnation(): string {
  const [high, low] = crypto.getRandomValues(new Uint32Array(2));
  return [high!, low!].map((half) => half.toString(16).padStart(8, '0')).join('');
}
