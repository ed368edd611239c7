import { randomBytes } from 'node:crypto';
import { lstatSync, mkdirSync, readdirSync, rmSync, unlinkSync } from 'node:fs';
import { createServer, get, type Server } from 'node:http';
import { connect, isIP, type Socket } from 'node:net';
import { networkInterfaces, tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { errorText } from '../shared/errors.ts';

/**
 * The way between a server and workers on one machine: a unix socket beside the TCP port, faster for
 * large payloads. It lies in a folder that only its user can enter, and its name is new with each start, so
 * that whoever finds it under the name that the server tells reaches that server and no other.
 */

/** Length of the path in a socket's address, without its end: 104 bytes on macOS, 108 on Linux. */
const PATH_BYTES_MAX = process.platform === 'linux' ? 107 : 103;
const HEALTH_MS = 1_000;
const HEALTH_BYTES_MAX = 10_000;

/** False when the user wants none: `--no-local-socket` or DOWNPOUR_LOCAL_SOCKET=0. */
export function localSocketWanted(option: boolean | undefined): boolean {
  return option !== false && process.env.DOWNPOUR_LOCAL_SOCKET !== '0';
}

// The server's side.

export interface LocalListener {
  readonly path: string;
  close(): Promise<void>;
}

/**
 * Lets the server listen on a unix socket too.
 * @param temporary instead of the system's folder.
 * @returns the socket, or why there is none.
 */
export async function listenLocally(
  server: Server,
  temporary = tmpdir(),
): Promise<LocalListener | { readonly problem: string }> {
  const user = process.getuid?.();
  if (user === undefined) return { problem: `${process.platform} has no unix sockets` };
  const folder = join(temporary, `downpour-${user}`);
  const path = join(folder, `${process.pid}-${randomBytes(4).toString('hex')}.sock`);
  if (Buffer.byteLength(path) > PATH_BYTES_MAX) {
    return {
      problem: `${path} is longer than ${PATH_BYTES_MAX} bytes; set TMPDIR to a shorter path`,
    };
  }
  try {
    mkdirSync(folder, { mode: 0o700, recursive: true });
    if (!isPrivate(folder)) return { problem: `${folder} is open to other users` };
    await removeStale(folder);
    await new Promise<void>((resolve, reject) => {
      server.once('error', reject);
      server.listen(path, () => {
        server.off('error', reject);
        resolve();
      });
    });
  } catch (error) {
    return { problem: errorText(error) };
  }
  // Closing removes it; a process that ends without closing does so here.
  const remove = () => rmSync(path, { force: true });
  process.once('exit', remove);
  return {
    path,
    async close() {
      server.closeAllConnections();
      await new Promise<void>((resolve) => server.close(() => resolve()));
      process.off('exit', remove);
      remove();
    },
  };
}

/** What is allowed on the port is allowed here. */
const LIMITED = ['maxConnections', 'headersTimeout', 'requestTimeout', 'keepAliveTimeout'] as const;

/**
 * Lets a server that listens on TCP listen on a unix socket too, with all that it serves.
 * @returns the socket, or why there is none.
 */
export function listenBeside(
  server: Pick<Server, 'emit' | 'listenerCount' | (typeof LIMITED)[number]>,
): ReturnType<typeof listenLocally> {
  const beside = createServer((request, response) => server.emit('request', request, response));
  for (const limit of LIMITED) beside[limit] = server[limit];
  beside.on('upgrade', (...upgrade) => server.emit('upgrade', ...upgrade));
  // A listener takes over from Node, which else hangs up by itself.
  if (server.listenerCount('clientError') > 0) {
    beside.on('clientError', (...broken) => server.emit('clientError', ...broken));
  }
  return listenLocally(beside);
}

/** Sockets of servers that were killed: nobody listens on them. */
async function removeStale(folder: string): Promise<void> {
  const names = readdirSync(folder).filter((name) => name.endsWith('.sock'));
  await Promise.all(
    names.map(async (name) => {
      const path = join(folder, name);
      if (await refuses(path)) unlinkSync(path);
    }),
  );
}

function refuses(path: string): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect(path);
    socket.on('connect', () => resolve(false));
    socket.on('error', ({ code }: NodeJS.ErrnoException) => resolve(code === 'ECONNREFUSED'));
    socket.on('connect', () => socket.destroy());
  });
}

/** Whether the other end of a socket is on this machine: it alone is told where the local socket is. */
export function isFromHere({ remoteAddress, localAddress }: Socket): boolean {
  return remoteAddress === undefined || remoteAddress === localAddress || isLoopback(remoteAddress);
}

// The worker's side.

/**
 * Where the server at this address listens on this machine, as it says itself.
 * @param url `ws://…` @returns null when it is another machine, or has no such socket for this user.
 */
export async function findLocalSocket(url: string): Promise<string | null> {
  const { protocol, hostname, host, pathname } = new URL(url);
  if (protocol !== 'ws:' || !isOwnAddress(hostname)) return null;
  const path = await askForPath(`http://${host}${pathname.replace(/\/(ws)?$/, '')}/health`);
  if (path === null) return null;
  try {
    // A token goes out on it: nobody else may have put it there.
    return lstatSync(path).isSocket() && isPrivate(dirname(path)) ? path : null;
  } catch {
    return null;
  }
}

function askForPath(url: string): Promise<string | null> {
  return new Promise((resolve) => {
    const request = get(url, { agent: false, timeout: HEALTH_MS }, async (response) => {
      try {
        let text = '';
        for await (const chunk of response) {
          text += chunk;
          if (text.length > HEALTH_BYTES_MAX) break;
        }
        const { localSocket } = JSON.parse(text) as { localSocket?: unknown };
        resolve(typeof localSocket === 'string' ? localSocket : null);
      } catch {
        resolve(null);
      }
    });
    request.on('timeout', () => request.destroy());
    request.on('error', () => resolve(null));
    request.on('close', () => resolve(null));
  });
}

/** Owned by this user, and closed to all others. */
export function isPrivate(folder: string): boolean {
  const { uid, mode } = lstatSync(folder);
  return lstatSync(folder).isDirectory() && uid === process.getuid?.() && (mode & 0o077) === 0;
}

/** A loopback address, or one that this machine has. */
export function isOwnAddress(hostname: string): boolean {
  if (isLoopback(hostname)) return true;
  const host = hostname.replace(/^\[(.*)\]$/, '$1');
  return Object.values(networkInterfaces()).some((addresses) =>
    addresses?.some(({ address }) => address === host),
  );
}

/** Whether only programs on this machine reach a server that listens there. */
export function isLoopback(host: string): boolean {
  const address = host.replace(/^\[(.*)\]$/, '$1').replace(/^::ffff:/i, '');
  if (address === 'localhost' || address === '::1') return true;
  // A name may begin with 127 too.
  return isIP(address) === 4 && address.startsWith('127.');
}
