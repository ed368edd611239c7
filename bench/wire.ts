/**
 * GB/s of payload between two processes of this machine, over the wire layer and beside it:
 *
 *     npx tsx bench/wire.ts             # all rows, medians of 3
 *     npx tsx bench/wire.ts --quick     # a few, once
 *
 * The ceiling is plain `net` sockets that read into place and know all sizes beforehand. Everything runs
 * by turns in one run, and one process alone is busy at a time at each end: trust the ratios.
 */

import { type ChildProcess, fork } from 'node:child_process';
import { once } from 'node:events';
import { createServer, type IncomingMessage } from 'node:http';
import { type AddressInfo, connect, createServer as createNetServer, type Socket } from 'node:net';
import { join } from 'node:path';
import { performance } from 'node:perf_hooks';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { type ClientOptions, type RawData, WebSocket, WebSocketServer } from 'ws';
import { encodeHeader } from '../shared/codec.ts';
import { medianOf } from '../shared/quantile.ts';
import type { ConnectionEvents } from '../wire/connection.ts';
import { FRAME_HEAD_MAX, OPCODES, writeFrameHead } from '../wire/frames.ts';
import { accept, dial } from '../wire/handshake.ts';
import { openInto, readInto } from '../wire/node-sockets.ts';
import { counting, page } from './limits.ts';
import { keep, temporaryFolder } from './processes.ts';

/**
 * `net`: plain sockets; `copied`: our connection without undocumented parts of Node; `ws`: the package as
 * it comes; `ws-zero`: with masks of zeros. `pieces` and `ws-pieces`: to our connection and to the package, in fragments
 * with masks as browsers send them, which are made beforehand.
 */
const TRANSPORTS = [
  'net',
  'tcp',
  'unix',
  'copied',
  'pieces',
  'ws-zero',
  'ws',
  'ws-pieces',
] as const;
export type Transport = (typeof TRANSPORTS)[number];
export type Mode = 'push' | 'pull' | 'push+pull';

export interface WireRow {
  readonly transport: Transport;
  readonly mode: Mode;
  /** The bytes of one payload. */
  readonly bytes: number;
  /** Requests that are under way at once. */
  readonly inFlight: number;
  /** Medians over the repetitions. Payload of both ways together. */
  readonly gigabytesPerSecond: number;
  readonly roundTripsPerSecond: number;
  readonly serverCpuSecondsPerGigabyte: number;
}

export interface WireOptions {
  readonly sizes?: readonly number[];
  readonly modes?: readonly Mode[];
  readonly transports?: readonly Transport[];
  readonly repetitions?: number;
  /** The time of one measurement, about. */
  readonly seconds?: number;
  readonly onRow?: (row: WireRow) => void;
}

const SIZES = [1_000, 64_000, 1_000_000, 16_000_000, 100_000_000];
/** A small message that asks for a large one. */
const ASK_BYTES = 8;

/** All rows; sizes and modes outside, transports by turns within. */
export async function benchWire(options: WireOptions = {}): Promise<WireRow[]> {
  const { sizes = SIZES, modes = ['push', 'pull', 'push+pull'], repetitions = 3 } = options;
  const { transports = TRANSPORTS, seconds = 0.5, onRow } = options;
  const server = await startServer();
  const rows: WireRow[] = [];
  try {
    for (const bytes of sizes) {
      for (const mode of modes) {
        const up = mode === 'pull' ? ASK_BYTES : bytes;
        const down = mode === 'push' ? ASK_BYTES : bytes;
        for (const inFlight of bytes <= 1_000 ? [1, 16] : [1]) {
          const work = { up, down, inFlight };
          const seen = new Map<Transport, Measured[]>(transports.map((name) => [name, []]));
          for (let i = 0; i < repetitions; i++) {
            for (const name of transports) {
              seen.get(name)!.push(await measure(server, name, work, seconds));
            }
          }
          for (const [transport, all] of seen) {
            const gigabytes = (mode === 'push+pull' ? 2 * bytes : bytes) / 1e9;
            const perSecond = medianOf(all.map((one) => one.roundTripsPerSecond));
            const cpu = medianOf(all.map((one) => one.cpuSecondsPerRoundTrip));
            const row = {
              ...{ transport, mode, bytes, inFlight, roundTripsPerSecond: perSecond },
              gigabytesPerSecond: perSecond * gigabytes,
              serverCpuSecondsPerGigabyte: cpu / gigabytes,
            };
            rows.push(row);
            onRow?.(row);
          }
        }
      }
    }
  } finally {
    server.process.kill();
  }
  return rows;
}

interface Work {
  /** Bytes of a request and of its answer. */
  readonly up: number;
  readonly down: number;
  readonly inFlight: number;
}
interface Measured {
  readonly roundTripsPerSecond: number;
  readonly cpuSecondsPerRoundTrip: number;
}
interface Link {
  ask(): void;
  close(): void;
}
type Open = (address: Address, work: Work, answered: () => void) => Promise<Link>;

