import { type IncomingMessage, ServerResponse } from 'node:http';
import type { Socket } from 'node:net';
import type { FastifyInstance } from 'fastify';
import { DownpourError } from '../../shared/errors.ts';
import { type AppOptions, addParameterServer } from './app.ts';
import type { HostApp } from './door.ts';
import { isWebSocket, SOCKETS, serveAsItIs, type Upgrade } from './upgrade.ts';

/**
 * Puts a parameter server into an app of somebody else. The app's hooks run before ours, for WebSockets too; what we set
 * counts for our routes alone.
 * @param scope whose routes have the prefix.
 */
export async function mountApp(
  scope: FastifyInstance,
  options: AppOptions,
  host: HostApp,
): Promise<void> {
  const upgrade = await addParameterServer(scope, options, { host });
  const upgrading = new WeakMap<IncomingMessage, readonly [Socket, Buffer]>();
  for (const path of Object.keys(SOCKETS)) {
    scope.get(path, { schema: { hide: true } }, (request, reply) => {
      const waiting = upgrading.get(request.raw);
      if (!waiting) {
        const text = `${host.prefix}${path} is for WebSockets; GET ${host.prefix}/openapi.json lists what there is`;
        throw new DownpourError('DP_NOT_FOUND', text);
      }
      reply.hijack();
      reply.raw.detachSocket(waiting[0]);
      upgrade(request.raw, ...waiting);
    });
  }
  const { server } = scope;
  const isOurs = ({ url }: IncomingMessage) =>
    Object.keys(SOCKETS).some((path) => url?.split('?', 1)[0] === host.prefix + path);
  // Other plugins may take upgrades as well, and each listener sees all of them: what is ours, others must not answer.
  scope.addHook('onReady', async () => {
    const others = server.listeners('upgrade') as Upgrade[];
    server.removeAllListeners('upgrade');
    server.on('upgrade', (request: IncomingMessage, socket: Socket, head: Buffer) => {
      if (!isWebSocket(request) || !isOurs(request)) {
        if (others.length === 0) return serveAsItIs(server, request, socket, head);
        for (const other of others) other.call(server, request, socket, head);
        return;
      }
      upgrading.set(request, [socket, head]);
      const response = new ServerResponse(request);
      // Whoever is refused may not stay.
      response.shouldKeepAlive = false;
      response.once('finish', () => socket.end());
      response.assignSocket(socket);
      scope.routing(request, response);
    });
  });
}
