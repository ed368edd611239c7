import { setTimeout as delay } from 'node:timers/promises';
import type { ConnectionOptions } from 'node:tls';
import { Worker } from 'node:worker_threads';
import { bytesOf } from '../shared/codec.ts';
import { DownpourError, errorText } from '../shared/errors.ts';
import type { ShardAddress } from '../shared/protocol.ts';
import { VERSION } from '../shared/version.ts';
import type { Connection, Header } from '../wire/connection.ts';
import { dial } from '../wire/handshake.ts';
import { findLocalSocket } from '../wire/local-socket.ts';
import type { TokenSources } from './access.ts';
import type { RunShards, ShardCommand } from './core/shard.ts';
import type { StateStore } from './state-store.ts';
import type { TlsFiles } from './tls.ts';

/** The coordinator's connections to all shards but its own: commands go out, reports come in. */

export type ToShardControl =
  /** The first message: this coordinator has the shard from now on; what it held is forgotten. */
  | { readonly type: 'take'; readonly index: number; readonly count: number }
  | { readonly type: 'command'; readonly command: ShardCommand }
  /** The connection of a worker is lost. */
  | { readonly type: 'leave'; readonly session: string }
  /** Asks for a piece of what a `save` has kept. */
  | {
      readonly type: 'read';
      readonly request: number;
      readonly run: string;
      readonly id: number;
      readonly name: string;
      readonly start: number;
      readonly count: number;
    };

export type FromShardControl =
  | { readonly type: 'taken'; readonly version: string }
  | {
      readonly type: 'landed';
      readonly run: string;
      readonly session: string;
      readonly sequence: number;
      readonly squares: number;
      readonly problem: string | null;
    }
  | {
      readonly type: 'initialLanded';
      readonly run: string;
      readonly session: string;
      readonly grant: number;
      readonly finite: boolean;
    }
  | { readonly type: 'overflowed'; readonly run: string; readonly generation: number }
  /** The answer to a `read`, with its bytes. */
  | { readonly type: 'read'; readonly request: number; readonly found: boolean }
  /** A command could not be carried out: the connection closes. */
  | { readonly type: 'failed'; readonly code: string; readonly message: string };

export type ShardReport = Extract<
  FromShardControl,
  { type: 'landed' | 'initialLanded' | 'overflowed' }
>;

/** Where shards come from. */
export interface ShardSource {
  /** The other shards, in order. Called again after one was lost. @throws DownpourError. */
  find(count: number): Promise<readonly FoundShard[]>;
  close(): Promise<void>;
}

export interface FoundShard {
  /** For workers. */
  readonly address: ShardAddress;
  /** For the coordinator: `ws://host:port`. */
  readonly url: string;
}

export interface ShardPoolOptions {
  /** All of them, the coordinator's own among them: at least 2. */
  readonly count: number;
  readonly source: ShardSource;
  /** An operator's, as it is now. */
  readonly token: () => string | null;
  /** Null: in the clear. */
  readonly tls: () => ConnectionOptions | null;
  readonly log: (line: string) => void;
}

const HANDSHAKE_MS = 10_000;
const CLOSE_MS = 2_000;
const FIND_MS = 500;

interface Link {
  readonly connection: Connection;
  readonly found: FoundShard;
}

export class ShardPool implements RunShards {
  readonly count: number;
  readonly #options: ShardPoolOptions;
  #links: Link[] = [];
  #requests = 0;
  readonly #reads = new Map<
    number,
    { resolve(bytes: Uint8Array): void; reject(why: Error): void }
  >();
  #closing = false;
  /** Set: all is well. */
  #whole = false;
  /** What a shard reports. */
  report: (index: number, report: ShardReport) => void = () => {};
  /** A shard is gone, and with it a part of every run. Told once, until `open` is called again. */
  lost: (why: string) => void = () => {};

  constructor(options: ShardPoolOptions) {
    this.#options = options;
    this.count = options.count;
  }

