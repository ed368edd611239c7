import { once } from 'node:events';
import { createServer, type IncomingMessage, type RequestListener, type Server } from 'node:http';
import { createServer as createTlsServer, type Server as TlsServer } from 'node:https';
import type { AddressInfo, Socket } from 'node:net';
import { floatsOf } from '../../shared/codec.ts';
import { encodingOf } from '../../shared/compression.ts';
import { DownpourError, ERRORS, errorCode, errorText } from '../../shared/errors.ts';
import { LIMITS } from '../../shared/limits.ts';
import type { RowsPart } from '../../shared/row-messages.ts';
import { checkToShard, type FromShard, type ToShard } from '../../shared/shard-messages.ts';
import { VERSION } from '../../shared/version.ts';
import type {
  Connection,
  ConnectionEvents,
  FrameHeader,
  Landing,
  PayloadPlace,
} from '../../wire/connection.ts';
import { accept } from '../../wire/handshake.ts';
import { isFromHere, type LocalListener, listenBeside } from '../../wire/local-socket.ts';
import {
  Access,
  mayDo,
  portLimits,
  refuse,
  type TokenSources,
  unauthorized,
} from '../access/access.ts';
import { defaultBytesMax, MemoryBudget } from '../access/memory.ts';
import { SocketPlaces, socketLimits } from '../access/sockets.ts';
import { type TlsFiles, TlsMaterial } from '../access/tls.ts';
import { Shard } from '../core/shard.ts';
import type { Snapshot } from '../core/snapshot.ts';
import { codeVersion } from '../fleet/code-version.ts';
import { keep, LandingDesk, LOOK_MS, WaitingLine } from '../payloads/landings.ts';
import { mustFit } from '../payloads/payloads.ts';
import { checkToShardControl, type FromShardControl, type ToShardControl } from './protocol.ts';

/** A shard's process or thread: the sockets around a `Shard`. */
export interface ShardServerOptions {
  readonly host: string;
  /** 0: any free one. */
  readonly port: number;
  readonly tokens: TokenSources;
  /** Null: in the clear. */
  readonly tls: TlsFiles | null;
  /** False: no unix socket for workers on this machine. */
  readonly localSocket: boolean;
  /** That this process opens, those of the other shards among them. Default: `PORTS`. */
  readonly ports?: number;
  /** For connections, beside the memory of runs; default: see `LIMITS.connectionMemoryShare`. */
  readonly memoryBytesMax?: number;
  readonly log: (line: string) => void;
  readonly signal: AbortSignal;
}

export interface ServingShard {
  readonly port: number;
  /** Resolves when all is closed. */
  readonly closed: Promise<void>;
}

const TICK_MS = LIMITS.shardBeatMs;

