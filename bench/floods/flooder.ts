import { randomBytes } from 'node:crypto';
import { Agent, request } from 'node:http';
import type { Socket } from 'node:net';
import { setTimeout as wait } from 'node:timers/promises';
import { type RawData, WebSocket } from 'ws';
import { decodeFrame, encodeFrame } from '../../shared/codec.ts';
import type { ServerMessage } from '../../shared/protocol.ts';
import { EXPERIMENT } from '../load.ts';
import { obey, startTold, TOKENS, type Told } from '../processes.ts';

/**
 * A client that means no good, in a process of its own: it sends one kind of message, or asks one question, as often
 * as the server takes it, and ends when it is told to. It has a worker's or an observer's rights and no more.
 */

/** What one connection of a worker sends without end. */
export const MESSAGE_FLOODS = [
  'observed',
  'join',
  'evaluated',
  'leave',
  'unknown lease',
  'wrong size',
  'ping',
  'empty fragment',
  'malformed',
  'reconnect',
] as const;
export type MessageFlood = (typeof MESSAGE_FLOODS)[number];

export interface MessageFloodOptions {
  readonly flood: MessageFlood;
  readonly url: string;
  readonly run: string;
  readonly elements: number;
  readonly connections: number;
}

export interface ReadFloodOptions {
  /** Each reader asks for these in turn. */
  readonly paths: readonly string[];
  readonly url: string;
  readonly readers: number;
}

export interface Flooder {
  begin(flood: MessageFloodOptions | ReadFloodOptions): Promise<void>;
  /** @returns bytes that the server has taken, or answers that it has given. */
  end(): Promise<number>;
  close(): Promise<void>;
}

export function startFlooder(): Flooder {
  const told: Told = startTold(import.meta.filename, ['--flood']);
  return {
    begin: (flood) => told.ask({ begin: flood }),
    end: () => told.ask({ end: true }),
    close: () => told.close(),
  };
}

// Inside the process.

/** Written at once; a socket that has not taken it is waited for. */
const BLOCK_BYTES = 256 * 1024;
/** Between two connections of a flood that the server ends by itself. */
const REST_MS = 1;

let running = false;
let taken = 0;
let floods: Promise<void>[] = [];

/** A masked frame; the mask is 0, so that its bytes stay as they are. */
function frameOf(opcode: number, payload: Uint8Array): Buffer {
  const long = payload.length > 125;
  const head = Buffer.alloc(long ? 8 : 6);
  head[0] = opcode;
  head[1] = 0x80 | (long ? 126 : payload.length);
  if (long) head.writeUInt16BE(payload.length, 2);
  return Buffer.concat([head, payload]);
}

const BINARY = 0x82;
const BEGINNING = 0x02;
const CONTINUATION = 0x00;
const PING = 0x89;

/** What is sent again and again, and what before it. */
function framesOf({ flood, run, elements }: MessageFloodOptions): { first: Buffer; again: Buffer } {
  const message = (header: object, values?: Float32Array) =>
    frameOf(BINARY, encodeFrame(header, values));
  const push = { type: 'push', run, sequence: 2 ** 40, step: 0, generation: 1, loss: 1 };
  const pushed = { ...push, computeMs: 1, encoding: 'f32', lease: 2 ** 40 };
  const histogram = { low: -1, high: 1, counts: Array.from({ length: 64 }, (_, i) => i) };
  const tensor = {
    ...{ name: 'weights', weights: histogram, gradients: histogram, updates: histogram },
    ...{ gradientNorm: 1, updateRatio: 1, elements: 64, never: 0, rare: 0 },
  };
  const first =
    flood === 'empty fragment' ? frameOf(BEGINNING, Buffer.from('DP')) : Buffer.alloc(0);
  const again = {
    observed: () =>
      message({
        ...{ type: 'observed', run, step: 1, updateSteps: 1, samples: 1, costMs: 1 },
        ...{ tensors: Array.from({ length: 64 }, () => tensor), layers: [] },
      }),
    join: () => message(joinOf(run, elements)),
    evaluated: () =>
      message({
        ...{ type: 'evaluated', run, evaluation: 1, loss: 1, error: 1, examples: 1 },
        metrics: Object.fromEntries(Array.from({ length: 60 }, (_, i) => [`metric ${i}`, i])),
      }),
    leave: () => message({ type: 'leave', failure: null }),
    'unknown lease': () => message(pushed, new Float32Array(elements)),
    'wrong size': () => message(pushed, new Float32Array(1)),
    ping: () => frameOf(PING, Buffer.alloc(0)),
    'empty fragment': () => frameOf(CONTINUATION, Buffer.alloc(0)),
    malformed: () => message({ type: 'nonsense' }),
    reconnect: () => message({ type: 'leave', failure: null }),
  }[flood]();
  return { first, again };
}

