import { resolve } from 'node:path';
import { errorCode, errorText } from '../../shared/errors.ts';
import type { Log } from '../../shared/log.ts';
import { httpAddresses, webSocketAddress } from '../../shared/rest-client.ts';
import { isLoopback } from '../../wire/local-socket.ts';
import { BundleCache, type BundleCacheOptions } from '../../worker/bundle-cache.ts';
import { experimentFolders } from '../../worker/experiment.ts';
import { runWorker } from '../../worker/main.ts';
import {
  DEFAULT_EXPERIMENTS,
  DEFAULT_SERVER,
  newestTokenOf,
  trustFor,
  untilInterrupted,
} from '../options.ts';
import { withLog } from '../output/log.ts';
import { keepAlive } from './alive.ts';
import { runGpuWorkers } from './gpus.ts';
import { accepts, engineOf, type WorkOptions } from './options.ts';
import type { WorkerFailure, WorkerNote } from './pool.ts';

/** `downpour work`: until Ctrl-C, or with --once until the run has ended. */
export function workCommand(options: WorkOptions): Promise<void> {
  const { gpus, aliveFile } = options;
  return withLog(options.log, async ({ log }) => {
    const alive = aliveFile ? keepAlive(aliveFile) : null;
    try {
      await (gpus === undefined ? work(options, log) : runGpuWorkers({ ...options, gpus }, log));
    } finally {
      alive?.end();
    }
  });
}

async function work(options: WorkOptions, log: Log): Promise<void> {
  const server = options.server ?? DEFAULT_SERVER;
  const tls = trustFor(server, options, log);
  // A file's token may be another one when the connection has to be made again.
  const token = newestTokenOf(options, log);
  const bundles = accepts(options)
    ? await acceptExperiments(server, {
        ...(token === undefined ? {} : { token }),
        ...(tls ? { tls } : {}),
        log,
      })
    : null;
  const interruption = untilInterrupted(() =>
    log('returning unfinished minibatches; press Ctrl-C again to stop at once'),
  );
  // Started by `downpour train`: when that ends, in whatever way, there is nothing left to work for.
  const orphaned = new AbortController();
  process.once('disconnect', () => orphaned.abort());
  try {
    await runWorker({
      server: webSocketAddress(server),
      run: options.run ?? null,
      ...(options.name === undefined ? {} : { name: options.name }),
      ...(token === undefined ? {} : { token }),
      ...(tls ? { tls } : {}),
      ...(options.engine === undefined ? {} : { engine: engineOf(options.engine) }),
      ...(options.threads === undefined ? {} : { threads: options.threads }),
      folders: experimentFolders(options.experiments ?? DEFAULT_EXPERIMENTS),
      bundles,
      dataFolder: resolve(options.data ?? 'data'),
      once: options.once === true,
      localSocket: options.localSocket,
      signal: AbortSignal.any([interruption.signal, orphaned.signal]),
      log,
      onEngine(line) {
        const note: WorkerNote = { note: line };
        if (process.connected) process.send?.(note, () => {});
      },
    });
  } catch (error) {
    if (process.connected) {
      const failure: WorkerFailure = { code: errorCode(error), message: errorText(error) };
      // Waits until it is sent: the process ends right after.
      await new Promise<void>((done) => process.send?.(failure, () => done()));
    }
    throw error;
  } finally {
    interruption.dispose();
  }
}

async function acceptExperiments(
  server: string,
  { log, ...options }: BundleCacheOptions & { readonly log: Log },
): Promise<BundleCache> {
  const cache = await BundleCache.open(options);
  log(
    `experiments are accepted: every operator of ${server} can run code here, with the rights of this user`,
    { level: 'warn' },
  );
  const inClear = httpAddresses(server).filter((address) => {
    const { protocol, hostname } = new URL(address);
    return protocol === 'http:' && !isLoopback(hostname);
  });
  if (inClear.length > 0) {
    log(
      `${inClear.join(', ')} is reached in the clear: so does anybody on the way there; a server with --tls-cert is reached by wss://`,
      { level: 'warn' },
    );
  }
  return cache;
}
