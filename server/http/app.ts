import type { IncomingMessage } from 'node:http';
import type { Socket } from 'node:net';
import { performance } from 'node:perf_hooks';
import type { Duplex } from 'node:stream';
import type { TLSSocket } from 'node:tls';
import AjvCompiler from '@fastify/ajv-compiler';
import swagger from '@fastify/swagger';
import Fastify, {
  type FastifyError,
  type FastifyInstance,
  type FastifyRequest,
  type FastifyServerOptions,
} from 'fastify';
import { BUNDLE_HEADER } from '../../shared/bundle.ts';
import {
  DownpourError,
  ERRORS,
  type ErrorCode,
  errorCode,
  errorText,
} from '../../shared/errors.ts';
import { JOIN_PATHS, TICKET_PROTOCOL, ticketOf } from '../../shared/join.ts';
import { LIMITS } from '../../shared/limits.ts';
import { kindOfDefect, type Log } from '../../shared/log.ts';
import type { SessionFacts } from '../../shared/rest.ts';
import type { Connection } from '../../wire/connection.ts';
import { accept, hostProblem, upgradeProblem } from '../../wire/handshake.ts';
import { isLoopback } from '../../wire/local-socket.ts';
import {
  type Access,
  type Grant,
  LimitError,
  mayDo,
  portLimits,
  Rate,
  type Role,
  refuse,
  unauthorized,
} from '../access/access.ts';
import { type Budget, Budgets } from '../access/budget.ts';
import { Places, type SocketLimits, socketLimits } from '../access/sockets.ts';
import { Tickets } from '../access/tickets.ts';
import type { TlsMaterial } from '../access/tls.ts';
import type { Coordinator } from '../fleet/coordinator.ts';
import { Session } from '../fleet/session.ts';
import type { Replication } from '../standby/replication.ts';
import { BUNDLE_ROUTE } from './bundle-routes.ts';
import type { JoinFiles } from './join.ts';
import { addPages, FOR_ANYBODY, type PageDoor, sessionOf } from './pages.ts';
import { RequestCosts } from './request-cost.ts';
import { OPENAPI } from './route.ts';
import { addRoutes, type RoutesOptions } from './routes.ts';

export interface AppOptions extends RoutesOptions {
  readonly access: Access;
  /** Null: in the clear. */
  readonly tls?: TlsMaterial | null;
  /** False: open to all who reach it, by the user's wish; else only this machine does. */
  readonly loopbackOnly?: boolean;
  readonly limits?: Partial<AccessLimits>;
  /** What pages may train; null: nothing. */
  readonly join?: JoinFiles | null;
  readonly log: Log;
}

/** What an app of somebody else decides that has a parameter server in it. */
export interface HostApp {
  /** The prefix of all our paths, without a slash at its end: '' or `/train`. */
  readonly prefix: string;
  /** Null: our own tokens say who may do what. */
  readonly authorize: ((request: FastifyRequest) => Role | null | Promise<Role | null>) | null;
}

/** Those that may be other than `LIMITS`; the first two of one token, or of one address where there are no tokens. */
export interface AccessLimits {
  readonly requestsPerSecondMax: number;
  readonly connectionsPerTokenMax: number;
  /** Of workers with one token, or from one address; as many at once as there may be connections. */
  readonly handshakesPerSecondMax: number;
  /** Of one address, without a token or with a wrong one. */
  readonly refusalsPerSecondMax: number;
  /** In which the headers of a request must have come. */
  readonly requestHeaderMs: number;
  /** In which all of it must have come. */
  readonly requestMs: number;
  readonly tlsHandshakeMs: number;
  /** Of this port. */
  readonly sockets: SocketLimits;
  /** Of one token, that are not answered yet. */
  readonly requestsUnderWayMax: number;
  /** Of one token, or address: see `LIMITS`. */
  readonly messageTimeShareMax: number;
  readonly messageTimeBurstMs: number;
  readonly requestTimeShareMax: number;
  readonly requestTimeBurstMs: number;
  readonly requestWaitMs: number;
}

