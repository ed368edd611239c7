import { createConnection, createServer, type NetConnectOpts, Socket } from 'node:net';

/**
 * Sockets that read into memory of our choice. For a socket that we open, Node has a documented
 * option (`onread`). For one that comes out of Node's HTTP server it has none, though the parts are
 * the same: this file alone uses them, after having looked whether they are there and having tried
 * them. Where they are not, chunks are handed over as they come and copied once.
 */

export interface Sink {
  /** Where the next bytes are to be read. Asked after each read, and kept while the socket is paused. */
  next(): Uint8Array;
  /** So many bytes were read into the beginning of what `next` gave last. */
  filled(bytes: number): void;
  /** Bytes in memory of their own, of a socket that cannot read into place. */
  feed(chunk: Uint8Array): void;
}

/** How payloads reach their place: `straight`, read into it, or `copied` from chunks. */
export type ReadWay = 'straight' | 'copied';

/** The parts of a Node socket that `onread` sets up: named here as in Node's lib/net.js. */
interface Internals {
  readonly buffer: symbol;
  readonly callback: symbol;
  readonly generate: symbol;
}
interface Handle {
  useUserBuffer?: (buffer: Uint8Array) => void;
}

function findInternals(): Internals | null {
  const symbols = Object.getOwnPropertySymbols(new Socket());
  const find = (name: string) => symbols.find(({ description }) => description === name);
  const buffer = find('kBuffer');
  const callback = find('kBufferCb');
  const generate = find('kBufferGen');
  return buffer && callback && generate ? { buffer, callback, generate } : null;
}

const internals = findInternals();
/** Why sockets of the HTTP server are not read straight into place; null: they are. */
let obstacle: string | null = internals ? null : `Node ${process.version} has no such parts`;

/** Gives all that a connected socket reads to the sink, from now on. @returns in which way. */
export function readInto(socket: Socket, sink: Sink, wanted: ReadWay = 'straight'): ReadWay {
  const straight = wanted === 'straight' && obstacle === null && !copiesOnly();
  if (straight && switchBuffer(socket, sink)) return 'straight';
  socket.on('data', (chunk: Buffer) => sink.feed(chunk));
  return 'copied';
}

function switchBuffer(socket: Socket, sink: Sink): boolean {
  const inside = socket as Socket & { _handle?: Handle | null } & Record<symbol, unknown>;
  const handle = inside._handle;
  // A TLS socket decrypts into memory of its own; some bytes may wait in the stream already.
  const plain = Object.getPrototypeOf(socket) === Socket.prototype;
  if (!plain || !internals || socket.readableLength > 0) return false;
  if (typeof handle?.useUserBuffer !== 'function') return false;
  const first = sink.next();
  inside[internals.buffer] = first;
  inside[internals.generate] = () => sink.next();
  inside[internals.callback] = (bytes: number) => {
    sink.filled(bytes);
    return true;
  };
  handle.useUserBuffer(first);
  return true;
}

/**
 * Has a socket of `readInto` read the next bytes into what the sink names now, not into what it named before.
 * @param sink absent: only says whether that can be done.
 * @returns false: on Windows a read may be under way already, into the memory that was named.
 */
export function readElsewhere(socket: Socket, sink?: Sink): boolean {
  const inside = socket as Socket & { _handle?: Handle | null } & Record<symbol, unknown>;
  const handle = inside._handle;
  if (process.platform === 'win32' || !internals || !handle?.useUserBuffer) return false;
  if (!sink) return true;
  const next = sink.next();
  inside[internals.buffer] = next;
  handle.useUserBuffer(next);
  return true;
}

/** Whether the user wants no reads into place at all. */
export const copiesOnly = (): boolean => process.env.DOWNPOUR_WIRE === 'copied';

/** Opens a socket that gives all it reads to the sink. */
export function openInto(options: NetConnectOpts, sink: Sink): Socket {
  return createConnection({
    ...options,
    onread: {
      buffer: () => sink.next(),
      callback: (bytes) => {
        sink.filled(bytes);
        return true;
      },
    },
  });
}

const TRIAL_MS = 2_000;
let tried: Promise<string | null> | null = null;

/**
 * Tries once whether sockets read into memory of our choice, on a pair of them.
 * @returns null, or why not: then `readInto` copies from here on, which is slower and right.
 */
export function tryStraight(): Promise<string | null> {
  if (copiesOnly()) return Promise.resolve('DOWNPOUR_WIRE=copied');
  tried ??= (async () => {
    if (obstacle === null && !(await readsTwice())) {
      obstacle = `a trial on Node ${process.version} failed`;
    }
    return obstacle;
  })();
  return tried;
}

/** Whether five bytes and five more arrive in two memories in turn. */
function readsTwice(): Promise<boolean> {
  return new Promise((resolve) => {
    const memory = new Uint8Array(10);
    let got = 0;
    const server = createServer({ pauseOnConnect: true });
    const sockets: Socket[] = [];
    const end = (good: boolean) => {
      clearTimeout(timer);
      for (const socket of sockets) socket.destroy();
      server.close();
      resolve(good);
    };
    const timer = setTimeout(end, TRIAL_MS, false);
    const sink: Sink = {
      next: () => memory.subarray(got, got < 5 ? 5 : 10),
      filled: (bytes) => {
        got += bytes;
        if (got === 10) end(memory.every((value, i) => value === i + 1));
      },
      feed: () => end(false),
    };
    server.on('error', () => end(false));
    server.on('connection', (socket) => {
      sockets.push(socket);
      socket.on('error', () => end(false));
      if (!switchBuffer(socket, sink)) end(false);
      else socket.resume();
    });
    server.listen(0, '127.0.0.1', () => {
      const { port } = server.address() as { port: number };
      const client = createConnection(port, '127.0.0.1');
      sockets.push(client);
      client.on('error', () => end(false));
      client.write(Uint8Array.of(1, 2, 3, 4, 5, 6, 7, 8, 9, 10));
    });
  });
}