/** @throws DownpourError DP_USAGE: cannot listen there. */
export async function serveShard(options: ShardServerOptions): Promise<ServingShard> {
  const { host, port, tokens, log, signal } = options;
  const access = new Access(tokens, log);
  const tls = options.tls && new TlsMaterial(options.tls, log);
  const memoryBytesMax = options.memoryBytesMax ?? defaultBytesMax();
  const now = () => performance.now();
  const soon = (act: () => void) => void setImmediate(act);
  const state = new ShardServer({ log, memoryBytesMax, now, soon });
  let local: LocalListener | null = null;
  const answer: RequestListener = (request, response) => {
    if (request.method !== 'GET' || request.url !== '/health') {
      response.writeHead(404).end();
      return;
    }
    response.setHeader('content-type', 'application/json');
    const localSocket = isFromHere(request.socket) ? (local?.path ?? null) : null;
    response.end(
      JSON.stringify({
        status: 'ok',
        version: VERSION,
        role: 'shard',
        runs: state.runs,
        localSocket,
      }),
    );
  };
  const server = tls
    ? createTlsServer({ ...portLimits, ...tls.options() }, answer)
    : createServer(portLimits, answer);
  const places = new SocketPlaces(server, socketLimits(options.ports));
  if (tls) tls.keep(server as TlsServer);
  server.on('upgrade', (request: IncomingMessage, socket: Socket, head: Buffer) => {
    socket.on('error', () => socket.destroy());
    const path = request.url?.split('?', 1)[0];
    if (path !== '/ws' && path !== '/control') {
      refuse(socket, 'DP_NOT_FOUND', 'workers connect to /ws, the coordinator to /control');
      return;
    }
    const grant = access.grant(request.headers.authorization);
    const needed = path === '/ws' ? 'worker' : 'operator';
    if (!grant) refuse(socket, 'DP_UNAUTHORIZED', unauthorized().message);
    else if (!mayDo(grant, needed)) {
      refuse(socket, 'DP_FORBIDDEN', `${path} of a shard takes an ${needed}'s token`);
    } else {
      let connection: Connection | null;
      try {
        connection = accept(request, socket, head);
      } catch (error) {
        refuse(socket, errorCode(error), errorText(error));
        return;
      }
      if (!connection) return;
      places.vouch(socket);
      state.accept(path, connection, access.open ? null : grant.holder);
    }
  });
  await listen(server, host, port);
  if (options.localSocket && !tls) {
    const listener = await listenBeside(server);
    if ('path' in listener) local = listener;
  }
  const timer = setInterval(() => state.tick(), TICK_MS);
  const look = setInterval(() => state.line.look(), LOOK_MS);
  const close = async () => {
    if (!signal.aborted) await once(signal, 'abort');
    clearInterval(timer);
    clearInterval(look);
    access.close();
    tls?.close();
    state.close();
    await local?.close();
    server.closeAllConnections();
    server.close();
    await once(server, 'close');
  };
  const closed = close();
  return { port: (server.address() as AddressInfo).port, closed };
}

async function listen(server: Server | TlsServer, host: string, port: number): Promise<void> {
  await new Promise<void>((resolve, reject) => {
    server.once('error', (cause) =>
      reject(
        new DownpourError(
          'DP_USAGE',
          `a shard cannot listen on ${host} port ${port}: ${errorText(cause)}; choose another address`,
          { cause },
        ),
      ),
    );
    server.listen(port, host, resolve);
  });
}

type Take = Extract<ToShardControl, { type: 'take' }>;
type List = Extract<ToShardControl, { type: 'list' }>;

/** A connection to `/control`. */
interface Control {
  readonly connection: Connection;
  /** The fencing token of its server; null: it has not taken this shard. */
  token: number | null;
  heardMs: number;
}

/** One coordinator at a time, and the workers that it has told this shard's address. */
export class ShardServer {
  readonly #log: (line: string) => void;
  /** Monotonic, ms. */
  readonly now: () => number;
  readonly #soon: (act: () => void) => void;
  #shard: Shard | null = null;
  /** The coordinator. */
  #control: Control | null = null;
  #tickedAt: number;
  readonly #sessions = new Map<string, ShardSession>();
  /** Sessions of workers that the coordinator knows. */
  readonly #admitted = new Set<string>();
  /** Connected, attached or not. */
  readonly #workers = new Set<ShardSession>();
  readonly line: WaitingLine;
  /** Rows are being copied. */
  #copying = false;
  /** What is answered once they are. */
  readonly #lists: List[] = [];

  /** @param options.soon calls back when what has come meanwhile is dealt with. */
  constructor(options: {
    readonly log: (line: string) => void;
    readonly memoryBytesMax: number;
    readonly now: () => number;
    readonly soon: (act: () => void) => void;
  }) {
    const { log, memoryBytesMax, now, soon } = options;
    this.#log = log;
    this.now = now;
    this.#soon = soon;
    this.#tickedAt = now();
    this.line = new WaitingLine(new MemoryBudget(now, memoryBytesMax), now);
  }

  get runs(): number {
    return this.#shard?.runs ?? 0;
  }

