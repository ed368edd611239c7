import type { IncomingMessage } from 'node:http';
import type { Socket } from 'node:net';
import type { Duplex } from 'node:stream';
import AjvCompiler from '@fastify/ajv-compiler';
import swagger from '@fastify/swagger';
import Fastify, {
  type FastifyError,
  type FastifyInstance,
  type FastifyReply,
  type FastifyRequest,
  type FastifySchemaCompiler,
  type FastifyServerOptions,
} from 'fastify';
import { DownpourError, ERRORS } from '../../shared/errors.ts';
import { LIMITS } from '../../shared/limits.ts';
import { kindOfDefect, type Log } from '../../shared/log.ts';
import { hostProblem } from '../../wire/handshake.ts';
import { type Access, LimitError, portLimits, refuse } from '../access/access.ts';
import { SocketPlaces, socketLimits } from '../access/sockets.ts';
import type { TlsMaterial } from '../access/tls.ts';
import { describeBadAddress, describeError } from './describe-error.ts';
import { type AccessLimits, Door, type HostApp, isRead, roleFor } from './door.ts';
import type { JoinPageFiles } from './join.ts';
import { addPages } from './pages.ts';
import { RequestCosts } from './request-cost.ts';
import { OPENAPI, withErrors } from './route.ts';
import { addRoutes, type RoutesOptions } from './routes.ts';
import { acceptWorkers, isWebSocket, SOCKETS, serveAsItIs, type Upgrade } from './upgrade.ts';

export interface AppOptions extends RoutesOptions {
  readonly access: Access;
  /** Null: in the clear. */
  readonly tls?: TlsMaterial | null;
  /** False: open to all who reach it, by the user's wish; else only this machine does. */
  readonly loopbackOnly?: boolean;
  readonly limits?: Partial<AccessLimits>;
  /** What pages may train; null: nothing. */
  readonly join?: JoinPageFiles | null;
  readonly log: Log;
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
/** Header of HTTP over TLS: browsers shall never ask in the clear again. */
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
    // Longer names are refused where all wrong names are.
    routerOptions: { maxParamLength: LIMITS.requestHeaderBytesMax },
    // What is no address comes here: neither a route nor a hook sees it.
    frameworkErrors: (error, _, reply) => {
      const { code, message } = describeBadAddress(error);
      coordinator.reports.countError(code);
      const answer = reply as FastifyReply;
      return answer.headers(headersOf(options)).code(ERRORS[code].http).send({ code, message });
    },
  });
  const places = new SocketPlaces(app.server, limits.sockets, () =>
    coordinator.reports.countError('DP_LIMIT'),
  );
  const upgrade = await addParameterServer(app, options, { places });
  app.server.on('upgrade', (request: IncomingMessage, socket: Socket, head: Buffer) => {
    if (isWebSocket(request)) upgrade(request, socket, head);
    else serveAsItIs(app.server, request, socket, head);
  });
  return app;
}

/** All answers have them. */
const headersOf = ({ tls = null }: AppOptions) => ({
  ...SECURITY_HEADERS,
  ...(tls ? STRICT_TRANSPORT : {}),
});

const limitsOf = (options: AppOptions): AccessLimits => ({
  ...LIMITS,
  sockets: socketLimits(),
  ...options.limits,
});

/** By default unknown keys are removed in silence, and "5" becomes 5: a mistyped field would pass. */
const STRICT = { removeAdditional: false, coerceTypes: false, useDefaults: false } as const;
const compile = AjvCompiler()({}, { customOptions: STRICT });

/** Compiled when it is first needed: all together take half as long as the server needs to listen. */
function validatorOf(schema: object) {
  let validate: ReturnType<typeof compile> | null = null;
  const lazy: RouteValidator = (data: unknown) => {
    validate ??= compile({ schema });
    const isValid = validate(data) as boolean;
    lazy.errors = validate.errors ?? null;
    return isValid;
  };
  return lazy;
}
type RouteValidator = ReturnType<FastifySchemaCompiler<unknown>>;

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
  }: { readonly places?: SocketPlaces | null; readonly host?: HostApp | null },
): Promise<Upgrade> {
  const { coordinator, version } = options;
  readBodies(app, host);
  answerErrors(app, options);
  const door = new Door(options, limitsOf(options), host);
  letIn(app, door, {
    headers: headersOf(options),
    places,
    host,
  });
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

/** JSON of the types that the schemas say, and no deeper than they need. */
function readBodies(app: FastifyInstance, host: HostApp | null): void {
  app.setValidatorCompiler(({ schema }) => validatorOf(schema as object));
  // Serializers made of the schemas compile at the first answer of each route, for 0.1 to 0.4 s in which no push
  // is answered; what we answer is of these types anyway.
  app.setSerializerCompiler(() => (answer) => JSON.stringify(answer));
  app.addHook('onRoute', (route) => {
    route.bodyLimit ??= LIMITS.bodyBytesMax;
    if (route.schema) route.schema = { ...route.schema, response: withErrors(route.schema) };
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
}

/** Every error is answered with a code of the one table. */
function answerErrors(app: FastifyInstance, { coordinator, log }: AppOptions): void {
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
  app.setNotFoundHandler((request, reply) => {
    const message = `no ${request.method} ${request.url.slice(0, 200)}; GET /openapi.json lists what there is`;
    return reply.code(404).send({ code: 'DP_NOT_FOUND', message });
  });
}

/** Looks at each request before anything is done for it. */
function letIn(
  app: FastifyInstance,
  door: Door,
  {
    headers,
    places,
    host,
  }: {
    readonly headers: Readonly<Record<string, string>>;
    readonly places: SocketPlaces | null;
    readonly host: HostApp | null;
  },
): void {
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
}

/** Path of a route without the prefix of the app. */
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