function joinOf(run: string, elements: number) {
  return {
    ...{ type: 'join', run, experimentHash: EXPERIMENT.experimentHash },
    tensors: [{ name: 'weights', shape: [elements], role: 'trainable' }],
    data: {
      ...{ trainCount: 2 ** 31 - 1, validationCount: 1, testCount: 0 },
      ...{ fingerprint: '0'.repeat(64), source: 'simulated' },
    },
  };
}

/** One connection after another, since the server may end each; no more than `REST_MS` allows. */
async function floodMessages(options: MessageFloodOptions, index: number): Promise<void> {
  const { first, again } = framesOf(options);
  const copies = Math.max(1, Math.floor(BLOCK_BYTES / again.length));
  const block = Buffer.concat(Array.from({ length: copies }, () => again));
  while (running) {
    const name = `flood-${index}-${randomBytes(4).toString('hex')}`;
    const socket = await enter(options, name).catch(() => null);
    if (socket && options.flood !== 'reconnect') {
      if (first.length > 0) socket.write(first);
      await pour(socket, block);
    }
    socket?.destroy();
    await wait(REST_MS);
  }
}

/** Says hello and joins as any worker does. @returns the socket below. */
async function enter(options: MessageFloodOptions, worker: string): Promise<Socket> {
  const { url, run, elements } = options;
  const webSocket = new WebSocket(`${url.replace(/^http/, 'ws')}/ws`, {
    perMessageDeflate: false,
    headers: { authorization: `Bearer ${TOKENS.hostile}` },
  });
  try {
    await new Promise<void>((resolve, reject) => {
      webSocket.on('error', reject);
      webSocket.on('close', () => reject(new Error('the server has closed')));
      webSocket.on('open', () => {
        const hello = {
          ...{ type: 'hello', worker, incarnation: randomBytes(8).toString('hex'), run },
          ...{ experiments: { [EXPERIMENT.experiment]: EXPERIMENT.experimentHash } },
          ...{ engine: 'none', device: 'none' },
        };
        webSocket.send(encodeFrame(hello));
      });
      webSocket.on('message', (data: RawData) => {
        const { type } = decodeFrame(data as Buffer).header as ServerMessage;
        if (type === 'assign') webSocket.send(encodeFrame(joinOf(run, elements)));
        else if (type !== 'standby') resolve();
      });
    });
  } catch (error) {
    webSocket.terminate();
    throw error;
  }
  const { _socket: socket } = webSocket as unknown as { readonly _socket: Socket };
  socket.removeAllListeners('data');
  socket.on('data', () => {});
  socket.on('error', () => {});
  return socket;
}

async function pour(socket: Socket, block: Buffer): Promise<void> {
  const before = () => socket.bytesWritten - socket.writableLength;
  const from = before();
  while (running && !socket.destroyed && socket.writable) {
    if (socket.write(block)) continue;
    await Promise.race([
      new Promise<void>((resolve) => socket.once('drain', resolve)),
      new Promise<void>((resolve) => socket.once('close', () => resolve())),
      wait(100),
    ]);
    // Not more than it takes: what waits would be sent after the end.
    while (running && !socket.destroyed && socket.writableLength > BLOCK_BYTES) await wait(5);
  }
  taken += before() - from;
}

async function read({ url, paths }: ReadFloodOptions): Promise<void> {
  const agent = new Agent({ keepAlive: true, maxSockets: 1 });
  for (let i = 0; running; i++) {
    const answered = await ask(url + paths[i % paths.length]!, agent).catch(() => false);
    if (answered) taken++;
    else await wait(REST_MS);
  }
  agent.destroy();
}

/** @returns whether it was answered with what was asked for. */
function ask(url: string, agent: Agent): Promise<boolean> {
  return new Promise((resolve, reject) => {
    const asked = request(
      url,
      { agent, headers: { authorization: `Bearer ${TOKENS.observer}` } },
      (response) => {
        const isStream = response.headers['content-type'] === 'text/event-stream';
        response.on('data', () => {
          // The first event of the feed has all.
          if (isStream) asked.destroy();
        });
        response.on('close', () => resolve(response.statusCode === 200));
        response.on('error', () => resolve(isStream));
      },
    );
    asked.on('error', reject);
    asked.end();
  });
}

if (process.argv[2] === '--flood') {
  obey(async (message: { begin: MessageFloodOptions | ReadFloodOptions } | { end: true }) => {
    if ('end' in message) {
      running = false;
      await Promise.all(floods);
      floods = [];
      return taken;
    }
    const { begin } = message;
    [running, taken] = [true, 0];
    floods =
      'flood' in begin
        ? Array.from({ length: begin.connections }, (_, i) => floodMessages(begin, i))
        : Array.from({ length: begin.readers }, () => read(begin));
    return null;
  });
}