  /** @param holder of the token that it came with; null: there are no tokens. */
  accept(path: '/ws' | '/control', connection: Connection, holder: string | null): void {
    if (path === '/control') {
      connection.start(this.#controlled(connection));
      return;
    }
    const session = new ShardSession(connection, this, holder);
    this.#workers.add(session);
    connection.start(session.events);
    if (this.#workers.size > LIMITS.workerCountMax) {
      session.fail(new DownpourError('DP_LIMIT', `${LIMITS.workerCountMax} workers are connected`));
    }
  }

  tick(): void {
    const now = this.now();
    const pauseMs = now - this.#tickedAt - TICK_MS;
    this.#tickedAt = now;
    this.line.tick();
    for (const worker of this.#workers) worker.tick();
    this.#shard?.look(LIMITS.attachMs / TICK_MS);
    const control = this.#control;
    if (!control) return;
    control.connection.ping();
    // What has come during a pause of our own has not been read yet.
    if (pauseMs > LIMITS.silenceMs / 2) control.heardMs = now;
    if (now - control.heardMs > LIMITS.silenceMs) {
      this.#log(`no message from the coordinator for ${LIMITS.silenceMs / 1000} s`);
      control.connection.terminate();
    }
  }

  close(): void {
    this.#control?.connection.close(1012, 'shard stops');
    this.#release('DP_SERVER_STOPPING', 'shard stops');
  }

  // The coordinator.

  #controlled(connection: Connection): ConnectionEvents {
    const control: Control = { connection, token: null, heardMs: this.now() };
    const fail = (error: DownpourError) => {
      this.#log(`control: ${error.code} ${error.message}`);
      this.#refuse(control, error);
    };
    return {
      land: () => null,
      message: (header, payload) => {
        try {
          this.#obey(control, checkToShardControl(header), payload);
        } catch (error) {
          if (error instanceof DownpourError) fail(error);
          else this.#defect(control, error);
        }
      },
      malformed: fail,
      broken: (error) => this.#log(`control: ${error.code} ${error.message}`),
      alive: () => {
        control.heardMs = this.now();
      },
      closed: () => {
        if (this.#control !== control) return;
        this.#control = null;
        this.#log('the coordinator has gone; waiting for one');
        this.#release('DP_SHARD_LOST', 'the coordinator has gone');
      },
    };
  }

  /** The state here is not what the coordinator believes: neither can go on. */
  #defect(control: Control, error: unknown): void {
    this.#log(`defect: ${error instanceof Error ? error.stack : String(error)}`);
    this.#refuse(control, error);
  }

  /** It has said, or asked for, what cannot be done. */
  #refuse({ connection }: Control, error: unknown): void {
    const code = errorCode(error);
    const message = errorText(error).slice(0, 2_000);
    connection.send({ type: 'failed', code, message } satisfies FromShardControl);
    connection.close(ERRORS[code].close ?? 1011, code);
  }

  /** Forgets all runs: they belong to the coordinator that made them. */
  #release(code: 'DP_SHARD_LOST' | 'DP_SERVER_STOPPING', why: string): void {
    this.#shard = null;
    this.#lists.length = 0;
    this.#admitted.clear();
    for (const worker of this.#workers) worker.fail(new DownpourError(code, why));
  }