/** But for the pages of the dashboard, nothing of an answer is to be run, framed, guessed at or kept. */
const SECURITY_HEADERS = {
  'x-content-type-options': 'nosniff',
  'content-security-policy': "default-src 'none'; frame-ancestors 'none'",
  'x-frame-options': 'DENY',
  'referrer-policy': 'no-referrer',
  'cross-origin-resource-policy': 'same-origin',
  'cache-control': 'no-store',
} as const;
/** Of HTTP over TLS: browsers shall never ask in the clear again. */
const STRICT_TRANSPORT = { 'strict-transport-security': 'max-age=31536000' } as const;

/** REST and the WebSocket for workers, on one port. */
export async function createApp(options: AppOptions): Promise<FastifyInstance> {
  const { coordinator, tls = null } = options;
  const limits = limitsOf(options);
  const { requestHeaderMs: headersTimeout, requestMs: requestTimeout } = limits;
  const connectionsCheckingInterval = headersTimeout / 4;
  const inside = { ...portLimits, headersTimeout, requestTimeout, connectionsCheckingInterval };
  const handshakeTimeout = limits.tlsHandshakeMs;
  const server = tls
    ? { https: { ...inside, ...tls.options(), handshakeTimeout } }
    : { http: inside };
  // One type for both: nothing here depends on which it is.
  const app = Fastify({
    ...(server as FastifyServerOptions),
    bodyLimit: LIMITS.bodyBytesMax,
    // Fastify sets both of the server that it has made, whatever that was made with: by default 0 and 72 s.
    requestTimeout,
    keepAliveTimeout: LIMITS.keepAliveMs,
    forceCloseConnections: true,
    clientErrorHandler: answerBroken,
  });
  const places = new Places(app.server, limits.sockets, () =>
    coordinator.reports.countError('DP_LIMIT'),
  );
  const upgrade = await addParameterServer(app, options, { places });
  app.server.on('upgrade', (request: IncomingMessage, socket: Socket, head: Buffer) => {
    if (isWebSocket(request)) upgrade(request, socket, head);
    else serveAsItIs(app.server, request, socket, head);
  });
  return app;
}

const limitsOf = (options: AppOptions): AccessLimits => ({
  ...LIMITS,
  sockets: socketLimits(),
  ...options.limits,
});

/** Opens the WebSocket of a worker or of a standby, or refuses it. */
export type Upgrade = (request: IncomingMessage, socket: Socket, head: Buffer) => void;

/** By default unknown keys are removed in silence, and "5" becomes 5: a mistyped field would pass. */
const STRICT = { removeAdditional: false, coerceTypes: false, useDefaults: false } as const;

/**
 * All routes, hooks and answers of a parameter server, in an app or in a scope of one.
 * @param places null: the sockets are the app's own business. @param host null: the app has nothing but this.
 */
