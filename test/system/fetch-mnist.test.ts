import { spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { gzipSync } from 'node:zlib';
import { afterEach, beforeEach, describe, expect, inject, it } from 'vitest';
import { downloadProgress } from '../../cli/data/data.ts';
import { sha256Of } from '../../files/atomic-file.ts';
import { type FetchProgress, fetchMnist, type RemoteFile } from '../../worker/data/fetch.ts';
import { loadMnist } from '../../worker/data/mnist.ts';
import { sharedData } from '../data-folder.ts';

/** Can't be packed much, so that half of the packed file is much of it. */
const CONTENT = Buffer.from(
  Array.from({ length: 2000 }, (_, i) =>
    createHash('sha256').update(String(i)).digest('hex'),
  ).join(),
);
const PACKED = gzipSync(CONTENT);
/** Checksums, since to compare 100,000 bytes one by one takes half a second. */
const PACKED_SUM = sha256Of(PACKED);
const sumOf = async (path: string) => sha256Of(await readFile(path));
const HALF = Math.floor(PACKED.length / 2);
const FILE: RemoteFile = {
  name: 'digits',
  bytes: CONTENT.length,
  sha256: sha256Of(CONTENT),
};

let folder: string;
let servers: Server[];
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'downpour-fetch-'));
  servers = [];
});
afterEach(async () => {
  for (const server of servers) {
    server.closeAllConnections();
    server.close();
  }
  await rm(folder, { recursive: true, force: true });
});

type Answer = (request: IncomingMessage, response: ServerResponse) => void;

/** A mirror on loopback. @returns its address and the ranges that were asked of it */
async function mirror(answer: Answer): Promise<{ url: string; asked: (string | undefined)[] }> {
  const asked: (string | undefined)[] = [];
  const server = createServer((request, response) => {
    asked.push(request.headers.range);
    answer(request, response);
  });
  servers.push(server.listen(0, '127.0.0.1'));
  await once(server, 'listening');
  return { url: `http://127.0.0.1:${(server.address() as AddressInfo).port}/mnist`, asked };
}

/** Answers like a server of files: whole, or from where it is asked. */
const whole =
  (bytes: Buffer): Answer =>
  (request, response) => {
    const start = Number(/^bytes=(\d+)-$/.exec(request.headers.range ?? '')?.[1] ?? 0);
    if (start >= bytes.length) {
      response.writeHead(416).end();
    } else if (start > 0) {
      response
        .writeHead(206, {
          'content-range': `bytes ${start}-${bytes.length - 1}/${bytes.length}`,
          'content-length': bytes.length - start,
        })
        .end(bytes.subarray(start));
    } else {
      response.writeHead(200, { 'content-length': bytes.length }).end(bytes);
    }
  };

/** Sends half and no more, then does `then`. */
const half =
  (then: () => void): Answer =>
  (_request, response) => {
    response.writeHead(200, { 'content-length': PACKED.length });
    response.write(PACKED.subarray(0, HALF), then);
  };

const get = (mirrors: string[], more: Partial<Parameters<typeof fetchMnist>[0]> = {}) =>
  fetchMnist({ folder, mirrors, files: [FILE], ...more });

