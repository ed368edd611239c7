import { resolve } from 'node:path';
import { serve } from '../server/main.ts';
import { redisFilesOf } from '../server/redis-address.ts';
import { runShard } from '../server/shard-main.ts';
import type { RedisFileOptions, ServeOptions, ShardOptions } from './commands.ts';
import { print, serverTlsOf, serverTokensOf, tell, untilInterrupted } from './options.ts';

/** `downpour serve`: until Ctrl-C or SIGTERM, then a checkpoint of each run and the end. */
export async function serveCommand(options: ServeOptions): Promise<void> {
  const tls = serverTlsOf(options);
  const interruption = untilInterrupted(() =>
    tell('stopping with a checkpoint of each run; once more to stop at once'),
  );
  const server = await serve({
    host: options.host,
    port: options.port,
    state: resolve(options.state),
    ...(options.redisUrl === undefined ? {} : { redis: options.redisUrl }),
    redisFiles: filesOf(options),
    ...serverTokensOf(options),
    ...(tls ? { tls } : {}),
    insecure: options.insecure === true,
    localSocket: options.localSocket,
    shards: options.shards,
    limits: limitsOf(options),
    shardsFrom: options.shardsElsewhere ? 'store' : 'threads',
    ...(options.pushLog === undefined ? {} : { pushLog: resolve(options.pushLog) }),
    log: tell,
    signal: interruption.signal,
  });
  if (options.json) print(JSON.stringify({ event: 'listening', url: server.url }));
  else print(`Downpour listens on ${server.url}`);
  await server.closed;
  interruption.dispose();
}

/** `downpour shard`: until Ctrl-C or SIGTERM. */
export async function shardCommand(options: ShardOptions): Promise<void> {
  const tls = serverTlsOf(options);
  const interruption = untilInterrupted(() => tell('stopping; once more to stop at once'));
  const { host, port, advertise, redisUrl } = options;
  const shard = await runShard({
    host,
    port,
    state: resolve(options.state),
    ...(advertise === undefined ? {} : { advertise }),
    ...(redisUrl === undefined ? {} : { redis: redisUrl }),
    redisFiles: filesOf(options),
    ...serverTokensOf(options),
    ...(tls ? { tls } : {}),
    insecure: options.insecure === true,
    localSocket: options.localSocket,
    log: tell,
    signal: interruption.signal,
  });
  if (options.json) print(JSON.stringify({ event: 'listening', url: shard.url }));
  else print(`a shard of Downpour listens on ${shard.url}`);
  await shard.closed;
  interruption.dispose();
}

const filesOf = ({ redisCa: ca, redisCert: cert, redisKey: key }: RedisFileOptions) =>
  redisFilesOf({ ca, cert, key });

const limitsOf = ({ requestsMax, connectionsMax, runsMax }: ServeOptions) => ({
  requestsPerSecondMax: requestsMax,
  connectionsPerTokenMax: connectionsMax,
  runCountMax: runsMax,
});