export async function addParameterServer(
  app: FastifyInstance,
  options: AppOptions,
  {
    places = null,
    host = null,
  }: { readonly places?: Places | null; readonly host?: HostApp | null },
): Promise<Upgrade> {
  const { coordinator, version, log, tls = null } = options;
  const limits = limitsOf(options);
  const compile = AjvCompiler()({}, { customOptions: STRICT });
  app.setValidatorCompiler(({ schema }) => compile({ schema }));
  // Serializers made of the schemas compile at the first answer of each route, for 0.1 to 0.4 s in which no push
  // is answered; what we answer is of these types anyway.
  app.setSerializerCompiler(() => (answer) => JSON.stringify(answer));
  app.addHook('onRoute', (route) => {
    route.bodyLimit ??= LIMITS.bodyBytesMax;
  });
  const headers = { ...SECURITY_HEADERS, ...(tls ? STRICT_TRANSPORT : {}) };
  app.setErrorHandler((error: FastifyError | DownpourError, request, reply) => {
    const { code, message } = describeError(error, request.routeOptions.bodyLimit);
    if (code === 'DP_INTERNAL') {
      log(`defect in ${request.method} ${request.url}: ${error.stack}`, {
        ...{ level: 'error', code, kind: kindOfDefect(error) },
      });
    }
    coordinator.reports.countError(code);
    if (error instanceof LimitError) reply.header('retry-after', error.retryAfterSeconds);
    // Who is refused may go on sending its body, drop by drop: nobody waits for the rest.
    if (!request.raw.complete) reply.header('connection', 'close');
    return reply.code(ERRORS[code].http).send({ code, message });
  });
  const parse = app.getDefaultJsonParser('error', 'error');
  // An app may have one of its own.
  if (host) app.removeContentTypeParser('application/json');
  app.addContentTypeParser<string>(
    'application/json',
    { parseAs: 'string' },
    (request, body, done) => {
      if (depthOf(body) <= BODY_DEPTH_MAX) return parse(request, body, done);
      const text = `the body is nested deeper than ${BODY_DEPTH_MAX} lists and objects`;
      done(new DownpourError('DP_BODY_INVALID', text));
    },
  );
  app.setNotFoundHandler((request, reply) => {
    const message = `no ${request.method} ${request.url.slice(0, 200)}; GET /openapi.json lists what there is`;
    return reply.code(404).send({ code: 'DP_NOT_FOUND', message });
  });
  const door = new Door(options, limits, host);
  const costs = new RequestCosts(app);
  app.addHook('onRequest', async (request, reply) => {
    reply.headers(headers);
    const doubled = hostProblem(request.raw);
    if (doubled !== null) throw new DownpourError('DP_BODY_INVALID', doubled);
    await door.ask(request);
    const url = pathOf(request, host);
    if (url === '/health' || (url !== undefined && url in SOCKETS)) return;
    const needed = roleFor(request.method, url);
    if (needed === null) return door.mustBeOurs(request.raw);
    const grant = door.enter(request.raw, needed);
    request.holder = grant.holder;
    const done = door.begin(grant);
    const release = places?.vouch(request.raw.socket) ?? (() => {});
    reply.raw.once('close', () => {
      done();
      release();
    });
    // What changes something is an operator's, who may.
    if (isRead(request.method)) await door.mayTakeTime(request.raw, grant, costs);
  });
  app.decorateRequest('holder', null);
  await app.register(swagger, {
    // An app may have one of its own, of all its routes.
    decorator: OPENAPI,
    openapi: {
      // The first whose schemas are those of JSON Schema: unions with null, constants.
      openapi: '3.1.0',
      info: { title: 'Downpour', version, description: 'Runs, workers and checkpoints' },
    },
  });
  await app.register(async (scope) => {
    const source = addRoutes(scope, options);
    addPages(scope, door, source, options.join ?? null);
  });
  return acceptWorkers(coordinator, door, places, host);
}

/** Where WebSockets connect to. */
export const SOCKETS = { '/ws': 'worker', '/standby': 'standby' } as const;

/** Of a route, as it is called without the prefix of the app. */
function pathOf({ routeOptions: { url } }: FastifyRequest, host: HostApp | null) {
  return url === undefined ? url : url.slice(host?.prefix.length ?? 0) || '/';
}

/** What checks a body calls itself for each list within a list. */
const BODY_DEPTH_MAX = 64;

function depthOf(json: string): number {
  let [depth, deepest, isText] = [0, 0, false];
  for (let i = 0; i < json.length; i++) {
    const code = json.charCodeAt(i);
    if (code === 0x22) isText = !isText;
    else if (isText && code === 0x5c) i++;
    else if (isText) continue;
    else if (code === 0x5b || code === 0x7b) deepest = Math.max(deepest, ++depth);
    else if (code === 0x5d || code === 0x7d) depth--;
  }
  return deepest;
}

/** What workers ask for: a ticket and files in pages, elsewhere what they were sent. */
const FOR_WORKERS: readonly string[] = [
  `POST ${JOIN_PATHS.ticket}`,
  `GET ${JOIN_PATHS.files}:name`,
  `GET ${BUNDLE_ROUTE}`,
];

/** The least role that a route lets in. @returns null: anybody, since it tells nothing of the runs. */
export function roleFor(method: string, url: string | undefined): Role | null {
  if (url !== undefined && (url === '/health' || FOR_ANYBODY.has(url))) return null;
  const read = isRead(method);
  if (FOR_WORKERS.includes(`${read ? 'GET' : method} ${url}`)) return 'worker';
  return read ? 'observer' : 'operator';
}

