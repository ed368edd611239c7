import { once } from 'node:events';
import { connect, createServer, type Socket } from 'node:net';
import { setTimeout as wait } from 'node:timers/promises';
import { type Random, random } from '../../shared/random.ts';

/** A network between processes of one machine that can be cut, refused and slowed down. */
export interface Proxy {
  readonly port: number;
  readonly connections: readonly Connected[];
  /** Connections that come find nobody. */
  refusing: boolean;
  /** Null: everything arrives at once. */
  weather: Weather | null;
  /** What becomes of the first bytes that the far end of a connection sends. Null: they pass as they are. */
  edit: ((head: string) => string) | null;
  /** Resets connections at once, wherever in a frame they are. Default: all. */
  cut(which?: (connection: Connected) => boolean): void;
  close(): Promise<void>;
}

export interface Weather {
  /** From one end to the other, ms. */
  readonly delayMs: number;
  /** Share of packets that TCP has to send again: what comes after them waits for `resendMs`. */
  readonly loss: number;
  readonly resendMs: number;
}

export interface Connected {
  readonly near: Socket;
  readonly far: Socket;
  /** It began as a worker's does, with a request for the WebSocket. */
  readonly worker: boolean;
}

/** Bytes that are on their way in one direction; more are not taken in. */
const UNDER_WAY_MAX = 4 * 2 ** 20;
const PACKET_BYTES = 1_448;

/** @param to the port of this machine that it leads to, which may change. */
export async function startProxy(to: number | (() => number), seed = 1): Promise<Proxy> {
  const draw = random(seed, 1);
  const pairs = new Set<Connected & { worker: boolean }>();
  const server = createServer((near) => {
    if (proxy.refusing) {
      near.destroy();
      return;
    }
    const far = connect(typeof to === 'number' ? to : to(), '127.0.0.1');
    const pair = { near, far, worker: false };
    pairs.add(pair);
    near.once('data', (chunk: Buffer) => {
      pair.worker = chunk.subarray(0, 7).toString() === 'GET /ws';
    });
    for (const [from, into] of [
      [near, far],
      [far, near],
    ] as const) {
      from.on('error', () => {});
      from.on('close', () => {
        into.destroy();
        pairs.delete(pair);
      });
      pass(
        from,
        into,
        () => proxy.weather,
        draw,
        () => (from === far ? proxy.edit : null),
      );
    }
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const address = server.address();
  if (address === null || typeof address === 'string') throw new Error('no port');
  const proxy: Proxy = {
    port: address.port,
    refusing: false,
    weather: null,
    edit: null,
    get connections() {
      return [...pairs];
    },
    cut(which = () => true) {
      for (const pair of pairs) if (which(pair)) pair.near.resetAndDestroy();
    },
    async close() {
      for (const { near } of pairs) near.destroy();
      server.close();
      await once(server, 'close');
    },
  };
  return proxy;
}

/** All that comes from one socket goes into the other, in its order, when the weather allows. */
function pass(
  from: Socket,
  into: Socket,
  weather: () => Weather | null,
  draw: Random,
  edit: () => Proxy['edit'],
): void {
  let hasPassed = false;
  let underWay = 0;
  /** When the last of what is under way arrives. */
  let arrival = 0;
  let delivered = Promise.resolve();
  const take = (whole: Buffer) => {
    const change = hasPassed ? null : edit();
    hasPassed = true;
    const chunk = change ? Buffer.from(change(whole.toString('latin1')), 'latin1') : whole;
    if (!into.write(chunk)) {
      from.pause();
      into.once('drain', () => from.resume());
    }
  };
  from.on('data', (chunk: Buffer) => {
    const now = weather();
    if (!now && underWay === 0) {
      take(chunk);
      return;
    }
    const packets = Math.ceil(chunk.length / PACKET_BYTES);
    const lost = now !== null && draw.uniform() > (1 - now.loss) ** packets;
    const travel = (now?.delayMs ?? 0) + (lost ? now!.resendMs : 0);
    arrival = Math.max(arrival, performance.now() + travel);
    const at = arrival;
    underWay += chunk.length;
    if (underWay > UNDER_WAY_MAX) from.pause();
    delivered = delivered.then(async () => {
      await wait(Math.max(0, at - performance.now()));
      underWay -= chunk.length;
      if (into.writable) take(chunk);
      if (from.isPaused() && underWay < UNDER_WAY_MAX && !into.writableNeedDrain) from.resume();
    });
  });
  from.on('end', () => {
    delivered = delivered.then(() => void into.end());
  });
}