  /** @throws DownpourError, or a defect: this connection cannot go on. */
  #obey(control: Control, message: ToShardControl, payload: Uint8Array): void {
    if (message.type === 'take') {
      this.#take(control, message);
      return;
    }
    if (control !== this.#control || !this.#shard) {
      // What an older coordinator still says.
      if (control.token !== null) return;
      throw new DownpourError('DP_PROTOCOL_ORDER', `'${message.type}' came before 'take'`);
    }
    if (message.type === 'command') {
      this.#shard.execute(message.command, floatsOf(payload));
      if (message.command.kind === 'save') this.#copy();
    } else if (message.type === 'admit') {
      this.#admitted.add(message.session);
      for (const worker of this.#workers) if (worker.asks === message.session) worker.attach();
    } else if (message.type === 'leave') {
      this.#admitted.delete(message.session);
      this.#sessions.get(message.session)?.close(1000);
      this.#shard.leave(message.session);
    } else if (message.type === 'list') {
      if (this.#shard.isCopied(message.run, message.id)) this.#list(message);
      else this.#lists.push(message);
    } else {
      const { request, run, id, name, start, count } = message;
      const bytes = this.#shard.read(run, id, name, start, count);
      this.#tell({ type: 'read', request, found: bytes !== null }, bytes);
    }
  }

  /** Copies rows for a checkpoint in pieces: what has come meanwhile is dealt with between two of them. */
  #copy(): void {
    const shard = this.#shard;
    if (this.#copying || !shard) return;
    this.#copying = true;
    this.#soon(() => {
      this.#copying = false;
      // Another coordinator may have taken over.
      if (this.#shard !== shard) return;
      try {
        const goesOn = shard.copySome();
        for (const list of this.#lists.splice(0)) {
          if (shard.isCopied(list.run, list.id)) this.#list(list);
          else this.#lists.push(list);
        }
        if (goesOn) this.#copy();
      } catch (error) {
        if (this.#control) this.#defect(this.#control, error);
      }
    });
  }

  #list({ request, run, id }: List): void {
    this.#tell({ type: 'listed', request, vectors: this.#shard!.list(run, id) });
  }

  /** @throws DownpourError DP_STATE_FENCED: it is no longer the owner of the state, as far as is known here. */
  #take(control: Control, { index, count, token }: Take): void {
    const owner = this.#control?.token ?? 0;
    if (token < owner) {
      throw new DownpourError(
        'DP_STATE_FENCED',
        `a server with fencing token ${token} asks for this shard, which one with ${owner} has`,
      );
    }
    const old = this.#control;
    this.#control = control;
    control.token = token;
    if (old !== control) old?.connection.close(4409, 'another coordinator has taken over');
    this.#release('DP_SHARD_LOST', 'another coordinator has taken over');
    this.#shard = this.#createShard(index, count);
    this.#tell({ type: 'taken', version: codeVersion() });
  }

  #tell(message: FromShardControl, payload: Uint8Array | null = null): void {
    this.#control?.connection.send(message, payload ? [payload] : []);
  }

  #createShard(index: number, count: number): Shard {
    this.#log(`shard ${index} of ${count}`);
    return new Shard(index, count, {
      landed: ({ run, session, sequence }, squares, problem, rows) =>
        this.#tell({
          ...{ type: 'landed', run, session, sequence, squares },
          problem: problem?.slice(0, 2_000) ?? null,
          ...(rows && { rows: { ...rows, problem: rows.problem?.slice(0, 2_000) ?? null } }),
        }),
      initialLanded: ({ run, session, grant }, problem) =>
        this.#tell({ type: 'initialLanded', run, session, grant, problem }),
      overflowed: (run, generation) => this.#tell({ type: 'overflowed', run, generation }),
      send: (session, header, payload, parts) =>
        this.#sessions.get(session)?.parameters(header, payload, parts),
      sendRows: (session, header, bytes) => this.#sessions.get(session)?.rows(header, bytes),
      rowFacts: (run, tables) => this.#tell({ type: 'rowFacts', run, tables }),
    });
  }

  // Workers.

  get shard(): Shard | null {
    return this.#shard;
  }

  admits(session: string): boolean {
    return this.#admitted.has(session);
  }

  attach(worker: ShardSession, session: string): void {
    this.#sessions.get(session)?.close(4409);
    this.#sessions.set(session, worker);
  }

  gone(worker: ShardSession): void {
    this.#workers.delete(worker);
    const { session } = worker;
    // What it has sent stays until the coordinator says so: it may be applying it right now.
    if (session !== null && this.#sessions.get(session) === worker) this.#sessions.delete(session);
  }
}