/** Lets requests and handshakes in, or throws why not. */
class Door implements PageDoor {
  readonly #access: Access;
  readonly #loopbackOnly: boolean;
  readonly #limits: AccessLimits;
  readonly #rate: Rate;
  readonly #refusals: Rate;
  readonly #handshakes: Rate;
  readonly #handshakesAtOnceMax: number;
  readonly #connections = new Map<string, number>();
  readonly #underWay = new Map<string, number>();
  readonly #messages: Budgets;
  readonly #requests: Budgets;
  readonly #tickets = new Tickets();
  readonly #authorize: HostApp['authorize'];
  /** What the app has said of requests that are under way. */
  readonly #told = new WeakMap<IncomingMessage, Grant | null>();

  constructor(
    { access, loopbackOnly = false }: AppOptions,
    limits: AccessLimits,
    host: HostApp | null,
  ) {
    this.#access = access;
    this.#authorize = host?.authorize ?? null;
    this.#loopbackOnly = loopbackOnly;
    this.#limits = limits;
    this.#rate = new Rate(this.#limits.requestsPerSecondMax);
    this.#refusals = new Rate(this.#limits.refusalsPerSecondMax);
    const { handshakesPerSecondMax, connectionsPerTokenMax } = this.#limits;
    // All that may be connected may come back at once.
    this.#handshakesAtOnceMax = Math.max(handshakesPerSecondMax, connectionsPerTokenMax);
    this.#handshakes = new Rate(handshakesPerSecondMax, this.#handshakesAtOnceMax);
    const { messageTimeShareMax: share, messageTimeBurstMs: burstMs } = this.#limits;
    const now = () => performance.now();
    this.#messages = new Budgets({ share, burstMs }, now, LIMITS.holderCountMax);
    const { requestTimeShareMax, requestTimeBurstMs } = this.#limits;
    const terms = { share: requestTimeShareMax, burstMs: requestTimeBurstMs };
    this.#requests = new Budgets(terms, now, LIMITS.holderCountMax);
  }

  /** There are no tokens. */
  get isOpen(): boolean {
    return this.#access.open;
  }

  /** Asks the app who this is, where that is its business. */
  async ask(request: FastifyRequest): Promise<void> {
    if (!this.#authorize) return;
    const role = await this.#authorize(request);
    this.#told.set(request.raw, role === null ? null : { role, holder: addressOf(request.raw) });
  }

  /** By a token or a login. @throws DownpourError DP_UNAUTHORIZED, DP_FORBIDDEN or DP_LIMIT. */
  enter(request: IncomingMessage, needed: Role): Grant {
    this.mustBeOurs(request);
    return this.#admit(request, this.#grantOf(request), needed);
  }

  #admit(request: IncomingMessage, grant: Grant | null, needed: Role): Grant {
    if (!grant) throw this.#refusal(request);
    const holder = this.#holderOf(request, grant);
    if (!this.#rate.take(holder, performance.now())) {
      throw tooMany(`${this.#limits.requestsPerSecondMax} requests a second of one token`);
    }
    if (!mayDo(grant, needed)) throw forbidden(grant.role, needed);
    return { ...grant, holder };
  }

  /** Whoever guesses at tokens is told so more and more slowly. */
  #refusal(request: IncomingMessage): DownpourError {
    if (this.#refusals.take(addressOf(request), performance.now())) return unauthorized();
    return tooMany(`${this.#limits.refusalsPerSecondMax} requests a second without a token`);
  }

  // Of pages.

  look(request: IncomingMessage): SessionFacts {
    const { open } = this.#access;
    const grant = this.#grantOf(request);
    if (grant) return { ...sessionOf(grant), open };
    const { authorization } = request.headers;
    const refused = authorization !== undefined || this.#cookie(request) !== null;
    const refusal = refused ? this.#refusal(request) : null;
    if (refusal?.code === 'DP_LIMIT') throw refusal;
    return { role: null, open, works: false };
  }

