import type { DownpourError } from '../../shared/errors.ts';
import type { Log } from '../../shared/log.ts';
import { journaled } from './journal.ts';
import { parseRedisAddress, type RedisFiles } from './redis-address.ts';
import type { StateStore } from './state-store.ts';

/** Redis, whose records wait in the state folder while it is away. */
export async function openAway(options: {
  readonly state: string;
  readonly redisFiles?: RedisFiles;
  readonly redis: string;
  readonly log: Log;
  readonly onDamaged: (error: DownpourError) => void;
  readonly onForgotten: () => void;
}): Promise<StateStore> {
  const { redis: url, state: folder, redisFiles: files = {}, log } = options;
  const { onDamaged, onForgotten } = options;
  const { place } = parseRedisAddress(url, files);
  // Files need no client of Redis, which takes a tenth of a server's start.
  const { openRedisStore } = await import('./redis.ts');
  const store = openRedisStore({ url, files, onDamaged, onForgotten });
  return journaled(store, { folder, id: place, log });
}
