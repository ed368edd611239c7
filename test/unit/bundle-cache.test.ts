import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { chmod, mkdir, mkdtemp, readdir, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { createServer, type RequestListener, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { bundleHead } from '../../shared/bundle.ts';
import type { MissingExperiment } from '../../shared/protocol.ts';
import { BundleCache, type BundleCacheOptions, bundlesFolder } from '../../worker/bundle-cache.ts';

/** What a worker takes of a server that may be hostile, and what it leaves. */

let top: string;
let folder: string;
let servers: Server[];
beforeEach(async () => {
  top = await mkdtemp(join(tmpdir(), 'downpour-'));
  folder = join(top, 'bundles');
  servers = [];
});
afterEach(async () => {
  for (const server of servers) {
    server.closeAllConnections();
    server.close();
  }
  await rm(top, { recursive: true, force: true });
});

async function serve(answer: RequestListener): Promise<{ url: string; asked: string[] }> {
  const asked: string[] = [];
  const server = createServer((request, response) => {
    asked.push(`${request.url} ${request.headers.authorization}`);
    answer(request, response);
  }).listen(0, '127.0.0.1');
  servers.push(server);
  await once(server, 'listening');
  return { url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`, asked };
}

const EXPERIMENT = { experiment: 'mine', experimentHash: 'cd'.repeat(32) };
const hashOf = (content: string) => createHash('sha256').update(content).digest('hex');
const bundle = (code: string) => `${bundleHead(EXPERIMENT)}export default ${code};\n`;

function offer(content: string, more: Partial<MissingExperiment> = {}): MissingExperiment {
  const offered = { sha256: hashOf(content), bytes: Buffer.byteLength(content) };
  return { run: 'r', ...EXPERIMENT, bundle: offered, ...more };
}
const open = (options: Partial<BundleCacheOptions> = {}) =>
  BundleCache.open({ folder, token: 'secret', ...options });
const never = new AbortController().signal;
const names = () => readdir(folder);

describe('a worker that accepts experiments', () => {
  test('fetches a bundle once, with its token, into a folder of its own', async () => {
    const content = bundle('1');
    const { url, asked } = await serve((_, response) => response.end(content));
    const cache = await open();
    const path = await cache.fetch(url, offer(content), never);
    expect(path).toBe(join(folder, `${hashOf(content)}.mjs`));
    expect(await readFile(path, 'utf8')).toBe(content);
    expect((await stat(folder)).mode & 0o777).toBe(0o700);
    expect((await stat(path)).mode & 0o777).toBe(0o600);
    expect(await (await open()).fetch(url, offer(content), never)).toBe(path);
    expect(asked).toEqual([`/bundles/${hashOf(content)} Bearer secret`]);
    expect(await names()).toEqual([`${hashOf(content)}.mjs`]);
  });

  test('looks at what it has before each use, and fetches it anew when it was changed', async () => {
    const content = bundle('1');
    const { url, asked } = await serve((_, response) => response.end(content));
    const cache = await open();
    const path = await cache.fetch(url, offer(content), never);
    await writeFile(path, bundle('2'));
    await cache.fetch(url, offer(content), never);
    expect(await readFile(path, 'utf8')).toBe(content);
    expect(asked).toHaveLength(2);
  });

  test('does not take what has another hash than was offered', async () => {
    const { url } = await serve((_, response) => response.end(bundle('2')));
    const cache = await open();
    await expect(cache.fetch(url, offer(bundle('1')), never)).rejects.toMatchObject({
      code: 'DP_EXPERIMENT_MISMATCH',
      message: expect.stringContaining(hashOf(bundle('2'))),
    });
    expect(await names()).toEqual([]);
  });

  test('does not take the bundle of another experiment, nor of another version, nor any other file', async () => {
    const contents = [
      `${bundleHead({ ...EXPERIMENT, experiment: 'other' })}export default 1;`,
      `${bundleHead({ ...EXPERIMENT, experimentHash: 'ef'.repeat(32) })}export default 1;`,
      'export default 1;',
    ];
    const cache = await open();
    for (const content of contents) {
      const { url } = await serve((_, response) => response.end(content));
      await expect(cache.fetch(url, offer(content), never)).rejects.toMatchObject({
        code: 'DP_EXPERIMENT_MISMATCH',
        message: expect.stringMatching(/run r needs a bundle of 'mine'.* it is not run/),
      });
    }
    expect(await names()).toEqual([]);
    // Nor one that is here already.
    const good = bundle('1');
    const { url } = await serve((_, response) => response.end(good));
    await cache.fetch(url, offer(good), never);
    const other = offer(good, { experiment: 'other' });
    await expect(cache.fetch(url, other, never)).rejects.toMatchObject({
      code: 'DP_EXPERIMENT_MISMATCH',
    });
  });

  test('follows no redirection, also to a server that has the bundle', async () => {
    const content = bundle('1');
    const target = await serve((_, response) => response.end(content));
    const { url } = await serve((request, response) => {
      response.writeHead(302, { location: target.url + request.url }).end();
    });
    const cache = await open();
    await expect(cache.fetch(url, offer(content), never)).rejects.toMatchObject({
      code: 'DP_SERVER_UNREACHABLE',
    });
    expect(target.asked).toEqual([]);
    expect(await names()).toEqual([]);
  });

  test('stops reading at the size that was offered', async () => {
    const content = bundle('1');
    let sent = 0;
    let ended = false;
    const { url } = await serve((_, response) => {
      response.on('close', () => {
        ended = true;
      });
      const more = () => {
        while (!ended && response.write(Buffer.alloc(65_536, 'x'))) sent += 65_536;
        if (!ended) response.once('drain', more);
      };
      response.write(content);
      more();
    });
    const cache = await open();
    await expect(cache.fetch(url, offer(content), never)).rejects.toMatchObject({
      code: 'DP_EXPERIMENT_MISMATCH',
      message: expect.stringMatching(/more than the \d+ bytes/),
    });
    await expect.poll(() => ended).toBe(true);
    expect(sent).toBeLessThan(2 ** 26);
    expect(await names()).toEqual([]);
  });

  test('takes the largest bundle that is allowed, and does not ask for one a byte larger', async () => {
    const content = bundle('1');
    const bytes = Buffer.byteLength(content);
    const { url, asked } = await serve((_, response) => response.end(content));
    const limits = (bundleBytesMax: number) => ({ bundleBytesMax, bundleCacheBytesMax: 1e6 });
    const small = await open({ limits: limits(bytes - 1) });
    await expect(small.fetch(url, offer(content), never)).rejects.toMatchObject({
      code: 'DP_FRAME_TOO_LARGE',
    });
    expect(asked).toEqual([]);
    await (await open({ limits: limits(bytes) })).fetch(url, offer(content), never);
    expect(asked).toHaveLength(1);
  });

  test.each(['../../outside', 'AB'.repeat(32), `${'ab'.repeat(32)}/../x`, ''])(
    'takes no name that is no hash: %j',
    async (sha256) => {
      const { url, asked } = await serve((_, response) => response.end('x'));
      const cache = await open();
      await expect(
        cache.fetch(url, offer('', { bundle: { sha256, bytes: 1 } }), never),
      ).rejects.toMatchObject({ code: 'DP_EXPERIMENT_MISMATCH' });
      expect(asked).toEqual([]);
      expect(await readdir(top)).toEqual(['bundles']);
    },
  );

  test('says what the server answers, and that it broke off', async () => {
    const refusing = await serve((_, response) => {
      response.writeHead(404).end(JSON.stringify({ code: 'DP_NOT_FOUND', message: 'no run' }));
    });
    const breaking = await serve((_, response) => {
      response.writeHead(200, { 'content-length': 1000 });
      response.write('begun', () => response.destroy());
    });
    const cache = await open();
    const wanted = offer(bundle('1'));
    await expect(cache.fetch(refusing.url, wanted, never)).rejects.toMatchObject({
      code: 'DP_NOT_FOUND',
      message: 'no run',
    });
    await expect(cache.fetch(breaking.url, wanted, never)).rejects.toMatchObject({
      code: 'DP_SERVER_UNREACHABLE',
    });
    expect(await names()).toEqual([]);
  });

  test('stops when it is told to', async () => {
    const { url, asked } = await serve(() => {});
    const cache = await open();
    const stop = new AbortController();
    const fetched = cache.fetch(url, offer(bundle('1')), stop.signal);
    await expect.poll(() => asked.length).toBe(1);
    stop.abort();
    await expect(fetched).rejects.toBe(stop.signal.reason);
  });

  test('keeps a bounded number of bytes: what was used longest ago goes, and what is not its own stays', async () => {
    const contents = ['1', '2', '3'].map(bundle);
    const bytes = Buffer.byteLength(contents[0]!);
    const { url } = await serve((request, response) => {
      response.end(contents.find((content) => request.url?.endsWith(hashOf(content))));
    });
    const limits = { bundleBytesMax: bytes, bundleCacheBytesMax: 2 * bytes };
    const cache = await open({ limits });
    await writeFile(join(folder, 'notes.txt'), 'x'.repeat(10 * bytes));
    for (const content of contents.slice(0, 2)) await cache.fetch(url, offer(content), never);
    await cache.fetch(url, offer(contents[0]!), never);
    await cache.fetch(url, offer(contents[2]!), never);
    const kept = [contents[0]!, contents[2]!].map((content) => `${hashOf(content)}.mjs`);
    expect((await names()).sort()).toEqual([...kept, 'notes.txt'].sort());
  });

  test('uses no folder that others can write to or read', async () => {
    await mkdir(folder);
    for (const mode of [0o777, 0o755]) {
      await chmod(folder, mode);
      await expect(open()).rejects.toMatchObject({
        code: 'DP_USAGE',
        message: expect.stringMatching(/open to other users/),
      });
    }
    await chmod(folder, 0o700);
    await open();
    await writeFile(join(top, 'file'), '');
    await expect(open({ folder: join(top, 'file', 'x') })).rejects.toMatchObject({
      code: 'DP_DISK',
    });
  });

  test('has its folder in the cache of its user, or where it is told', () => {
    expect(bundlesFolder({ DOWNPOUR_BUNDLE_DIR: '/b' })).toBe('/b');
    expect(bundlesFolder({ XDG_CACHE_HOME: '/c' })).toBe('/c/downpour/bundles');
    expect(bundlesFolder({})).toMatch(/\.cache\/downpour\/bundles$/);
  });
});
