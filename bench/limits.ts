import { once } from 'node:events';
import { type AddressInfo, createServer, type NetConnectOpts } from 'node:net';
import { join } from 'node:path';
import { performance } from 'node:perf_hooks';
import { createKernels } from '../server/core/kernels.ts';
import { Memory, regionBytes } from '../shared/memory.ts';
import { medianOf } from '../shared/quantile.ts';
import { Memories } from '../wire/memories.ts';
import { openInto, readInto, type Sink } from '../wire/node-sockets.ts';
import { obey, startTold, type Told, temporaryFolder } from './processes.ts';
import type { Table } from './report.ts';

/**
 * What this machine allows at best, measured in the same run as what is compared with it: a copy in
 * memory, a triad of vector instructions, and plain sockets of Node that read into place and know all
 * sizes beforehand.
 */

export interface MemoryLimits {
  /** GB/s of bytes copied. In the caches, and beyond them. */
  readonly memcpyCached: number;
  readonly memcpy: number;
  /** GB/s of bytes read and written by a ← b + s c. */
  readonly triad: number;
}

const CACHED_BYTES = 200_000;
const LARGE_BYTES = 100_000_000;
const TRIAD_ELEMENTS = 25_000_000;

export function memoryLimits(repetitions = 7): MemoryLimits {
  return {
    memcpyCached: memcpySpeed(CACHED_BYTES, 100 * repetitions),
    memcpy: memcpySpeed(LARGE_BYTES, repetitions),
    triad: triadSpeed(repetitions),
  };
}

function memcpySpeed(bytes: number, repetitions: number): number {
  const from = page(bytes);
  const to = page(bytes);
  to.set(from);
  return bytes / medianMs(repetitions, () => to.set(from)) / 1e6;
}

function triadSpeed(repetitions: number): number {
  const n = TRIAD_ELEMENTS;
  const memory = new Memory(3 * regionBytes(4 * n));
  const { triad } = createKernels(memory.memory);
  const [a, b, c] = [memory.take(4 * n), memory.take(4 * n), memory.take(4 * n)];
  triad(a, b, c, n, 0.5);
  return (12 * n) / medianMs(repetitions, () => triad(a, b, c, n, 0.5)) / 1e6;
}

function medianMs(repetitions: number, run: () => void): number {
  return medianOf(
    Array.from({ length: repetitions }, () => {
      const start = performance.now();
      run();
      return performance.now() - start;
    }),
  );
}

export function limitsTable(limits: MemoryLimits): Table {
  return {
    name: 'limits',
    question: 'What does the memory of this machine allow?',
    columns: [
      { key: 'what', title: 'what' },
      { key: 'speed', title: 'GB/s', digits: 1 },
    ],
    rows: [
      { what: 'memcpy of 200 KB, bytes copied', speed: limits.memcpyCached },
      { what: 'memcpy of 100 MB, bytes copied', speed: limits.memcpy },
      { what: 'WASM SIMD triad, 3 × 100 MB, read and written', speed: limits.triad },
    ],
  };
}

// Sockets.

/** Bytes of a request and of its answer. */
export interface Exchange {
  readonly up: number;
  readonly down: number;
}

/** Begins round trips; `answered` is called at the end of each, in their order. */
export interface Link {
  ask(): void;
  close(): Promise<void>;
}

/** Memory that all is sent from and read into. */
export const page = (bytes: number) => new Memories(1).take(bytes).bytes.fill(1);

/** The other end of plain sockets: a process that reads `up` bytes into place and answers `down`. */
export interface PlainPeer {
  readonly addresses: Readonly<Record<'tcp' | 'unix', NetConnectOpts>>;
  /** What the connections that are opened from now on exchange. */
  set(exchange: Exchange): Promise<void>;
  close(): Promise<void>;
}

export async function startPlainPeer(): Promise<PlainPeer> {
  const folder = temporaryFolder();
  const told: Told = startTold(import.meta.filename, ['--peer', join(folder.path, 'plain.sock')]);
  const { port, path } = await told.ask<{ port: number; path: string }>({});
  return {
    addresses: { tcp: { port, host: '127.0.0.1' }, unix: { path } },
    set: (exchange) => told.ask(exchange),
    async close() {
      await told.close();
      folder.remove();
    },
  };
}

async function bePeer(path: string): Promise<void> {
  let work: Exchange = { up: 8, down: 8 };
  let answer = page(work.down);
  const listen = () =>
    createServer({ pauseOnConnect: true }, (socket) => {
      socket.setNoDelay(true);
      socket.on('error', () => {});
      const answered = answer;
      readInto(
        socket,
        counting(work.up, () => socket.write(answered)),
      );
      socket.resume();
    });
  const tcp = listen();
  tcp.listen(0, '127.0.0.1');
  const unix = listen();
  unix.listen(path);
  await Promise.all([once(tcp, 'listening'), once(unix, 'listening')]);
  const { port } = tcp.address() as AddressInfo;
  obey(async (message: Partial<Exchange>) => {
    if (message.up !== undefined) {
      work = message as Exchange;
      if (answer.length !== work.down) answer = page(work.down);
    }
    return { port, path };
  });
}

/** A request was answered. @param pulled the answer has brought a payload. */
export type Answered = (pulled: boolean) => void;

/** A worker's end of a plain socket. */
export async function openPlain(
  address: NetConnectOpts,
  { up, down }: Exchange,
  answered: Answered,
): Promise<Link> {
  const request = page(up);
  const socket = openInto(
    address,
    counting(down, () => answered(true)),
  );
  socket.on('error', () => {});
  await once(socket, 'connect');
  socket.setNoDelay(true);
  return {
    ask: () => socket.write(request),
    close: async () => void socket.destroy(),
  };
}

/** Reads messages of a known size into one place. */
export function counting(size: number, came: () => void): Sink {
  const memory = page(Math.max(size, 65_536));
  let got = 0;
  return {
    // Small ones come many at a time.
    next: () => (size < memory.length ? memory : memory.subarray(got)),
    filled(bytes) {
      for (got += bytes; got >= size; got -= size) came();
    },
    feed() {
      throw new Error('this Node does not read into place');
    },
  };
}

if (process.argv[2] === '--peer') await bePeer(process.argv[3]!);
