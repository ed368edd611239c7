import { Redis, type RedisOptions } from 'ioredis';
import { type Check, damaged, type OnDamagedRecord, parseRecord } from '../../files/records.ts';
import { DownpourError, errorCode, errorText } from '../../shared/errors.ts';
import { parseRedisAddress, type RedisFiles } from './redis-address.ts';

/** How long one operation may take, waiting for a lost Redis included. */
const TIMEOUT_MS = 3000;

/**
 * The only door to Redis. It connects with the first operation, and again by itself whenever the connection is
 * lost; what is asked for meanwhile fails with DP_REDIS_UNAVAILABLE after `timeoutMs` (3000) at most.
 * All keys begin with one prefix; `{downpour}:` keeps them in one slot of a cluster.
 */
export class RedisConnection {
  /** For messages: where it is, without the login. */
  readonly place: string;
  readonly #prefix: string;
  readonly #redis: Redis;
  readonly #onDamaged: OnDamagedRecord;
  /** The client reports lost connections by an event, operations only that they gave up. */
  #lastError: Error | null = null;

  /** @throws DownpourError DP_CONFIG_INVALID for a URL that is none. */
  constructor(
    options: {
      readonly url: string;
      readonly files?: RedisFiles;
      readonly prefix?: string;
      readonly timeoutMs?: number;
    },
    onDamaged: OnDamagedRecord,
  ) {
    const { prefix = 'downpour:', timeoutMs = TIMEOUT_MS } = options;
    const { place, server, tls, ...login } = parseRedisAddress(options.url, options.files);
    this.place = place;
    this.#prefix = prefix;
    this.#onDamaged = onDamaged;
    const secure =
      'sentinels' in server ? { enableTLSForSentinelMode: true, sentinelTLS: tls } : {};
    this.#redis = new Redis({
      ...login,
      ...('sentinels' in server ? { ...server, sentinels: [...server.sentinels] } : server),
      ...(tls === null ? {} : { tls, ...secure }),
      lazyConnect: true,
      connectTimeout: timeoutMs,
      commandTimeout: timeoutMs,
      sentinelCommandTimeout: timeoutMs,
      maxRetriesPerRequest: 3,
      retryStrategy: (times: number) => Math.min(50 * 2 ** Math.min(times, 10), 2000),
      // After a failover this connection may lead to what is now a replica: connect anew, resend.
      reconnectOnError: (error: Error) => (error.message.startsWith('READONLY') ? 2 : false),
    } as RedisOptions);
    this.#redis.on('error', (error: Error) => {
      this.#lastError = error;
    });
    this.#redis.on('ready', () => {
      this.#lastError = null;
    });
  }

  key(...parts: readonly string[]): string {
    return this.#prefix + parts.join(':');
  }

  /** Any failure of Redis becomes one expected error. @param keys that the operation is about. */
  async ask<T>(keys: readonly string[], operation: (redis: Redis) => Promise<T>): Promise<T> {
    try {
      return await operation(this.#redis);
    } catch (error) {
      if (errorText(error).includes('WRONGTYPE')) throw await this.#wrongType(keys);
      throw unavailable(this.place, error, this.#lastError);
    }
  }

  evaluate(
    script: string,
    keys: readonly string[],
    args: readonly (string | number)[],
  ): Promise<unknown> {
    return this.ask(keys, (redis) => redis.eval(script, keys.length, ...keys, ...args));
  }

  /** A field of a hash; null: there is none. @throws DownpourError DP_STATE_CORRUPT. */
  async read<T>(hash: string, field: string, check: Check<T>): Promise<T | null> {
    const text = await this.ask([hash], (redis) => redis.hget(hash, field));
    return text === null ? null : parseRecord(`${hash} ${field}`, text, check);
  }

  /** All of a hash, by field. */
  async readAll<T>(hash: string, check: Check<T>): Promise<[field: string, record: T][]> {
    const texts = await this.passOver(() => this.ask([hash], (redis) => redis.hgetall(hash)), {});
    const records: [string, T][] = [];
    for (const [field, text] of Object.entries(texts)) {
      const shown = JSON.stringify(field.slice(0, 80)).slice(1, -1);
      const record = async () => parseRecord(`${hash} ${shown}`, text, check);
      const known = await this.passOver<T | null>(record, null);
      if (known !== null) records.push([field, known]);
    }
    return records;
  }

  /** The result; what is no record is passed over and told. */
  async passOver<T>(operation: () => Promise<T>, otherwise: T): Promise<T> {
    try {
      return await operation();
    } catch (error) {
      if (errorCode(error) !== 'DP_STATE_CORRUPT') throw error;
      this.#onDamaged(error as DownpourError);
      return otherwise;
    }
  }

  close(): void {
    this.#redis.disconnect();
  }

  /** Somebody has put something else in the place of a record. Redis does not say which key it is. */
  async #wrongType(keys: readonly string[]): Promise<DownpourError> {
    const redis = this.#redis;
    const types = await Promise.all(keys.map((name) => redis.type(name).catch(() => 'none')));
    const wrong = keys.flatMap((name, i) => {
      const wanted = typeOf(name.slice(this.#prefix.length));
      return types[i] === 'none' || types[i] === wanted
        ? []
        : [`${name} is a ${types[i]}, not a ${wanted}`];
    });
    return damaged(wrong.length > 0 ? keys.join(', ') : keys[0]!, wrong.join('; ') || 'WRONGTYPE');
  }
}

/** What kind of value a key of ours has. @param key without the prefix. */
function typeOf(key: string): 'string' | 'set' | 'hash' {
  if (key === 'token' || key.startsWith('shard:')) return 'string';
  return key === 'shards' ? 'set' : 'hash';
}

function unavailable(place: string, error: unknown, lastError: Error | null): DownpourError {
  const text = errorText(error);
  const why = lastError === null || text === lastError.message ? '' : ` (${lastError.message})`;
  const both = `${text} ${why}`;
  const advice = /NOAUTH|WRONGPASS|NOPERM/.test(both)
    ? 'check the user and password in its address, and what they may do'
    : /certificate/i.test(both)
      ? 'name the authority of its certificate with --redis-ca, and ours with --redis-cert and --redis-key'
      : 'check that it runs and can be reached; the server reconnects by itself';
  return new DownpourError('DP_REDIS_UNAVAILABLE', `Redis at ${place}: ${text}${why}; ${advice}`, {
    cause: error,
  });
}