  login(
    request: IncomingMessage,
    token: string,
    needed: 'observer' | 'worker',
  ): { grant: Grant; cookie: string } {
    mustBeSameOrigin(request);
    if (this.#authorize) {
      throw new DownpourError(
        'DP_FORBIDDEN',
        'who may use this server is the business of the app that it is part of: log in there',
      );
    }
    const grant = this.#access.grant(`Bearer ${token}`);
    if (!grant) throw this.#refusal(request);
    if (!mayDo(grant, needed)) throw forbidden(grant.role, needed);
    const login = this.#access.open ? '' : this.#access.login(token, Date.now());
    return { grant, cookie: this.#setCookie(request, login, LIMITS.loginSeconds) };
  }

  logout(request: IncomingMessage): string {
    mustBeSameOrigin(request);
    return this.#setCookie(request, '', 0);
  }

  watch(request: IncomingMessage): () => boolean {
    let seen = this.#access.changeCount;
    return () => {
      const { changeCount } = this.#access;
      if (changeCount === seen) return true;
      seen = changeCount;
      const grant = this.#grantOf(request);
      return grant !== null && mayDo(grant, 'observer');
    };
  }

  ticket(request: IncomingMessage): string {
    const grant = this.#grantOf(request);
    if (!grant) throw this.#refusal(request);
    const holder = this.#holderOf(request, grant);
    return this.#tickets.issue(holder, () => this.#grantOf(request), performance.now());
  }

  /** Whose limits count. */
  #holderOf(request: IncomingMessage, grant: Grant): string {
    return this.#access.open ? addressOf(request) : grant.holder;
  }

  /** Whose a request is by now. */
  #grantOf(request: IncomingMessage): Grant | null {
    if (this.#authorize) return this.#told.get(request) ?? null;
    return this.#access.grant(request.headers.authorization) ?? this.#loggedIn(request);
  }

