import { createHash, timingSafeEqual } from 'node:crypto';
import type { IncomingMessage } from 'node:http';
import type { Socket } from 'node:net';
import type { Duplex } from 'node:stream';
import swagger from '@fastify/swagger';
import Fastify, { type FastifyError, type FastifyInstance } from 'fastify';
import { LIMITS } from '../shared/config.ts';
import { DownpourError, ERRORS, type ErrorCode, errorCode, errorText } from '../shared/errors.ts';
import { accept, upgradeProblem } from '../wire/handshake.ts';
import type { Coordinator } from './coordinator.ts';
import { addRoutes, type RoutesOptions } from './routes.ts';
import { Session } from './session.ts';

export interface AppOptions extends RoutesOptions {
  /** Null: everybody who reaches the port may do everything. */
  readonly token: string | null;
  readonly log: (line: string) => void;
}

/** REST and the WebSocket for workers, on one port. */
export async function createApp(options: AppOptions): Promise<FastifyInstance> {
  const { coordinator, token, version, log } = options;
  const app = Fastify({
    bodyLimit: LIMITS.bodyBytesMax,
    forceCloseConnections: true,
    // By default unknown keys are removed in silence, and "5" becomes 5: a mistyped field would pass.
    ajv: { customOptions: { removeAdditional: false, coerceTypes: false, useDefaults: false } },
  });
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
  const mayPass = (request: IncomingMessage) =>
    token === null || bearerMatches(request.headers.authorization, token);
  app.addHook('onRequest', async (request) => {
    // Health checks carry no token; they tell nothing of the runs.
    if (request.url !== '/health' && !mayPass(request.raw)) throw unauthorized();
  });
  await app.register(swagger, {
    openapi: {
      info: { title: 'Downpour', version, description: 'Runs, workers and checkpoints' },
    },
  });
  await app.register(async (scope) => addRoutes(scope, options));
  acceptWorkers(app, coordinator, mayPass);
  return app;
}

function acceptWorkers(
  app: FastifyInstance,
  coordinator: Coordinator,
  mayPass: (request: IncomingMessage) => boolean,
): void {
  app.server.on('upgrade', (request: IncomingMessage, socket: Socket, head: Buffer) => {
    socket.on('error', () => socket.destroy());
    const path = request.url?.split('?', 1)[0];
    if (path !== '/ws') return refuse(socket, 'DP_NOT_FOUND', 'workers connect to /ws');
    if (!mayPass(request)) {
      coordinator.countError('DP_UNAUTHORIZED');
      return refuse(socket, 'DP_UNAUTHORIZED', unauthorized().message);
    }
    const problem = upgradeProblem(request);
    if (problem !== null) return refuse(socket, 'DP_BODY_INVALID', problem);
    try {
      coordinator.mustBeOpen();
    } catch (error) {
      return refuse(socket, errorCode(error), errorText(error));
    }
    const connection = accept(request, socket);
    const session = new Session(connection, coordinator, new Date().toISOString());
    try {
      coordinator.opened(session);
    } catch (error) {
      session.fail(error);
    }
    connection.start(session.events, head);
  });
}

/** Answers an upgrade in plain HTTP: no WebSocket exists yet. */
export function refuse(socket: Duplex, code: ErrorCode, message: string): void {
  const body = JSON.stringify({ code, message });
  const { http } = ERRORS[code];
  socket.end(
    `HTTP/1.1 ${http} ${code}\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: ${Buffer.byteLength(body)}\r\n\r\n${body}`,
  );
}

export function unauthorized(): DownpourError {
  return new DownpourError(
    'DP_UNAUTHORIZED',
    'the token is missing or wrong: send it as `Authorization: Bearer …`; the commands read DOWNPOUR_TOKEN',
  );
}

/** Compares in constant time: digests have equal length. */
export function bearerMatches(header: string | undefined, token: string): boolean {
  const given = header?.startsWith('Bearer ') ? header.slice(7) : '';
  const digest = (text: string) => createHash('sha256').update(text).digest();
  return timingSafeEqual(digest(given), digest(token));
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
