import { resolve } from 'node:path';
import { serve } from '../server/main.ts';
import { redisFilesOf } from '../server/redis-address.ts';
import { runShard } from '../server/shard-main.ts';
import type { RedisFileOptions, ServeOptions, ShardOptions } from './commands.ts';
import { print, serverTlsOf, serverTokensOf, tell, untilInterrupted } from './options.ts';

/** `downpour serve`: until Ctrl-C or SIGTERM, then a checkpoint of each run and the end. */
export function serveCommand(options: ServeOptions): Promise<void> {
  return untilStopped(
    options,
    { listens: 'Downpour listens on', stopping: 'stopping with a checkpoint of each run' },
    (signal) =>
      serve({
        ...listenerOf(options, signal),
        shards: options.shards,
        limits: limitsOf(options),
        shardsFrom: options.shardsElsewhere ? 'store' : 'threads',
        ...(options.pushLog === undefined ? {} : { pushLog: resolve(options.pushLog) }),
        ...(options.tensorboard === undefined ? {} : { tensorboard: resolve(options.tensorboard) }),
      }),
  );
}

/** `downpour shard`: until Ctrl-C or SIGTERM. */
export function shardCommand(options: ShardOptions): Promise<void> {
  const { advertise } = options;
  return untilStopped(
    options,
    { listens: 'a shard of Downpour listens on', stopping: 'stopping' },
    (signal) =>
      runShard({
        ...listenerOf(options, signal),
        ...(advertise === undefined ? {} : { advertise }),
      }),
  );
}

/** What both listen with. */
function listenerOf(options: ServeOptions | ShardOptions, signal: AbortSignal) {
  const { host, port, redisUrl: redis, insecure, localSocket } = options;
  const tls = serverTlsOf(options);
  return {
    ...{ host, port, state: resolve(options.state), redisFiles: filesOf(options) },
    ...(redis === undefined ? {} : { redis }),
    ...serverTokensOf(options),
    ...(tls ? { tls } : {}),
    ...{ insecure: insecure === true, localSocket, log: tell, signal },
  };
}

async function untilStopped(
  { json }: { readonly json?: boolean },
  says: { readonly listens: string; readonly stopping: string },
  start: (signal: AbortSignal) => Promise<{ readonly url: string; readonly closed: Promise<void> }>,
): Promise<void> {
  const interruption = untilInterrupted(() => tell(`${says.stopping}; once more to stop at once`));
  const { url, closed } = await start(interruption.signal);
  if (json) print(JSON.stringify({ event: 'listening', url }));
  else print(`${says.listens} ${url}`);
  await closed;
  interruption.dispose();
}

const filesOf = ({ redisCa: ca, redisCert: cert, redisKey: key }: RedisFileOptions) =>
  redisFilesOf({ ca, cert, key });

const limitsOf = ({ requestsMax, connectionsMax, runsMax }: ServeOptions) => ({
  requestsPerSecondMax: requestsMax,
  connectionsPerTokenMax: connectionsMax,
  runCountMax: runsMax,
});
