import { networkInterfaces } from 'node:os';
import { resolve } from 'node:path';
import { s3PlaceOf } from '../../server/checkpoints/elsewhere/s3.ts';
import { serve } from '../../server/main.ts';
import { redisFilesOf } from '../../server/store/redis-address.ts';
import type { Log } from '../../shared/log.ts';
import { type JoinPageBundle, makeJoinBundle } from '../bundles/join.ts';
import {
  type LogFormat,
  print,
  printJson,
  type ServerOptions,
  type ServerTokenOptions,
  serverTlsOf,
  serverTokensOf,
  untilInterrupted,
} from '../options.ts';
import { withLog } from '../output/log.ts';
import { addressesFor } from './addresses.ts';

/** Certificates for a Redis over TLS. */
export interface RedisFileOptions {
  readonly redisCa?: string;
  readonly redisCert?: string;
  readonly redisKey?: string;
}

export interface ServeCommandOptions extends ServerOptions, ServerTokenOptions, RedisFileOptions {
  readonly host: string;
  readonly port: number;
  readonly state: string;
  readonly redisUrl?: string;
  readonly insecure?: boolean;
  /** Commander's: true unless --no-local-socket was given. */
  readonly localSocket: boolean;
  readonly shards: number;
  readonly shardsElsewhere?: boolean;
  readonly pushLog?: string;
  readonly tensorboard?: string;
  /** Experiments, or folders of them, that browsers may train. */
  readonly join?: string[];
  readonly data?: string;
  readonly checkpointCopy?: string;
  readonly checkpointCopies: number;
  readonly copyGrace: number;
  readonly standbyOf?: string;
  readonly peer?: string;
  readonly replication: 'sync' | 'async';
  readonly lagMax: number;
  readonly advertise?: string;
  readonly leaseSeconds: number;
  readonly requestsMax: number;
  readonly connectionsMax: number;
  readonly handshakesMax: number;
  readonly runsMax: number;
  readonly log?: LogFormat;
  readonly json?: boolean;
}

export interface ShardCommandOptions
  extends Omit<
    ServeCommandOptions,
    | 'checkpointCopy'
    | 'checkpointCopies'
    | 'copyGrace'
    | 'shards'
    | 'shardsElsewhere'
    | 'pushLog'
    | 'tensorboard'
    | 'join'
    | 'data'
    | 'standbyOf'
    | 'peer'
    | 'replication'
    | 'lagMax'
    | 'leaseSeconds'
    | 'requestsMax'
    | 'connectionsMax'
    | 'handshakesMax'
    | 'runsMax'
  > {
  readonly advertise?: string;
}

/** `downpour serve`: until Ctrl-C or SIGTERM, then a checkpoint of each run and the end. */
export async function serveCommand(options: ServeCommandOptions): Promise<void> {
  const { join: joined, data = 'data' } = options;
  let join: JoinPageBundle | null = null;
  try {
    await untilStopped(
      options,
      { listens: saysOf(options), stopping: 'stopping with a checkpoint of each run' },
      async (signal, log) => {
        if (joined) join = await makeJoinBundle(joined, resolve(data), log);
        const server = await serve({
          ...listenerOf(options, signal, log),
          shards: options.shards,
          limits: limitsOf(options),
          shardsFrom: options.shardsElsewhere ? 'store' : 'threads',
          ...(options.pushLog === undefined ? {} : { pushLog: resolve(options.pushLog) }),
          ...(options.tensorboard === undefined
            ? {}
            : { tensorboard: resolve(options.tensorboard) }),
          ...(join ? { join: join.files } : {}),
          ownerTtlMs: 1_000 * options.leaseSeconds,
          ...standbyOf(options),
          ...copyTo(options),
        });
        if (join) log(`browsers train ${join.experiments.join(', ')} at ${server.url}/join`);
        return server;
      },
    );
  } finally {
    await (join as JoinPageBundle | null)?.dispose();
  }
}

const saysOf = ({ standbyOf: of }: ServeCommandOptions) =>
  of === undefined ? 'Downpour listens on' : `a standby of ${of} listens on`;

/** `downpour shard`: until Ctrl-C or SIGTERM. */
export function shardCommand(options: ShardCommandOptions): Promise<void> {
  const { advertise } = options;
  return untilStopped(
    options,
    { listens: 'a shard of Downpour listens on', stopping: 'stopping' },
    async (signal, log) =>
      (await import('../../server/shards/main.ts')).runShard({
        ...listenerOf(options, signal, log),
        ...(advertise === undefined ? {} : { advertise }),
      }),
  );
}

function standbyOf({ standbyOf: of, peer, replication, lagMax, advertise }: ServeCommandOptions) {
  if (of === undefined && peer === undefined) return {};
  const at = advertise === undefined ? {} : { advertise };
  const whose = {
    ...(of === undefined ? {} : { standbyOf: of }),
    ...(peer === undefined ? {} : { peer }),
  };
  return { ...whose, replication, lagMax, ...at };
}

function copyTo({ checkpointCopy, checkpointCopies, copyGrace }: ServeCommandOptions) {
  if (checkpointCopy === undefined) return {};
  const place = s3PlaceOf(checkpointCopy, process.env);
  return { copyTo: place, copiesKept: checkpointCopies, copyGraceMs: 1_000 * copyGrace };
}

/** What both listen with. */
function listenerOf(
  options: ServeCommandOptions | ShardCommandOptions,
  signal: AbortSignal,
  log: Log,
) {
  const { host, port, redisUrl: redis, insecure, localSocket } = options;
  const tls = serverTlsOf(options);
  return {
    ...{ host, port, state: resolve(options.state), redisFiles: filesOf(options) },
    ...(redis === undefined ? {} : { redis }),
    ...serverTokensOf(options),
    ...(tls ? { tls } : {}),
    ...{ insecure: insecure === true, localSocket, log, signal },
  };
}

function untilStopped(
  options: { readonly json?: boolean; readonly log?: LogFormat },
  says: { readonly listens: string; readonly stopping: string },
  start: (
    signal: AbortSignal,
    log: Log,
  ) => Promise<{ readonly url: string; readonly closed: Promise<void> }>,
): Promise<void> {
  return withLog(options.log, async ({ format, log }) => {
    const interruption = untilInterrupted(() => log(`${says.stopping}; once more to stop at once`));
    const { url, closed } = await start(interruption.signal, log);
    const others = addressesFor(url, networkInterfaces());
    const at = others.length > 0 ? `; other machines reach it at ${others.join(', ')}` : '';
    if (options.json) printJson({ event: 'listening', url }, 0);
    else if (format === 'json') log(`${says.listens} ${url}${at}`);
    else print(`${says.listens} ${url}${at}`);
    await closed;
    interruption.dispose();
  });
}

const filesOf = ({ redisCa: ca, redisCert: cert, redisKey: key }: RedisFileOptions) =>
  redisFilesOf({ ca, cert, key });

const limitsOf = ({
  requestsMax,
  connectionsMax,
  handshakesMax,
  runsMax,
}: ServeCommandOptions) => ({
  requestsPerSecondMax: requestsMax,
  connectionsPerTokenMax: connectionsMax,
  handshakesPerSecondMax: handshakesMax,
  runCountMax: runsMax,
});
