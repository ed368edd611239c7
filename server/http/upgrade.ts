import type { IncomingMessage } from 'node:http';
import type { Socket } from 'node:net';
import type { FastifyInstance } from 'fastify';
import { DownpourError, errorCode, errorText } from '../../shared/errors.ts';
import { LIMITS } from '../../shared/limits.ts';
import type { Connection } from '../../wire/connection.ts';
import { accept } from '../../wire/handshake.ts';
import { LimitError, refuse, unauthorized } from '../access/access.ts';
import type { SocketPlaces } from '../access/sockets.ts';
import type { Coordinator } from '../fleet/coordinator.ts';
import { WorkerSession } from '../fleet/session.ts';
import type { Replication } from '../standby/replication.ts';
import { addressOf, type Door, type HostApp } from './door.ts';

/** Where WebSockets connect to. */
export const SOCKETS = { '/ws': 'worker', '/standby': 'standby' } as const;

/** Opens the WebSocket of a worker or of a standby, or refuses it. */
export type Upgrade = (request: IncomingMessage, socket: Socket, head: Buffer) => void;

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

export function acceptWorkers(
  coordinator: Coordinator,
  door: Door,
  places: SocketPlaces | null,
  host: HostApp | null,
): Upgrade {
  const sessions = new Map<WorkerSession, () => boolean>();
  const standbys = new Map<Connection, () => boolean>();
  /** Sockets that came too soon, and are refused a little later. */
  const held = new Set<Socket>();
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
    const decline = (error: unknown) => {
      coordinator.reports.countError(errorCode(error));
      const again = error instanceof LimitError ? error.retryAfterSeconds : null;
      const answer = () => refuse(socket, errorCode(error), errorText(error), again);
      if (again === null || held.size >= LIMITS.refusalsHeldMax) answer();
      else hold(held, socket, door.refusalHeldMs, answer);
    };
    const upgrade = () => {
      try {
        return accept(request, socket, head);
      } catch (error) {
        decline(error);
        return null;
      }
    };
    let gone: () => void;
    let entered: ReturnType<Door['enterWorker']>;
    try {
      door.mustBeOurs(request);
      entered = path === '/ws' ? door.enterWorker(request) : door.enterStandby(request);
      coordinator.mustBeOpen();
      if (path === '/standby') mustReplicate(coordinator).mustHaveRoom();
      gone = door.connect(entered.grant);
    } catch (error) {
      return decline(error);
    }
    places?.vouch(socket);
    socket.once('close', gone);
    const { grant, stillIn } = entered;
    if (path === '/standby') {
      const connection = upgrade();
      if (!connection) return;
      standbys.set(connection, stillIn);
      socket.once('close', () => standbys.delete(connection));
      const events = mustReplicate(coordinator).accept(connection, addressOf(request));
      connection.start(events);
      return;
    }
    const budget = door.budgetOf(grant);
    const begin = () => {
      if (socket.destroyed) return;
      const holder = door.isOpen ? null : grant.holder;
      const connection = upgrade();
      if (!connection) return;
      const connectedAt = new Date().toISOString();
      const { headers } = request;
      const session = new WorkerSession(
        connection,
        coordinator,
        connectedAt,
        holder,
        budget,
        headers,
      );
      sessions.set(session, stillIn);
      socket.once('close', () => {
        sessions.delete(session);
        if (session.charges.isAtFault) door.blame(grant);
      });
      try {
        coordinator.mustBeOpen();
        if (!stillIn()) throw unauthorized();
        coordinator.workers.opened(session);
      } catch (error) {
        session.fail(error);
      }
      connection.start(session.events);
    };
    if (budget.hasTime) begin();
    else {
      // As its messages would, a new connection of a token that is in debt waits for its turn.
      budget.await(begin);
      socket.once('close', () => budget.leave(begin));
    }
  };
}

/** Nothing of the socket is read meanwhile; one that is closed has nothing to hear. */
function hold(held: Set<Socket>, socket: Socket, ms: number, answer: () => void): void {
  held.add(socket);
  socket.pause();
  const timer = setTimeout(answer, ms);
  socket.once('close', () => {
    clearTimeout(timer);
    held.delete(socket);
  });
}

/** @throws DownpourError DP_USAGE. */
function mustReplicate({ replication }: Coordinator): Replication {
  if (replication) return replication;
  throw new DownpourError(
    'DP_USAGE',
    'a server with shards has no standby: when a shard is lost, its runs continue from their checkpoints',
  );
}