async function measure(
  server: Server,
  transport: Transport,
  work: Work,
  seconds: number,
): Promise<Measured> {
  await server.tell(work);
  let finish = () => {};
  let left = 0;
  let open = 0;
  const link = await LINKS[transport](server.address, work, () => {
    open--;
    if (left > 0) {
      left--;
      open++;
      link.ask();
    } else if (open === 0) finish();
  });
  const run = (count: number) =>
    new Promise<void>((resolve) => {
      finish = resolve;
      open = Math.min(count, work.inFlight);
      left = count - open;
      for (let i = open; i > 0; i--) link.ask();
    });
  // Memory, compiled code and the sockets' buffers settle; then it is known how many fit. Where one
  // alone takes longer than all of it should, its neighbours in size say enough about its spread.
  await run(2);
  const start = performance.now();
  await run(work.inFlight);
  const each = (performance.now() - start) / 1000 / work.inFlight;
  const count = Math.max(each > seconds ? 1 : 3, Math.ceil(seconds / each));
  const cpuBefore = await server.cpuSeconds();
  const from = performance.now();
  await run(count);
  const took = (performance.now() - from) / 1000;
  const cpu = (await server.cpuSeconds()) - cpuBefore;
  link.close();
  return { roundTripsPerSecond: count / took, cpuSecondsPerRoundTrip: cpu / count };
}

// The client's side.

const LINKS: Record<Transport, Open> = {
  async net({ net }, { up, down }, answered) {
    const request = page(up);
    const sink = counting(down, answered);
    const socket = openInto({ port: net, host: '127.0.0.1' }, sink);
    socket.setNoDelay(true);
    await once(socket, 'connect');
    return { ask: () => socket.write(request), close: () => socket.destroy() };
  },
  tcp: (address, work, answered) => openWire(address, work, answered, 'straight', false),
  unix: (address, work, answered) => openWire(address, work, answered, 'straight', true),
  copied: (address, work, answered) => openWire(address, work, answered, 'copied', false),
  'ws-zero': (address, work, answered) =>
    openWs(address, work, answered, { generateMask: (mask) => mask.fill(0) }),
  ws: (address, work, answered) => openWs(address, work, answered, {}),
  pieces: ({ wire }, work, answered) =>
    openPieces(wire, encodeHeader({ type: 'push' }), work, answered),
  'ws-pieces': ({ ws }, work, answered) => openPieces(ws, new Uint8Array(), work, answered),
};

async function openWs(
  { ws }: Address,
  { up, down }: Work,
  answered: () => void,
  options: ClientOptions,
): Promise<Link> {
  const request = page(up);
  const target = page(down);
  const socket = new WebSocket(`ws://127.0.0.1:${ws}`, options);
  await once(socket, 'open');
  socket.on('message', (data: RawData) => {
    target.set(data as Buffer);
    answered();
  });
  return { ask: () => socket.send(request), close: () => socket.terminate() };
}

/** Chromium's fragments have so many. */
const PIECE_BYTES = 131_000;
const MASK = Uint8Array.of(0x9e, 0x37, 0x79, 0xb9);

/** As a page does: all that is sent is in fragments, under masks. */
async function openPieces(
  port: number,
  header: Uint8Array,
  { up, down }: Work,
  answered: () => void,
): Promise<Link> {
  const message = Buffer.concat([header, page(up)]);
  const pieces: Uint8Array[] = [];
  for (let at = 0; at < message.length; at += PIECE_BYTES) {
    const piece = message.subarray(at, at + PIECE_BYTES);
    for (let i = 0; i < piece.length; i++) piece[i]! ^= MASK[i % MASK.length]!;
    const head = new Uint8Array(FRAME_HEAD_MAX);
    const opcode = at === 0 ? OPCODES.binary : OPCODES.continuation;
    const start = writeFrameHead(head, FRAME_HEAD_MAX, {
      ...{ opcode, length: piece.length, masked: true },
    });
    if (at + PIECE_BYTES < message.length) head[start]! &= 0x7f;
    head.set(MASK, FRAME_HEAD_MAX - MASK.length);
    pieces.push(head.subarray(start), piece);
  }
  const request = Buffer.concat(pieces);
  const target = page(down);
  const raw = connect(port, '127.0.0.1');
  const socket = new WebSocket(`ws://127.0.0.1:${port}`, { createConnection: () => raw });
  await once(socket, 'open');
  socket.on('message', (data: Buffer) => {
    target.set(data.subarray(data.length - down));
    answered();
  });
  return { ask: () => raw.write(request), close: () => socket.terminate() };
}