/** A worker's connection to a shard. */
class ShardSession {
  readonly #connection: Connection;
  readonly #server: ShardServer;
  readonly #desk: LandingDesk;
  /** The session that it says it has. */
  asks: string | null = null;
  /** The same, when the coordinator has said so too. */
  session: string | null = null;
  readonly #openedMs: number;
  #lastSeen: number;
  /** The payload of the message that is coming was read past: the run was not here, or the session not known. */
  #readPast = false;

  #answerBytes = 0;

  constructor(connection: Connection, server: ShardServer, holder: string | null) {
    this.#connection = connection;
    this.#server = server;
    this.#openedMs = this.#lastSeen = server.now();
    this.#desk = new LandingDesk(server.line, connection, holder, (error) => this.fail(error));
  }

  readonly events: ConnectionEvents = {
    land: (header, payloadBytes) => {
      const place = this.#land(header, payloadBytes);
      this.#readPast = place === 'nowhere';
      return place;
    },
    memory: (change) => this.#desk.grew(change),
    message: (header, payload, landing) => {
      const wasReadPast = this.#readPast;
      this.#readPast = false;
      this.#receive(header, payload, landing, wasReadPast);
    },
    malformed: (error) => this.fail(error),
    broken: () => {},
    alive: () => {
      this.#lastSeen = this.#server.now();
    },
    closed: () => {
      this.#desk.leave();
      this.#server.gone(this);
    },
  };

