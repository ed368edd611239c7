import { once } from 'node:events';
import { type AddressInfo, createServer } from 'node:net';
import { afterEach, describe, expect, test } from 'vitest';
import { ShardPool } from '../../server/shards/pool.ts';
import { type FoundShard, type ShardSource, threadSource } from '../../server/shards/sources.ts';
import { resolveConfig } from '../../shared/config.ts';
import type { TensorSpec } from '../../shared/layout.ts';
import { shardHere } from '../support/shard-server.ts';

/** Which shards a server takes, when some do not answer. */

const ends: (() => Promise<unknown> | unknown)[] = [];
afterEach(async () => {
  for (const end of ends.splice(0).reverse()) await end();
});
const log = () => {};
const at = (port: number): FoundShard => ({
  address: { host: '127.0.0.1', port },
  url: `ws://127.0.0.1:${port}`,
});

/** A port on which nobody listens any more. */
async function deadPort(): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as AddressInfo;
  server.close();
  await once(server, 'close');
  return port;
}

async function livePort(): Promise<number> {
  const shard = await shardHere(log);
  ends.push(() => shard.stop());
  return shard.port;
}

function poolOf(source: ShardSource): ShardPool {
  const pool = new ShardPool({
    ...{ count: 2, source, token: 1, access: () => null, tls: () => null, log },
    now: () => performance.now(),
  });
  ends.push(() => pool.close());
  return pool;
}

test('a shard that copies a large table for a checkpoint answers meanwhile', async () => {
  const found = [at(await livePort())];
  const pool = poolOf({ find: async () => found, close: async () => {} });
  await pool.open();
  const [run, id] = ['r', 1];
  const tables = { word: { rows: 2 ** 23, width: 1 } };
  const tensors: TensorSpec[] = [{ name: 'w', shape: [40_000], role: 'trainable' }];
  pool.tellOne(1, { kind: 'create', run, tensors, config: resolveConfig({ tables }) });
  pool.tellOne(1, { kind: 'save', run, id, what: 'last', best: null, changes: false });
  const answers: string[] = [];
  await Promise.all([
    // It has all that is to be written.
    pool.list(1, run, id).then(() => answers.push('listed')),
    pool
      .read(1, { run, id, name: '@parameters', start: 0, count: 4 })
      .then(() => answers.push('read')),
  ]);
  expect(answers).toEqual(['read', 'listed']);
});

describe('a server looks for shards', () => {
  test('and takes another one in the place of one that does not answer', async () => {
    const shards = [at(await deadPort()), at(await livePort())];
    const pool = poolOf({
      find: async (_, suspects) => {
        const trusted = shards.filter(({ url }) => !suspects.has(url));
        return [...trusted, ...shards].slice(0, 1);
      },
      close: async () => {},
    });
    await pool.open();
    expect(pool.addresses).toEqual([shards[1]!.address]);
    expect(pool.facts()).toEqual({ count: 2, whole: true, lost: null });
  });

  test('and says so, instead of trying on, where none answers', async () => {
    let asked = 0;
    const pool = poolOf({
      find: async () => {
        asked++;
        return [at(await deadPort())];
      },
      close: async () => {},
    });
    await expect(pool.open()).rejects.toMatchObject({ code: 'DP_SHARD_LOST' });
    expect(asked).toBe(2);
  });

  test('among threads of its own: one that was silent is ended, and another one begins', async () => {
    const source = threadSource({
      ...{ host: '127.0.0.1', tokens: {}, tls: null, localSocket: false, log },
      ...{ ports: 3, memoryBytesMax: 2 ** 28 },
    });
    ends.push(() => source.close());
    const first = await source.find(3, new Set());
    const second = await source.find(3, new Set([first[0]!.url]));
    expect(second[0]!.url).not.toBe(first[0]!.url);
    expect(second[1]!.url).toBe(first[1]!.url);
    await expect(fetch(first[0]!.url.replace('ws', 'http'))).rejects.toThrow();
    expect((await fetch(`${second[0]!.url.replace('ws', 'http')}/health`)).status).toBe(200);
  });
});
