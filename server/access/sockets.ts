import { readFileSync } from 'node:fs';
import type { Server, Socket } from 'node:net';
import { LIMITS } from '../../shared/limits.ts';

/** Sockets of a port are for those who work: who has shown no token can't take the places of those who have one. */

/** A server's port, and the unix socket beside it. */
export const PORTS = 2;
/** Node needs some for itself: files, Redis, the clients of shards, threads. */
const DESCRIPTORS_KEPT = 512;
/** Share of a port's sockets for all who have shown no token, together: more than all workers, who may come in one moment. */
const SHARE_OF_STRANGERS = 3 / 8;

/** Sockets that one port may have at a time, and how many of them without a token. */
export interface SocketLimits {
  readonly socketCountMax: number;
  readonly strangerCountMax: number;
}

/**
 * What one port may take.
 * @param ports that this process opens. @param descriptors that it may have; null: unknown, and taken to be enough.
 */
export function socketLimits(ports = PORTS, descriptors = descriptorLimit()): SocketLimits {
  const room =
    descriptors === null ? Infinity : Math.floor((descriptors - DESCRIPTORS_KEPT) / ports);
  const socketCountMax = Math.max(16, Math.min(LIMITS.socketCountMax, room));
  return { socketCountMax, strangerCountMax: Math.floor(socketCountMax * SHARE_OF_STRANGERS) };
}

/** `ulimit -n` of this process, where the system tells it. */
function descriptorLimit(): number | null {
  try {
    const line = /^Max open files\s+(\d+)/m.exec(readFileSync('/proc/self/limits', 'utf8'));
    return line ? Number(line[1]) : null;
  } catch {
    return null;
  }
}

/** One socket of a port. */
interface SocketPlace {
  readonly socket: Socket;
  readonly address: string;
  /** Times that it was vouched for and not released. */
  vouches: number;
}

/**
 * The sockets of one port. A socket is a stranger's until `vouch` says that its client has shown a token, and again
 * when what it asked for is done. When strangers have all their places, the newest takes that of the oldest of the
 * address that has most, so a flood from one address displaces its own and a worker's handshake finds a place.
 */
export class SocketPlaces {
  readonly limits: SocketLimits;
  readonly #all = new Map<string, SocketPlace>();
  /** By address, oldest first. */
  readonly #strangers = new Map<string, Set<SocketPlace>>();
  #strangerCount = 0;
  readonly #displaced: () => void;

  /** @param displaced called for each socket that gave its place to a newer one. */
  constructor(server: Server, limits = socketLimits(), displaced: () => void = () => {}) {
    this.limits = limits;
    this.#displaced = displaced;
    server.maxConnections = limits.socketCountMax;
    // Before any encryption is agreed on.
    server.on('connection', (socket: Socket) => this.#arrived(socket));
  }

  get strangers(): number {
    return this.#strangerCount;
  }

  /**
   * Its client has shown a token, or none is needed.
   * @param socket encrypted or not. @returns what makes it a stranger's again, once.
   */
  vouch(socket: Pick<Socket, 'remoteAddress' | 'remotePort'>): () => void {
    const place = this.#all.get(keyOf(socket));
    // It came by another way than this port, or has closed.
    if (!place) return () => {};
    if (place.vouches++ === 0) this.#forget(place);
    let isReleased = false;
    return () => {
      if (isReleased) return;
      isReleased = true;
      if (--place.vouches === 0 && !place.socket.destroyed) this.#add(place);
    };
  }

  #arrived(socket: Socket): void {
    const key = keyOf(socket);
    // One whose offer of another protocol was passed over is announced once more.
    if (this.#all.get(key)?.socket === socket) return;
    const place = { socket, address: socket.remoteAddress ?? '', vouches: 0 };
    this.#all.set(key, place);
    socket.once('close', () => {
      this.#forget(place);
      if (this.#all.get(key) === place) this.#all.delete(key);
    });
    this.#add(place);
  }

  #add(place: SocketPlace): void {
    const own = this.#strangers.get(place.address) ?? new Set();
    this.#strangers.set(place.address, own.add(place));
    this.#strangerCount++;
    if (this.#strangerCount <= this.limits.strangerCountMax) return;
    let most = own;
    for (const each of this.#strangers.values()) if (each.size > most.size) most = each;
    const [oldest] = most;
    this.#forget(oldest!);
    oldest!.socket.destroy();
    this.#displaced();
  }

  #forget(place: SocketPlace): void {
    const own = this.#strangers.get(place.address);
    if (!own?.delete(place)) return;
    this.#strangerCount--;
    if (own.size === 0) this.#strangers.delete(place.address);
  }
}

/** The same for a socket and for its encryption. */
const keyOf = ({ remoteAddress, remotePort }: Pick<Socket, 'remoteAddress' | 'remotePort'>) =>
  `${remoteAddress}|${remotePort}`;
