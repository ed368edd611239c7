import type { IncomingMessage } from 'node:http';
import type { Socket } from 'node:net';
import { performance } from 'node:perf_hooks';
import type { TLSSocket } from 'node:tls';
import type { FastifyRequest } from 'fastify';
import { DownpourError } from '../../shared/errors.ts';
import { JOIN_PATHS, ticketOf } from '../../shared/join.ts';
import { LIMITS } from '../../shared/limits.ts';
import type { LoginFacts } from '../../shared/rest.ts';
import { isLoopback } from '../../wire/local-socket.ts';
import {
  type Access,
  type AccessRole,
  type Grant,
  LimitError,
  mayDo,
  Rate,
  unauthorized,
} from '../access/access.ts';
import { type Budget, Budgets } from '../access/budget.ts';
import type { SocketLimits } from '../access/sockets.ts';
import { Tickets } from '../access/tickets.ts';
import { BUNDLE_ROUTE } from './bundle-routes.ts';
import { FOR_ANYBODY, type PageDoor, sessionOf } from './pages.ts';
import type { RequestCosts } from './request-cost.ts';

/** What an app of somebody else decides that has a parameter server in it. */
export interface HostApp {
  /** The prefix of all our paths, without a slash at its end: '' or `/train`. */
  readonly prefix: string;
  /** Null: our own tokens say who may do what. */
  readonly authorize:
    | ((request: FastifyRequest) => AccessRole | null | Promise<AccessRole | null>)
    | null;
}

/** Those that may be other than `LIMITS`; the first two of one token, or of one address where there are no tokens. */
export interface AccessLimits {
  readonly requestsPerSecondMax: number;
  readonly connectionsPerTokenMax: number;
  /** Handshakes of workers with one token, or from one address; as many at once as there may be connections. */
  readonly handshakesPerSecondMax: number;
  /** How long the refusal of a handshake that came too soon is kept back. */
  readonly refusalHeldMs: number;
  /** Requests of one address without a token or with a wrong one. */
  readonly refusalsPerSecondMax: number;
  /** In which the headers of a request must have come. */
  readonly requestHeaderMs: number;
  /** In which all of it must have come. */
  readonly requestMs: number;
  readonly tlsHandshakeMs: number;
  /** Limits of the sockets of this port. */
  readonly sockets: SocketLimits;
  /** Requests of one token that are not answered yet. */
  readonly requestsUnderWayMax: number;
  /** Share of time of one token, or address: see `LIMITS`. */
  readonly messageTimeShareMax: number;
  readonly messageTimeBurstMs: number;
  readonly requestTimeShareMax: number;
  readonly requestTimeBurstMs: number;
  readonly requestWaitMs: number;
}

/** What workers ask for: a ticket and files in pages, elsewhere what they were sent. */
const FOR_WORKERS: readonly string[] = [
  `POST ${JOIN_PATHS.ticket}`,
  `GET ${JOIN_PATHS.files}:name`,
  `GET ${BUNDLE_ROUTE}`,
];

/** The least role that a route lets in. @returns null: anybody, since it tells nothing of the runs. */
export function roleFor(method: string, url: string | undefined): AccessRole | null {
  if (url !== undefined && (url === '/health' || FOR_ANYBODY.has(url))) return null;
  const read = isRead(method);
  if (FOR_WORKERS.includes(`${read ? 'GET' : method} ${url}`)) return 'worker';
  return read ? 'observer' : 'operator';
}

/** Lets requests and handshakes in, or throws why not. */
export class Door implements PageDoor {
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
    { access, loopbackOnly = false }: { readonly access: Access; readonly loopbackOnly?: boolean },
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
  enter(request: IncomingMessage, needed: AccessRole): Grant {
    this.mustBeOurs(request);
    return this.#admit(request, this.#grantOf(request), needed);
  }

  #admit(request: IncomingMessage, grant: Grant | null, needed: AccessRole): Grant {
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

  // Pages.

  look(request: IncomingMessage): LoginFacts {
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
        'the app that this server is part of decides who may use it: log in there',
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
    return { grant, stillIn };
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

  get refusalHeldMs(): number {
    return this.#limits.refusalHeldMs;
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
    return { grant, stillIn };
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
        `this server has no token and was addressed as '${host.slice(0, 100)}': use the address 127.0.0.1, or give the server a token`,
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

export const isRead = (method: string | undefined) => method === 'GET' || method === 'HEAD';

export const addressOf = ({ socket }: IncomingMessage) => socket.remoteAddress ?? 'unix';

const forbidden = (role: AccessRole, needed: AccessRole) =>
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

const isEncrypted = (socket: Socket) => (socket as Partial<TLSSocket>).encrypted === true;