  /**
   * By the cookie of a login, which browsers send by themselves: so the page that asks must be ours. That it is of
   * this machine is not enough, since cookies do not know ports.
   */
  #loggedIn(request: IncomingMessage): Grant | null {
    const cookie = this.#cookie(request);
    const grant = cookie === null ? null : this.#access.loggedIn(cookie, Date.now());
    if (grant) mustBeSameOrigin(request);
    return grant;
  }

  /** Several servers of one machine have one jar, so each has a name of its own. */
  #cookieName({ headers, socket }: IncomingMessage): string {
    const port = /:(\d+)$/.exec(headers.host ?? '')?.[1] ?? 'default';
    return `${isEncrypted(socket) ? '__Host-' : ''}downpour-${port}`;
  }

  #cookie(request: IncomingMessage): string | null {
    const name = this.#cookieName(request);
    const pairs = (request.headers.cookie ?? '').split(';').map((pair) => pair.trim());
    return pairs.find((pair) => pair.startsWith(`${name}=`))?.slice(name.length + 1) ?? null;
  }

  #setCookie(request: IncomingMessage, value: string, seconds: number): string {
    const secure = isEncrypted(request.socket) ? '; Secure' : '';
    return `${this.#cookieName(request)}=${value}; Path=/; Max-Age=${seconds}; HttpOnly; SameSite=Strict${secure}`;
  }

  /**
   * Lets a worker in: by its token, or a page by its ticket, which must be one of this server's own.
   * @returns the grant, and whether it still is one. @throws DownpourError DP_UNAUTHORIZED, DP_FORBIDDEN or DP_LIMIT.
   */
  enterWorker(request: IncomingMessage): {
    readonly grant: Grant;
    readonly stillIn: () => boolean;
    readonly byTicket: boolean;
  } {
    const ticket = ticketOf(request.headers['sec-websocket-protocol']);
    if (ticket !== null) mustBeSameOrigin(request);
    const { authorization } = request.headers;
    const look =
      ticket === null
        ? () => this.#lookOf(request, authorization)
        : this.#tickets.redeem(ticket, performance.now());
    const grant = this.#admit(request, look?.() ?? null, 'worker');
    this.#mayConnect(grant);
    const stillIn = () => {
      const now = look?.() ?? null;
      return now !== null && mayDo(now, 'worker');
    };
    return { grant, stillIn, byTicket: ticket !== null };
  }

  /** @throws LimitError: its workers connect too often. */
  #mayConnect({ holder }: Grant): void {
    const now = performance.now();
    if (this.#handshakes.take(holder, now)) return;
    const { handshakesPerSecondMax: most } = this.#limits;
    const seconds = Math.max(1, Math.ceil(this.#handshakes.waitSeconds(holder, now)));
    throw new LimitError(
      `workers of one token may connect ${most} times a second, and ${this.#handshakesAtOnceMax} times at once after a pause: connect again in ${seconds} s, and stay connected; a connection that ends for a fault of its own counts ${LIMITS.handshakesPerFault} times`,
      seconds,
    );
  }

  /** A connection has ended for a fault of its own: so it counts for more. */
  blame({ holder }: Grant): void {
    this.#handshakes.charge(holder, LIMITS.handshakesPerFault - 1, performance.now());
  }

  /** By a header: a WebSocket of a program has no login. */
  #lookOf(request: IncomingMessage, authorization: string | undefined): Grant | null {
    return this.#authorize ? this.#grantOf(request) : this.#access.grant(authorization);
  }

  /** Lets a standby in, by an operator's token. @throws DownpourError as `enterWorker`. */
  enterStandby(request: IncomingMessage): ReturnType<Door['enterWorker']> {
    const look = () => this.#lookOf(request, request.headers.authorization);
    const grant = this.#admit(request, look(), 'operator');
    const stillIn = () => {
      const now = look();
      return now !== null && mayDo(now, 'operator');
    };
    return { grant, stillIn, byTicket: false };
  }

  /** What a token's reads have taken is paid off, or it waits for its turn. @throws LimitError. */
  async mayTakeTime(
    request: IncomingMessage,
    { holder }: Grant,
    costs: RequestCosts,
  ): Promise<void> {
    const budget = this.#requests.of(holder);
    const { requestTimeShareMax: share, requestWaitMs } = this.#limits;
    if (await costs.mayGoOn(request, budget, requestWaitMs)) return;
    const seconds = Math.max(1, Math.ceil(budget.waitMs / 1000));
    throw new LimitError(
      `reads of this token have taken more than ${100 * share} % of this server's time: ask again in ${seconds} s, and less often; long lists have \`limit\``,
      seconds,
    );
  }

  /** For messages of its workers that the server has not asked for. */
  budgetOf({ holder }: Grant): Budget {
    return this.#messages.of(holder);
  }

  /** Calls back when tokens have come or gone. */
  onChange(callback: () => void): void {
    this.#access.changed = callback;
  }

  /** Counts one more connection of a holder. @returns what counts it off. @throws DownpourError DP_LIMIT. */
  connect({ holder }: Grant): () => void {
    const most = this.#limits.connectionsPerTokenMax;
    return countOne(this.#connections, holder, most, 'connections of one token');
  }

  /** Counts one more request of a holder. @returns what counts it off. @throws DownpourError DP_LIMIT. */
  begin({ holder }: Grant): () => void {
    const most = this.#limits.requestsUnderWayMax;
    return countOne(this.#underWay, holder, most, 'requests of one token at the same time');
  }

  /**
   * A page that a user of this machine looks at can send requests to it, with forms, with WebSockets, and
   * under a name of its own that leads here: browsers tell where such a request comes from.
   */
  mustBeOurs({ headers }: IncomingMessage): void {
    const { origin, host } = headers;
    if (this.#loopbackOnly && host !== undefined && !isLoopback(hostnameOf(`http://${host}`))) {
      throw new DownpourError(
        'DP_FORBIDDEN',
        `this server, which has no token, is asked as '${host.slice(0, 100)}': ask it as 127.0.0.1, or give it a token`,
      );
    }
    if (origin === undefined || isLoopback(hostnameOf(origin))) return;
    if (URL.canParse(origin) && new URL(origin).host === host) return;
    throw new DownpourError(
      'DP_FORBIDDEN',
      `a page of ${origin.slice(0, 100)} may not use this server`,
    );
  }
}

/** @returns what counts it off. @throws DownpourError DP_LIMIT. */
function countOne(
  counts: Map<string, number>,
  holder: string,
  most: number,
  what: string,
): () => void {
  const count = counts.get(holder) ?? 0;
  if (count >= most) throw tooMany(`${most} ${what}`);
  counts.set(holder, count + 1);
  return () => {
    const left = counts.get(holder)! - 1;
    if (left > 0) counts.set(holder, left);
    else counts.delete(holder);
  };
}

const isRead = (method: string | undefined) => method === 'GET' || method === 'HEAD';

const addressOf = ({ socket }: IncomingMessage) => socket.remoteAddress ?? 'unix';

const forbidden = (role: Role, needed: Role) =>
  new DownpourError(
    'DP_FORBIDDEN',
    `this token is a${role === 'worker' ? '' : 'n'} ${role}'s; this takes an operator's${needed === 'operator' ? '' : ` or ${needed}'s`} token`,
  );

/**
 * Whatever changes something tells where it comes from, in every browser; newer ones tell it of reads too.
 * @throws DownpourError DP_FORBIDDEN.
 */
function mustBeSameOrigin({ method, headers }: IncomingMessage): void {
  const { origin, host } = headers;
  const site = headers['sec-fetch-site'];
  const ours =
    origin === undefined ? isRead(method) : URL.canParse(origin) && new URL(origin).host === host;
  if (ours && (site === undefined || site === 'same-origin' || site === 'none')) return;
  throw new DownpourError(
    'DP_FORBIDDEN',
    `a login counts for this server's own pages; this request comes from ${origin?.slice(0, 100) ?? 'elsewhere'}: send a token`,
  );
}

const hostnameOf = (url: string) => (URL.canParse(url) ? new URL(url).hostname : '');

const tooMany = (what: string) =>
  new LimitError(`more than ${what}: wait a second, then ask less often`);

/** A request that is no HTTP, too long or too slow: there is nothing that could answer it but this. */
function answerBroken(error: Error & { code?: string }, socket: Duplex): void {
  // Before it has agreed on encryption nothing can be written to it, and its end would be waited for without end.
  const isMute = error.code?.startsWith('ERR_TLS') || error.code?.startsWith('ERR_SSL');
  if (isMute || error.code === 'ECONNRESET' || !socket.writable) {
    socket.destroy();
    return;
  }
  if (error.code === 'HPE_HEADER_OVERFLOW') {
    const most = LIMITS.requestHeaderBytesMax;
    refuse(socket, 'DP_HEADERS_TOO_LARGE', `the headers have more than ${most} bytes`);
  } else if (error.code === 'ERR_HTTP_REQUEST_TIMEOUT') {
    const { requestHeaderMs, requestMs } = LIMITS;
    const most = `headers may take ${requestHeaderMs / 1000} s, all of it ${requestMs / 1000} s`;
    refuse(socket, 'DP_REQUEST_TIMEOUT', `the request came too slowly: its ${most}`);
  } else refuse(socket, 'DP_BODY_INVALID', 'the request is not HTTP/1.1');
}

const isEncrypted = (socket: Socket) => (socket as Partial<TLSSocket>).encrypted === true;

export const isWebSocket = ({ headers }: IncomingMessage) =>
  headers.upgrade?.toLowerCase().includes('websocket') ?? false;

/**
 * A request that would rather speak another protocol (`Upgrade: h2c` of Java's client and of curl --http2) is one of
 * HTTP/1.1 to a server that does not (RFC 9110, 7.8). Node has taken its parser away by now: it is read once more,
 * without the offer.
 */
export function serveAsItIs(
  server: FastifyInstance['server'],
  { method, url, httpVersion, headers, rawHeaders }: IncomingMessage,
  socket: Socket,
  head: Buffer,
): void {
  const lines = [`${method} ${url} HTTP/${httpVersion}`];
  for (let i = 0; i < rawHeaders.length; i += 2) {
    const name = rawHeaders[i]!.toLowerCase();
    if (['upgrade', 'connection', 'http2-settings'].includes(name)) continue;
    lines.push(`${rawHeaders[i]}: ${rawHeaders[i + 1]}`);
  }
  if (/\bclose\b/i.test(headers.connection ?? '')) lines.push('Connection: close');
  const before = Buffer.from(`${lines.join('\r\n')}\r\n\r\n`, 'latin1');
  socket.unshift(Buffer.concat([before, head]));
  server.emit('encrypted' in socket ? 'secureConnection' : 'connection', socket);
}

function acceptWorkers(
  coordinator: Coordinator,
  door: Door,
  places: Places | null,
  host: HostApp | null,
): Upgrade {
  const sessions = new Map<Session, () => boolean>();
  const standbys = new Map<Connection, () => boolean>();
  door.onChange(() => {
    for (const [session, stillIn] of sessions) if (!stillIn()) session.fail(unauthorized());
    for (const [standby, stillIn] of standbys) {
      if (!stillIn()) standby.close(4401, 'DP_UNAUTHORIZED');
    }
  });
  return (request, socket, head) => {
    socket.on('error', () => socket.destroy());
    const path = request.url?.split('?', 1)[0]?.slice(host?.prefix.length ?? 0);
    if (path !== '/ws' && path !== '/standby') {
      return refuse(socket, 'DP_NOT_FOUND', 'workers connect to /ws, a standby to /standby');
    }
    let gone: () => void;
    let entered: ReturnType<Door['enterWorker']>;
    try {
      door.mustBeOurs(request);
      entered = path === '/ws' ? door.enterWorker(request) : door.enterStandby(request);
      const problem = upgradeProblem(request);
      if (problem !== null) throw new DownpourError('DP_BODY_INVALID', problem);
      coordinator.mustBeOpen();
      if (path === '/standby') mustReplicate(coordinator).mustHaveRoom();
      gone = door.connect(entered.grant);
    } catch (error) {
      coordinator.reports.countError(errorCode(error));
      const again = error instanceof LimitError ? error.retryAfterSeconds : null;
      return refuse(socket, errorCode(error), errorText(error), again);
    }
    places?.vouch(socket);
    socket.once('close', gone);
    const { grant, stillIn, byTicket } = entered;
    const protocol = byTicket ? TICKET_PROTOCOL : null;
    if (path === '/standby') {
      const connection = accept(request, socket, { protocol });
      standbys.set(connection, stillIn);
      socket.once('close', () => standbys.delete(connection));
      const events = mustReplicate(coordinator).accept(connection, addressOf(request));
      connection.start(events, head);
      return;
    }
    const budget = door.budgetOf(grant);
    const begin = () => {
      if (socket.destroyed) return;
      const holder = door.isOpen ? null : grant.holder;
      const connection = accept(request, socket, { protocol });
      const connectedAt = new Date().toISOString();
      const accepts = request.headers[BUNDLE_HEADER];
      const session = new Session(connection, coordinator, connectedAt, holder, budget, accepts);
      sessions.set(session, stillIn);
      socket.once('close', () => {
        sessions.delete(session);
        if (session.isAtFault) door.blame(grant);
      });
      try {
        coordinator.mustBeOpen();
        if (!stillIn()) throw unauthorized();
        coordinator.workers.opened(session);
      } catch (error) {
        session.fail(error);
      }
      connection.start(session.events, head);
    };
    if (budget.hasTime) begin();
    else {
      // As its messages would, a new connection of a token that is in debt waits for its turn.
      budget.await(begin);
      socket.once('close', () => budget.leave(begin));
    }
  };
}

/** @throws DownpourError DP_USAGE. */
function mustReplicate({ replication }: Coordinator): Replication {
  if (replication) return replication;
  throw new DownpourError(
    'DP_USAGE',
    'a server with shards has no standby: when a shard is lost its runs go on from their checkpoints',
  );
}

function describeError(
  error: FastifyError | DownpourError,
  bodyBytesMax: number = LIMITS.bodyBytesMax,
): { code: ErrorCode; message: string } {
  if (error instanceof DownpourError) return { code: error.code, message: error.message };
  if ('validation' in error && error.validation) {
    const lines = error.validation.map(({ instancePath, message, params }) => {
      const extra = (params as { additionalProperty?: string }).additionalProperty;
      return `${error.validationContext ?? 'body'}${instancePath.replaceAll('/', '.')} ${message}${extra ? `: '${extra}'` : ''}`;
    });
    return { code: 'DP_BODY_INVALID', message: lines.join('; ') };
  }
  if (error.code === 'FST_ERR_CTP_BODY_TOO_LARGE') {
    return {
      code: 'DP_FRAME_TOO_LARGE',
      message: `the body is too large; at most ${bodyBytesMax} bytes are allowed`,
    };
  }
  const { statusCode } = error;
  if (statusCode !== undefined && statusCode < 500) {
    return { code: 'DP_BODY_INVALID', message: errorText(error) };
  }
  return { code: 'DP_INTERNAL', message: 'internal error; see the server log' };
}