  /** @throws DownpourError: it may not be there, or is too large. */
  #land(header: FrameHeader, payloadBytes: number | null): PayloadPlace {
    const { type, run } = header;
    const { shard } = this.#server;
    const isPart = type === 'part' || type === 'initialPart';
    if (!isPart || typeof run !== 'string') {
      mustFit(header, payloadBytes ?? 1, 0);
      return 'nowhere';
    }
    const limits = this.session === null ? null : shard?.partLimits(run);
    if (!limits) return 'nowhere';
    const { roomBytes } = limits;
    const bytesMax = type === 'part' ? limits.bytesMax + limits.rowBytes : limits.initialBytes;
    const bytes = payloadBytes ?? Math.min(roomBytes, bytesMax);
    mustFit(header, bytes, bytesMax);
    const take = (size: number) => shard!.land(run, size, encodingOf(header));
    return this.#desk.land({ run, bytes, roomBytes, bytesMax, take });
  }

  #receive(
    header: FrameHeader,
    payload: Uint8Array,
    landing: Landing | null,
    wasReadPast: boolean,
  ): void {
    let kept = false;
    try {
      const message = checkToShard(header);
      if (message.type === 'attach') {
        if (this.asks !== null) {
          throw new DownpourError('DP_PROTOCOL_ORDER', "a second 'attach' on one connection");
        }
        this.asks = message.session;
        // Else what the server says of it is still on its way.
        if (this.#server.admits(message.session)) this.attach();
      } else if (this.session === null) {
        throw new DownpourError(
          'DP_PROTOCOL_ORDER',
          `'${message.type}' came before 'attached': attach, and wait for the answer`,
        );
      } else if (wasReadPast) this.#mustComeAgain(message.run);
      else kept = this.#part(this.session, message, payload, landing);
    } catch (error) {
      this.fail(error);
    } finally {
      if (!kept) landing?.release();
    }
  }

  /**
   * A part whose payload was read past. Mostly its run has ended. But the command that creates a run may come between the beginning and
   * the end of a part: another way is faster than the server's. Without its numbers the part would be taken for NaN.
   * @throws DownpourError DP_SHARD_LOST: the run is here now, so the worker connects again, and sends the part again.
   */
  #mustComeAgain(run: string): void {
    if (!this.#server.shard?.partLimits(run)) return;
    throw new DownpourError(
      'DP_SHARD_LOST',
      `a part of run ${run} came before the shard knew the run: connect again`,
    );
  }

  /** @returns whether the landing is in use. */
  #part(
    session: string,
    message: Exclude<ToShard, { type: 'attach' }>,
    payload: Uint8Array,
    landing: Landing | null,
  ): boolean {
    const { shard } = this.#server;
    if (!shard) return false;
    const { run } = message;
    const room = this.#desk.arrived(landing);
    const bytes = keep(payload, landing);
    const release = () => landing?.release();
    if (message.type === 'initialPart') {
      const part = { payload: bytes, encoding: 'f32', room, release } as const;
      shard.initialPart(run, session, message.grant, part);
    } else {
      const { sequence, encoding, kind, fragment, rows } = message;
      const part = { payload: bytes, encoding, kind, fragment, rows, room, release };
      shard.part({ run, session, sequence }, part);
    }
    return true;
  }

  /** The coordinator knows the session that it asks for. */
  attach(): void {
    if (this.session !== null) return;
    this.session = this.asks!;
    this.#server.attach(this, this.session);
    this.#send({ type: 'attached' });
  }

  /** @param parts of the payload that are sent. */
  parameters(
    header: { readonly run: string; readonly pull: number; readonly fragment?: number },
    payload: Snapshot,
    parts: readonly Uint8Array[],
  ): void {
    payload.hold();
    const { encoding } = payload;
    this.#send({ type: 'parameters', ...header, encoding }, payload, parts);
  }

  rows(header: Omit<RowsPart, 'type'>, bytes: Uint8Array): void {
    this.#answerBytes = Math.max(this.#answerBytes, bytes.length);
    if (this.#connection.open) {
      const gone = this.#desk.counted(bytes.length);
      this.#connection.send({ type: 'rows', ...header }, [bytes], gone);
    }
    this.#mustRead();
  }

  #send(
    message: FromShard,
    payload: Snapshot | null = null,
    parts: readonly Uint8Array[] = [],
  ): void {
    const { memory } = this.#server.line;
    if (payload) {
      memory.send(payload);
      this.#answerBytes = Math.max(this.#answerBytes, payload.bytes.length);
    }
    const gone = () => {
      payload?.release();
      if (payload) memory.sent(payload);
    };
    if (!this.#connection.open) gone();
    else if (payload) this.#connection.send(message, parts, gone);
    else this.#connection.send(message);
    this.#mustRead();
  }

  /** One that does not read its answers gets no more of them. */
  #mustRead(): void {
    const { bufferedBytes } = this.#connection;
    if (bufferedBytes > 2 * this.#answerBytes + LIMITS.unreadBytesMax) this.#connection.hold();
    if (bufferedBytes > LIMITS.bufferedBytesMax) {
      this.fail(new DownpourError('DP_SLOW_READER', `${bufferedBytes} bytes wait for this worker`));
    }
  }

  tick(): void {
    const now = this.#server.now();
    const silentMs = now - this.#lastSeen;
    // The server knows better whether a worker lives; this ends what it has never heard of.
    if (this.session === null && now - this.#openedMs > LIMITS.attachMs) {
      const seconds = LIMITS.attachMs / 1000;
      const what = this.asks === null ? 'nothing was attached' : 'the server knows no such session';
      const todo = 'connect to the server, and attach with the session of its `assign`';
      this.fail(new DownpourError('DP_SHARD_LOST', `${what} within ${seconds} s: ${todo}`));
    } else if (silentMs > LIMITS.heartbeatMs) this.#connection.ping();
    const windowMs = Math.max(LIMITS.silenceMs, this.#server.shard?.leaseMs ?? 0);
    const problem = this.#connection.open ? this.#desk.problem(now, windowMs) : null;
    if (problem) this.#server.line.memory.close(this.#desk.account, problem);
  }

  fail(error: unknown): void {
    const code = errorCode(error);
    if (this.#connection.open) {
      this.#connection.send({ type: 'error', code, message: errorText(error) });
    }
    this.close(ERRORS[code].close ?? 1011, code);
  }

  close(code: number, reason = ''): void {
    this.#connection.close(code, reason);
  }
}