function openWire(
  address: Address,
  { up, down }: Work,
  answered: () => void,
  way: 'straight' | 'copied',
  unix: boolean,
): Promise<Link> {
  const request = page(up);
  const target = page(down);
  return new Promise((resolve, reject) => {
    dial({
      url: `ws://127.0.0.1:${way === 'copied' ? address.copied : address.wire}`,
      path: unix ? address.unix : null,
      handshakeMs: 5_000,
      way,
      opened(connection) {
        resolve({
          ask: () => connection.send({ type: 'push' }, [request]),
          close: () => connection.terminate(),
        });
        return { ...QUIET, land: () => ({ bytes: target, release() {} }), message: answered };
      },
      failed: reject,
    });
  });
}

const QUIET: ConnectionEvents = {
  land: () => null,
  message() {},
  malformed(error) {
    throw error;
  },
  broken(error) {
    throw error;
  },
  alive() {},
  closed() {},
};

// The server's side: a process of its own, told by messages what it answers.

interface Address {
  readonly net: number;
  readonly wire: number;
  readonly copied: number;
  readonly unix: string;
  readonly ws: number;
}
interface Server {
  readonly process: ChildProcess;
  readonly address: Address;
  tell(work: Work): Promise<void>;
  cpuSeconds(): Promise<number>;
}

async function startServer(): Promise<Server> {
  const folder = temporaryFolder();
  const child = keep(fork(fileURLToPath(import.meta.url), ['--server', folder.path]));
  child.once('exit', () => folder.remove());
  const ask = async (message: object) => {
    child.send(message);
    return (await once(child, 'message'))[0] as { cpuSeconds: number };
  };
  const [address] = (await once(child, 'message')) as [Address];
  return {
    process: child,
    address,
    tell: async (work) => void (await ask(work)),
    cpuSeconds: async () => (await ask({})).cpuSeconds,
  };
}

async function serve(folder: string): Promise<void> {
  let work: Work = { up: ASK_BYTES, down: ASK_BYTES, inFlight: 1 };
  let answer = page(ASK_BYTES);
  let target = page(ASK_BYTES);
  const land = { bytes: target, release() {} };
  process.on('message', (message: Partial<Work>) => {
    if (message.up !== undefined) {
      work = message as Work;
      answer = page(work.down);
      target = page(work.up);
      land.bytes = target;
    }
    const { user, system } = process.cpuUsage();
    process.send!({ cpuSeconds: (user + system) / 1e6 });
  });

  const plain = createNetServer({ pauseOnConnect: true }, (socket) => {
    socket.setNoDelay(true);
    socket.on('error', () => {});
    readInto(
      socket,
      counting(work.up, () => socket.write(answer)),
    );
    socket.resume();
  });
  const wire = (way: 'straight' | 'copied') => {
    const server = createServer();
    server.on('upgrade', (request: IncomingMessage, socket: Socket, head: Buffer) => {
      const connection = accept(request, socket, head, { way })!;
      const events: ConnectionEvents = {
        ...QUIET,
        land: () => land,
        message: () => connection.send({ type: 'work' }, [answer]),
      };
      connection.start(events);
    });
    return server;
  };
  const straight = wire('straight');
  const beside = wire('straight');
  const copied = wire('copied');
  const unix = join(folder, 'wire.sock');
  const ws = new WebSocketServer({ port: 0, host: '127.0.0.1' });
  ws.on('connection', (socket) => {
    socket.on('message', (data: RawData) => {
      target.set(data as Buffer);
      socket.send(answer);
    });
  });
  for (const server of [plain, straight, copied]) {
    server.listen(0, '127.0.0.1');
    await once(server, 'listening');
  }
  beside.listen(unix);
  await once(beside, 'listening');
  const port = (server: { address(): unknown }) => (server.address() as AddressInfo).port;
  process.send!({
    ...{ net: port(plain), wire: port(straight), copied: port(copied), unix, ws: port(ws) },
  } satisfies Address);
  process.once('disconnect', () => process.exit());
}

const format = (row: WireRow) =>
  [
    row.transport.padEnd(9),
    row.mode.padEnd(10),
    `${row.bytes / 1000} KB`.padStart(11),
    `×${row.inFlight}`.padStart(4),
    `${row.gigabytesPerSecond.toFixed(2)} GB/s`.padStart(11),
    `${Math.round(row.roundTripsPerSecond)}/s`.padStart(9),
    `${row.serverCpuSecondsPerGigabyte.toFixed(2)} server CPU s/GB`.padStart(22),
  ].join(' ');

if (import.meta.url === pathToFileURL(process.argv[1] ?? '').href) {
  const [option, folder] = process.argv.slice(2);
  if (option === '--server') await serve(folder!);
  else {
    const quick = option === '--quick';
    await benchWire({
      ...(quick ? { repetitions: 1, seconds: 0.2, modes: ['push+pull'] } : {}),
      onRow: (row) => process.stdout.write(`${format(row)}\n`),
    });
    process.exit();
  }
}
