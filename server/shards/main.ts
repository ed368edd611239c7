import { mkdir } from 'node:fs/promises';
import { hostname } from 'node:os';
import { errorText } from '../../shared/errors.ts';
import { localSocketWanted } from '../../wire/local-socket.ts';
import { Access, mustBeGuarded, type TokenSources, tokenSources } from '../access/access.ts';
import type { TlsFiles } from '../access/tls.ts';
import { warning } from '../fleet/coordinator.ts';
import { openFileStore } from '../store/file-store.ts';
import { openRedisStore } from '../store/redis.ts';
import type { RedisFiles } from '../store/redis-address.ts';
import { serveShard } from './server.ts';

export interface ShardOptions extends TokenSources {
  readonly host: string;
  /** 0: any free one. */
  readonly port: number;
  /** At which workers and the server reach it; default: `host`, or this machine's name. */
  readonly advertise?: string;
  /** Folder, or Redis, where the server looks for shards. */
  readonly state: string;
  readonly redis?: string;
  readonly redisFiles?: RedisFiles;
  /** Listen beyond this machine without a token. */
  readonly insecure?: boolean;
  /** Absent: in the clear. */
  readonly tls?: TlsFiles;
  readonly localSocket?: boolean;
  readonly log?: (line: string) => void;
  readonly signal: AbortSignal;
}

/** Announced for so long; a shard that died is forgotten after it. */
const ANNOUNCED_MS = 6_000;

/**
 * A shard of its own process: says where it is in the state store, and serves the coordinator that takes it.
 * @throws DownpourError DP_USAGE, DP_REDIS_UNAVAILABLE or DP_DISK.
 */
export async function runShard(
  options: ShardOptions,
): Promise<{ readonly url: string; readonly closed: Promise<void> }> {
  const { host, port, state, redis, redisFiles: files = {}, insecure, signal } = options;
  const log = options.log ?? (() => {});
  const tokens = tokenSources(options);
  const access = new Access(tokens);
  access.close();
  mustBeGuarded({ host, insecure, access });
  if (!redis) await mkdir(state, { recursive: true });
  const store = redis ? openRedisStore({ url: redis, files }) : openFileStore({ folder: state });
  try {
    const tls = options.tls ?? null;
    const localSocket = localSocketWanted(options.localSocket);
    const shard = await serveShard({ host, port, tokens, tls, localSocket, log, signal });
    const everywhere = ['0.0.0.0', '::'].includes(host);
    const advertised = options.advertise ?? (everywhere ? hostname() : host);
    const record = { id: nameOf(advertised, shard.port), host: advertised, port: shard.port };
    await store.announceShard(record.id, record, ANNOUNCED_MS);
    const timer = setInterval(() => {
      store
        .announceShard(record.id, record, ANNOUNCED_MS)
        .catch((error) => log(warning('not announced, trying again', error)));
    }, ANNOUNCED_MS / 3);
    const closed = shard.closed.then(async () => {
      clearInterval(timer);
      await store
        .announceShard(record.id, null, 0)
        .catch((error) => log(`not taken off the list of shards: ${errorText(error)}`));
      await store.close();
    });
    return { url: `${tls ? 'wss' : 'ws'}://${advertised}:${shard.port}`, closed };
  } catch (error) {
    await store.close();
    throw error;
  }
}

/** Fits `NAME_PATTERN`. */
const nameOf = (host: string, port: number) =>
  `${
    host
      .toLowerCase()
      .replace(/[^a-z0-9]+/g, '-')
      .replace(/^-+/, '')
      .slice(0, 50) || 'shard'
  }-${port}`;
