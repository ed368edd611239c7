import type { IncomingMessage } from 'node:http';
import type { Socket } from 'node:net';
import { performance } from 'node:perf_hooks';
import type { Duplex } from 'node:stream';
import swagger from '@fastify/swagger';
import Fastify, {
  type FastifyError,
  type FastifyInstance,
  type FastifyServerOptions,
} from 'fastify';
import { LIMITS } from '../shared/config.ts';
import { DownpourError, ERRORS, type ErrorCode, errorCode, errorText } from '../shared/errors.ts';
import { accept, upgradeProblem } from '../wire/handshake.ts';
import { isLoopback } from '../wire/local-socket.ts';
import { type Access, type Grant, mayDo, Rate, type Role, refuse, unauthorized } from './access.ts';
import type { Coordinator } from './coordinator.ts';
import { addRoutes, type RoutesOptions } from './routes.ts';
import { Session } from './session.ts';
import type { TlsMaterial } from './tls.ts';

export interface AppOptions extends RoutesOptions {
  readonly access: Access;
  /** Null: in the clear. */
  readonly tls?: TlsMaterial | null;
  /** False: open to all who reach it, by the user's wish; else only this machine does. */
  readonly loopbackOnly?: boolean;
  readonly limits?: Partial<AccessLimits>;
  readonly log: (line: string) => void;
}

/** Those that may be other than `LIMITS`; the first two of one token, or of one address where there are no tokens. */
export interface AccessLimits {
  readonly requestsPerSecondMax: number;
  readonly connectionsPerTokenMax: number;
  /** In which the headers of a request must have come. */
  readonly requestHeaderMs: number;
}

/** There are no pages here: nothing of an answer is to be run, framed, guessed at or kept. */
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
  const { coordinator, version, log, tls = null } = options;
  const headersTimeout = options.limits?.requestHeaderMs ?? LIMITS.requestHeaderMs;
  const inside = {
    maxHeaderSize: LIMITS.requestHeaderBytesMax,
    headersTimeout,
    requestTimeout: LIMITS.requestMs,
    connectionsCheckingInterval: headersTimeout / 4,
  };
  const server = tls ? { https: { ...inside, ...tls.options() } } : { http: inside };
  // One type for both: nothing here depends on which it is.
  const app = Fastify({
    ...(server as FastifyServerOptions),
    bodyLimit: LIMITS.bodyBytesMax,
    forceCloseConnections: true,
    clientErrorHandler: answerBroken,
    // By default unknown keys are removed in silence, and "5" becomes 5: a mistyped field would pass.
    ajv: { customOptions: { removeAdditional: false, coerceTypes: false, useDefaults: false } },
  });
  app.server.maxConnections = LIMITS.socketCountMax;
  const headers = { ...SECURITY_HEADERS, ...(tls ? STRICT_TRANSPORT : {}) };
  app.setErrorHandler((error: FastifyError | DownpourError, request, reply) => {
    const { code, message } = describeError(error);
    if (code === 'DP_INTERNAL') log(`defect in ${request.method} ${request.url}: ${error.stack}`);
    coordinator.countError(code);
    return reply.code(ERRORS[code].http).send({ code, message });
  });
  app.setNotFoundHandler((request, reply) => {
    const message = `no ${request.method} ${request.url.slice(0, 200)}; GET /openapi.json lists what there is`;
    return reply.code(404).send({ code: 'DP_NOT_FOUND', message });
  });
  const door = new Door(options);
  app.addHook('onRequest', async (request, reply) => {
    reply.headers(headers);
    // Health checks carry no token; they tell nothing of the runs.
    if (request.routeOptions.url === '/health') return;
    door.enter(request.raw, ['GET', 'HEAD'].includes(request.method) ? 'observer' : 'operator');
  });
  await app.register(swagger, {
    openapi: {
      info: { title: 'Downpour', version, description: 'Runs, workers and checkpoints' },
    },
  });
  await app.register(async (scope) => addRoutes(scope, options));
  acceptWorkers(app, coordinator, door);
  return app;
}

/** Lets requests and handshakes in, or throws why not. */
class Door {
  readonly #access: Access;
  readonly #loopbackOnly: boolean;
  readonly #limits: AccessLimits;
  readonly #rate: Rate;
  readonly #refusals = new Rate(LIMITS.refusalsPerSecondMax);
  readonly #connections = new Map<string, number>();

  constructor({ access, loopbackOnly = false, limits }: AppOptions) {
    this.#access = access;
    this.#loopbackOnly = loopbackOnly;
    this.#limits = { ...LIMITS, ...limits };
    this.#rate = new Rate(this.#limits.requestsPerSecondMax);
  }