describe('fetchMnist', () => {
  it('fetches, checks and names a file, and asks for nothing when it is there', async () => {
    const { url, asked } = await mirror(whole(PACKED));
    const states: FetchProgress[] = [];
    const path = join(folder, 'digits.gz');
    expect(await get([url], { onProgress: (p) => states.push(p) })).toEqual([path]);
    expect(await sumOf(path)).toBe(PACKED_SUM);
    expect(await readdir(folder)).toEqual(['digits.gz']);
    expect(states.at(-1)).toEqual({
      file: 'digits.gz',
      bytes: PACKED.length,
      bytesTotal: PACKED.length,
      state: 'done',
    });
    expect(await get([url])).toEqual([path]);
    expect(asked.length).toBe(1);
    // Damaged since: fetched anew.
    await writeFile(path, PACKED.subarray(0, HALF));
    await get([url]);
    expect(await sumOf(path)).toBe(PACKED_SUM);
  });

  it('keeps what came before it broke off, and goes on there', async () => {
    let breakOff = () => {};
    const broken = await mirror((request, response) => {
      breakOff = () => response.destroy();
      half(() => {})(request, response);
    });
    // Only once it was read: what a broken connection still held is lost.
    const onProgress = ({ bytes }: FetchProgress) => {
      if (bytes === HALF) breakOff();
    };
    await expect(get([broken.url], { onProgress })).rejects.toMatchObject({
      code: 'DP_DATA_MISSING',
      message: expect.stringMatching(/digits\.gz could not be fetched .* what came so far is kept/),
    });
    expect(await readdir(folder)).toEqual(['digits.gz.part']);
    expect((await readFile(join(folder, 'digits.gz.part'))).length).toBe(HALF);
    const { url, asked } = await mirror(whole(PACKED));
    await get([url]);
    expect(asked).toEqual([`bytes=${HALF}-`]);
    expect(await readdir(folder)).toEqual(['digits.gz']);
  });

  it('starts again where a mirror knows no ranges, or packed the file differently', async () => {
    await writeFile(join(folder, 'digits.gz.part'), PACKED.subarray(0, HALF));
    await get([(await mirror((_, response) => response.end(PACKED))).url]);
    expect(await sumOf(join(folder, 'digits.gz'))).toBe(PACKED_SUM);

    await rm(join(folder, 'digits.gz'));
    const other = gzipSync(CONTENT, { level: 1 });
    await writeFile(join(folder, 'digits.gz.part'), other.subarray(0, HALF));
    const { url, asked } = await mirror(whole(PACKED));
    await get([url]);
    expect(asked).toEqual([`bytes=${HALF}-`, undefined]);

    // A partial file that is longer than the mirror's whole one.
    await rm(join(folder, 'digits.gz'));
    await writeFile(join(folder, 'digits.gz.part'), Buffer.alloc(PACKED.length + 1));
    await get([url]);
    expect(await readdir(folder)).toEqual(['digits.gz']);
  });

  it('takes content that is not packed under its plain name', async () => {
    const { url } = await mirror(whole(CONTENT));
    expect(await get([url])).toEqual([join(folder, 'digits')]);
  });

  it('leaves nothing of a file with the wrong checksum, and tries the next mirror', async () => {
    const wrong = Buffer.from(CONTENT);
    wrong[1000]! ^= 1;
    const bad = await mirror(whole(gzipSync(wrong)));
    await expect(get([bad.url])).rejects.toMatchObject({
      code: 'DP_DATA_CORRUPT',
      message: expect.stringContaining(FILE.sha256),
    });
    expect(await readdir(folder)).toEqual([]);
    const good = await mirror(whole(PACKED));
    await get([bad.url, good.url]);
    expect(await readdir(folder)).toEqual(['digits.gz']);
  });

  it('stops a mirror that sends without end', async () => {
    const { url } = await mirror((_, response) => {
      const send = () => {
        while (!response.destroyed && response.write(Buffer.alloc(65_536)));
      };
      response.on('drain', send);
      send();
    });
    await expect(get([url])).rejects.toThrow(/it sends more than the/);
    expect(await readdir(folder)).toEqual([]);
  });

  it('says which hosts gave nothing: closed, silent, without the file', async () => {
    const closed = await mirror(whole(PACKED));
    const server = servers.pop()!;
    server.closeAllConnections();
    await new Promise((done) => server.close(done));
    const silent = await mirror(() => {});
    const stalled = await mirror(half(() => {}));
    const empty = await mirror((_, response) => response.writeHead(404).end());
    await expect(get([closed.url, empty.url])).rejects.toMatchObject({
      code: 'DP_DATA_MISSING',
      message: expect.stringMatching(/ECONNREFUSED; .*HTTP status 404/),
    });
    await expect(get([silent.url, stalled.url], { silenceMs: 200 })).rejects.toMatchObject({
      code: 'DP_DATA_MISSING',
      message: expect.stringMatching(/no answer for 0\.2 s; .*no answer for 0\.2 s/),
    });
    await expect(get(['not an address'])).rejects.toMatchObject({ code: 'DP_USAGE' });
    await expect(get(['file:///etc/'])).rejects.toMatchObject({ code: 'DP_USAGE' });
  });

  it('ends at once when its signal aborts, and keeps what came', async () => {
    const controller = new AbortController();
    const { url } = await mirror(half(() => {}));
    const fetching = get([url, url], {
      signal: controller.signal,
      onProgress: ({ bytes }) => {
        if (bytes === HALF) controller.abort();
      },
    });
    await expect(fetching).rejects.toMatchObject({ name: 'AbortError' });
    expect(await readdir(folder)).toEqual(['digits.gz.part']);
  });
});

describe('downpour data mnist', () => {
  const run = (args: string[]) => {
    const child = spawn(process.execPath, [
      inject('program'),
      'data',
      'mnist',
      '--to',
      folder,
      ...args,
    ]);
    const output = { out: '', err: '' };
    child.stdout.on('data', (chunk) => {
      output.out += chunk;
    });
    child.stderr.on('data', (chunk) => {
      output.err += chunk;
    });
    return { child, output, exit: once(child, 'close') };
  };

  it.skipIf(sharedData() === null)('fetches the real files, which then load', async () => {
    const { url } = await mirror((request, response) => {
      const name = request.url!.split('/').at(-1)!;
      void readFile(join(sharedData()!, 'mnist', name)).then((bytes) =>
        whole(bytes)(request, response),
      );
    });
    const { output, exit } = run(['--mirror', url]);
    expect(await exit).toEqual([0, null]);
    expect(output.out).toContain('MNIST is complete in');
    expect(output.err).toContain('train-images-idx3-ubyte.gz: 9.63 MB\n');
    expect((await loadMnist({ folder })).source).toContain('60,000 training and 10,000 test');
  });

  it('ends with 130 on Ctrl-C and keeps what came', async () => {
    let sentHalf = () => {};
    const sent = new Promise<void>((resolve) => {
      sentHalf = resolve;
    });
    const { url } = await mirror(half(() => sentHalf()));
    const { child, output, exit } = run(['--mirror', url]);
    await sent;
    child.kill('SIGINT');
    expect(await exit).toEqual([130, null]);
    expect(output.err).toContain('the same command continues');
  });

  it('draws a bar on a terminal and one line a file elsewhere', () => {
    const draw = (isTTY: boolean) => {
      let text = '';
      const show = downloadProgress(
        { isTTY, columns: 80, write: (t) => (text += t) },
        false,
        () => 0,
      );
      const file = 'x.gz';
      show({ file, bytes: 5e6, bytesTotal: 1e7, state: 'fetching' });
      show({ file, bytes: 6e6, bytesTotal: 1e7, state: 'fetching' });
      show({ file, bytes: 1e7, bytesTotal: 1e7, state: 'done' });
      return text;
    };
    expect(draw(false)).toBe('x.gz: 10.00 MB\n');
    expect(draw(true)).toBe(
      `\r\x1b[Kx.gz [${'#'.repeat(15)}${'.'.repeat(15)}] 5.00 MB of 10.00 MB\r\x1b[Kx.gz: 10.00 MB\n`,
    );
  });
});
