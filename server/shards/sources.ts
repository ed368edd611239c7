import { once } from 'node:events';
import { setTimeout as delay } from 'node:timers/promises';
import { Worker } from 'node:worker_threads';
import { DownpourError } from '../../shared/errors.ts';
import type { ShardAddress } from '../../shared/message-fields.ts';
import { ownEntry } from '../../shared/own-files.ts';
import type { TokenSources } from '../access/access.ts';
import type { TlsFiles } from '../access/tls.ts';
import type { StateStore } from '../store/state-store.ts';

/** Where the shards of a server come from: threads of its own, or processes that say in the state store where they are. */
export interface ShardSource {
  /**
   * The other shards, in order. Called again after one was lost.
   * @param suspects addresses of shards that have gone or were silent: others are taken first.
   * @throws DownpourError.
   */
  find(count: number, suspects: ReadonlySet<string>): Promise<readonly FoundShard[]>;
  close(): Promise<void>;
}

export interface FoundShard {
  /** For workers. */
  readonly address: ShardAddress;
  /** For the coordinator: `ws://host:port`. */
  readonly url: string;
}

const THREAD = ownEntry('shard-thread', new URL('thread.js', import.meta.url));
const FIND_MS = 500;
/** A thread that is to end and does not is ended. */
const THREAD_END_MS = 5_000;

/** Shards in threads of this process, each with a port of its own. */
export function threadSource(options: {
  readonly host: string;
  readonly tokens: TokenSources;
  readonly tls: TlsFiles | null;
  readonly localSocket: boolean;
  /** Ports of this process, all shards together. */
  readonly ports: number;
  /** Memory of each shard for connections. */
  readonly memoryBytesMax: number;
  readonly log: (line: string) => void;
}): ShardSource {
  const { host, tokens, tls, localSocket, ports, memoryBytesMax, log } = options;
  const threads: ({ worker: Worker; port: number } | null)[] = [];
  const start = (index: number) =>
    new Promise<void>((resolve, reject) => {
      const worker = new Worker(THREAD, {
        workerData: { host, tokens, tls, localSocket, ports, memoryBytesMax },
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
    async find(count, suspects) {
      for (let index = 0; index < count - 1; index++) {
        const thread = threads[index];
        // One that is silent hangs in what it does.
        if (thread && suspects.has(urlOf(own, thread.port))) await thread.worker.terminate();
        if (!threads[index]) await start(index);
      }
      return threads.slice(0, count - 1).map((thread) => ({
        address: { host: null, port: thread!.port },
        url: urlOf(own, thread!.port),
      }));
    },
    async close() {
      for (const thread of threads) thread?.worker.postMessage('close');
      await Promise.all(
        threads.map(async (thread) => {
          if (!thread) return;
          const { worker } = thread;
          const timer = setTimeout(() => void worker.terminate(), THREAD_END_MS);
          await once(worker, 'exit');
          clearTimeout(timer);
        }),
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
    async find(count, suspects) {
      for (let told = -1; ; ) {
        const shards = await store.listShards();
        if (shards.length >= count - 1) {
          const found = shards.map(({ host, port }) => ({
            address: { host, port },
            url: urlOf(host, port),
          }));
          const isSuspect = ({ url }: FoundShard) => suspects.has(url);
          const trusted = found.filter((shard) => !isSuspect(shard));
          return [...trusted, ...found.filter(isSuspect)].slice(0, count - 1);
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