  /** Where workers find the other shards. */
  get addresses(): ShardAddress[] {
    return this.#links.map(({ found }) => found.address);
  }

  /** All shards are connected. */
  get whole(): boolean {
    return this.#whole;
  }

  /** Connects to all shards. @throws DownpourError DP_SHARD_LOST or what the source throws. */
  async open(): Promise<void> {
    const { source, log } = this.#options;
    for (const { connection } of this.#links) connection.terminate();
    this.#links = [];
    const found = await source.find(this.count);
    const links = await Promise.all(found.map((shard, i) => this.#connect(i + 1, shard)));
    this.#links = links;
    this.#whole = true;
    log(`${this.count} shards: this server, ${found.map(({ url }) => url).join(', ')}`);
    const dead = links.find(({ connection }) => !connection.open);
    if (dead) this.#lose(`the shard at ${dead.found.url} has gone at once`);
  }

  async #connect(index: number, found: FoundShard): Promise<Link> {
    const token = this.#options.token();
    const tls = this.#options.tls();
    const url = tls ? found.url.replace(/^ws:/, 'wss:') : found.url;
    const path = await findLocalSocket(url);
    return new Promise((resolve, reject) => {
      const fail = (why: string) =>
        reject(new DownpourError('DP_SHARD_LOST', `shard ${index} at ${found.url}: ${why}`));
      dial({
        url: `${url}/control`,
        ...(tls ? { tls } : {}),
        path,
        handshakeMs: HANDSHAKE_MS,
        closeMs: CLOSE_MS,
        headers: token === null ? {} : { authorization: `Bearer ${token}` },
        opened: (connection) => {
          let why = '';
          connection.send({ type: 'take', index, count: this.count } satisfies ToShardControl);
          return {
            land: (_, bytes) =>
              bytes === null ? null : { bytes: new Uint8Array(bytes), release: () => {} },
            message: (header, payload) => {
              const message = header as unknown as FromShardControl;
              if (message.type === 'taken') {
                if (message.version === VERSION) resolve({ connection, found });
                else fail(`it is of version ${message.version}, this server of ${VERSION}`);
              } else if (message.type === 'failed') why = `${message.code} ${message.message}`;
              else this.#receive(index, header, payload);
            },
            malformed: (error) => {
              why = error.message;
              connection.terminate();
            },
            broken: (error) => {
              why = error.message;
            },
            alive: () => {},
            closed: (_, reason) => {
              fail(why || reason);
              if (this.#links[index - 1]?.connection !== connection) return;
              this.#lose(`shard ${index} at ${found.url} has gone (${why || reason})`);
            },
          };
        },
        failed: (error) => fail(errorText(error)),
      });
    });
  }

  #lose(why: string): void {
    if (this.#closing || !this.#whole) return;
    this.#whole = false;
    for (const { reject } of this.#reads.values()) {
      reject(new DownpourError('DP_SHARD_LOST', why));
    }
    this.#reads.clear();
    this.lost(why);
  }

  #receive(index: number, header: Header, payload: Uint8Array): void {
    const message = header as unknown as Exclude<FromShardControl, { type: 'taken' | 'failed' }>;
    if (message.type !== 'read') {
      this.report(index, message);
      return;
    }
    const read = this.#reads.get(message.request);
    this.#reads.delete(message.request);
    if (message.found) read?.resolve(payload);
    else read?.reject(new DownpourError('DP_SHARD_LOST', 'the shard has not kept this checkpoint'));
  }

  tell(parts: number, command: ShardCommand): void {
    for (let index = 1; index < parts; index++) this.tellOne(index, command);
  }

  /** @param values of a `write`: not changed until `drained`. */
  tellOne(index: number, command: ShardCommand, values?: Float32Array): void {
    this.#send(index, { type: 'command', command }, values);
  }

  #send(index: number, message: ToShardControl, values?: Float32Array): void {
    this.#links[index - 1]?.connection.send(message, values ? [bytesOf(values)] : []);
  }

  /** Resolves when little waits to be sent to a shard. */
  async drained(index: number): Promise<void> {
    const connection = this.#links[index - 1]?.connection;
    while (connection?.open && connection.bufferedBytes > 0) await delay(1);
    if (!connection?.open) throw new DownpourError('DP_SHARD_LOST', `shard ${index} has gone`);
  }

  /** A worker's connection is lost. */
  leave(session: string): void {
    for (let index = 1; index < this.count; index++) this.#send(index, { type: 'leave', session });
  }

  /** A piece of what a `save` has kept. @throws DownpourError DP_SHARD_LOST. */
  read(
    index: number,
    of: Omit<Extract<ToShardControl, { type: 'read' }>, 'type' | 'request'>,
  ): Promise<Uint8Array> {
    if (!this.#whole) {
      return Promise.reject(new DownpourError('DP_SHARD_LOST', `shard ${index} has gone`));
    }
    const request = ++this.#requests;
    return new Promise((resolve, reject) => {
      this.#reads.set(request, { resolve, reject });
      this.#send(index, { type: 'read', request, ...of });
    });
  }

  async close(): Promise<void> {
    this.#closing = true;
    for (const { connection } of this.#links) connection.close(1000);
    await this.#options.source.close();
  }
}

/** Shards in threads of this process, each with a port of its own. */
export function threadSource(options: {
  readonly host: string;
  readonly tokens: TokenSources;
  readonly tls: TlsFiles | null;
  readonly localSocket: boolean;
  /** Of this process, all shards together. */
  readonly ports: number;
  readonly log: (line: string) => void;
}): ShardSource {
  const { host, tokens, tls, localSocket, ports, log } = options;
  const threads: ({ worker: Worker; port: number } | null)[] = [];
  const start = (index: number) =>
    new Promise<void>((resolve, reject) => {
      const worker = new Worker(new URL('./shard-thread.js', import.meta.url), {
        workerData: { host, tokens, tls, localSocket, ports },
      });
      worker.on('message', (message: { port?: number; log?: string }) => {
        if (message.log !== undefined) log(`shard ${index + 1}: ${message.log}`);
        if (message.port === undefined) return;
        threads[index] = { worker, port: message.port };
        resolve();
      });
      worker.on('error', reject);
      worker.on('exit', () => {
        threads[index] = null;
        reject(new DownpourError('DP_SHARD_LOST', `the thread of shard ${index + 1} ended`));
      });
    });
  // Where it listens on all addresses, loopback is the one for us.
  const own = ['0.0.0.0', '::'].includes(host) ? '127.0.0.1' : host;
  return {
    async find(count) {
      for (let index = 0; index < count - 1; index++) if (!threads[index]) await start(index);
      return threads.slice(0, count - 1).map((thread) => ({
        address: { host: null, port: thread!.port },
        url: urlOf(own, thread!.port),
      }));
    },
    async close() {
      for (const thread of threads) thread?.worker.postMessage('close');
      await Promise.all(
        threads.map(
          (thread) =>
            thread && new Promise<void>((resolve) => thread.worker.once('exit', () => resolve())),
        ),
      );
    },
  };
}

/** Shards of other processes, as they have announced themselves in the state store. */
export function storeSource(
  store: StateStore,
  { signal, log }: { readonly signal: AbortSignal; readonly log: (line: string) => void },
): ShardSource {
  return {
    async find(count) {
      for (let told = -1; ; ) {
        const shards = await store.listShards();
        if (shards.length >= count - 1) {
          return shards.slice(0, count - 1).map(({ host, port }) => ({
            address: { host, port },
            url: urlOf(host, port),
          }));
        }
        if (shards.length !== told) {
          log(
            `waiting for shards: ${shards.length} of ${count - 1} are there; start more with downpour shard`,
          );
        }
        told = shards.length;
        await delay(FIND_MS, undefined, { signal });
      }
    },
    close: async () => {},
  };
}

const urlOf = (host: string, port: number) =>
  `ws://${host.includes(':') ? `[${host}]` : host}:${port}`;