  /** @throws DownpourError DP_UNAUTHORIZED, DP_FORBIDDEN or DP_LIMIT. */
  enter(request: IncomingMessage, needed: Role): Grant {
    const now = performance.now();
    const address = request.socket.remoteAddress ?? 'unix';
    this.#mustBeOurs(request);
    const grant = this.#access.grant(request.headers.authorization);
    if (!grant) {
      if (!this.#refusals.take(address, now)) {
        throw tooMany(`${LIMITS.refusalsPerSecondMax} requests a second without a token`);
      }
      throw unauthorized();
    }
    const holder = this.#access.open ? address : grant.holder;
    if (!this.#rate.take(holder, now)) {
      throw tooMany(`${this.#limits.requestsPerSecondMax} requests a second of one token`);
    }
    if (!mayDo(grant, needed)) {
      throw new DownpourError(
        'DP_FORBIDDEN',
        `this token is a${grant.role === 'worker' ? '' : 'n'} ${grant.role}'s; this takes an operator's${needed === 'operator' ? '' : ` or ${needed}'s`} token`,
      );
    }
    return { ...grant, holder };
  }

  /** Whether the handshake's token, seen anew, still lets a worker in. */
  stillIn(authorization: string | undefined): boolean {
    const grant = this.#access.grant(authorization);
    return grant !== null && mayDo(grant, 'worker');
  }

  /** Calls back when tokens have come or gone. */
  onChange(callback: () => void): void {
    this.#access.changed = callback;
  }

  /** Counts one more connection of a holder. @returns what counts it off. @throws DownpourError DP_LIMIT. */
  connect({ holder }: Grant): () => void {
    const count = this.#connections.get(holder) ?? 0;
    const most = this.#limits.connectionsPerTokenMax;
    if (count >= most) throw tooMany(`${most} connections of one token`);
    this.#connections.set(holder, count + 1);
    return () => {
      const left = this.#connections.get(holder)! - 1;
      if (left > 0) this.#connections.set(holder, left);
      else this.#connections.delete(holder);
    };
  }

  /**
   * A page that a user of this machine looks at can send requests to it, with forms, with WebSockets, and
   * under a name of its own that leads here: browsers tell where such a request comes from.
   */
  #mustBeOurs({ headers }: IncomingMessage): void {
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

const hostnameOf = (url: string) => (URL.canParse(url) ? new URL(url).hostname : '');

const tooMany = (what: string) =>
  new DownpourError('DP_LIMIT', `more than ${what}: wait a second, then ask less often`);

/** A request that is no HTTP, too long or too slow: there is nothing that could answer it but this. */
function answerBroken(error: Error & { code?: string }, socket: Duplex): void {
  if (error.code === 'ECONNRESET' || !socket.writable) {
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

function acceptWorkers(app: FastifyInstance, coordinator: Coordinator, door: Door): void {
  const tokens = new Map<Session, string | undefined>();
  door.onChange(() => {
    for (const [session, authorization] of tokens) {
      if (!door.stillIn(authorization)) session.fail(unauthorized());
    }
  });
  app.server.on('upgrade', (request: IncomingMessage, socket: Socket, head: Buffer) => {
    socket.on('error', () => socket.destroy());
    const path = request.url?.split('?', 1)[0];
    if (path !== '/ws') return refuse(socket, 'DP_NOT_FOUND', 'workers connect to /ws');
    let gone: () => void;
    try {
      const grant = door.enter(request, 'worker');
      const problem = upgradeProblem(request);
      if (problem !== null) throw new DownpourError('DP_BODY_INVALID', problem);
      coordinator.mustBeOpen();
      gone = door.connect(grant);
    } catch (error) {
      coordinator.countError(errorCode(error));
      return refuse(socket, errorCode(error), errorText(error));
    }
    const connection = accept(request, socket);
    const session = new Session(connection, coordinator, new Date().toISOString());
    tokens.set(session, request.headers.authorization);
    socket.once('close', () => {
      gone();
      tokens.delete(session);
    });
    try {
      coordinator.opened(session);
    } catch (error) {
      session.fail(error);
    }
    connection.start(session.events, head);
  });
}

function describeError(error: FastifyError | DownpourError): { code: ErrorCode; message: string } {
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
      message: `the body is too large; at most ${LIMITS.bodyBytesMax} bytes are allowed`,
    };
  }
  const { statusCode } = error;
  if (statusCode !== undefined && statusCode < 500) {
    return { code: 'DP_BODY_INVALID', message: errorText(error) };
  }
  return { code: 'DP_INTERNAL', message: 'internal error; see the server log' };
}
