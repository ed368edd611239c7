import { createHash } from 'node:crypto';
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { createServer } from 'node:https';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { type ServeOptions, type Serving, serve } from '../../server/main.ts';
import { BUNDLE_HEADER, bundleHead } from '../../shared/bundle.ts';
import type { MissingExperiment } from '../../shared/protocol.ts';
import { createRestClient } from '../../shared/rest-client.ts';
import { fetchOver, trustOf } from '../../wire/tls.ts';
import { BundleCache } from '../../worker/bundle-cache.ts';
import { createAuthority, hasOpenssl } from '../support/certificates.ts';
import { ProtocolWorker } from '../support/protocol-worker.ts';

/** Whom a server tells of an experiment that was sent, and whom it gives it. */

const EXPERIMENT = { experiment: 'mine', experimentHash: 'cd'.repeat(32) };
const CONTENT = Buffer.from(`${bundleHead(EXPERIMENT)}export default 1;`);
const SHA256 = createHash('sha256').update(CONTENT).digest('hex');
const TOKENS = { token: 'o', workerToken: 'w', observerToken: 'r' };

let folder: string;
let ends: (() => unknown)[];
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'downpour-bundles-'));
  ends = [() => rm(folder, { recursive: true, force: true })];
});
afterEach(async () => {
  for (const end of ends.reverse()) await end();
});

async function start(options: Partial<ServeOptions> = {}): Promise<Serving> {
  const stop = new AbortController();
  const where = { host: '127.0.0.1', port: 0, state: join(folder, 'state') };
  const serving = await serve({ ...where, signal: stop.signal, ...TOKENS, ...options });
  ends.push(async () => {
    stop.abort();
    await serving.closed;
  });
  return serving;
}
const clientOf = (server: string, token: string) => createRestClient({ server, token });

/** What a worker that has nothing is told first. */
async function greet(
  url: string,
  {
    accepts,
    run = null,
    experiments = {},
  }: { accepts?: string; run?: string | null; experiments?: Record<string, string> },
) {
  const headers: Record<string, string> = accepts ? { [BUNDLE_HEADER]: accepts } : {};
  const worker = await ProtocolWorker.connect(url, { token: 'w', headers });
  ends.push(() => worker.close());
  worker.send({
    ...{ type: 'hello', worker: worker.name, incarnation: worker.incarnation, run, experiments },
    ...{ engine: 'none', device: 'none' },
  });
  const incoming = await worker.next();
  if (incoming.kind === 'closed') throw new Error(`closed: ${incoming.reason}`);
  return incoming.message;
}

describe('a server that was sent an experiment', () => {
  test('tells it to workers whose handshake says that they know of bundles, and to no others', async () => {
    const { url } = await start();
    const client = clientOf(url, 'o');
    await client.sendBundle(SHA256, CONTENT);
    await client.createRun({ id: 'sent', ...EXPERIMENT, bundle: SHA256 });
    const missing = { run: 'sent', ...EXPERIMENT };
    const told = { ...missing, bundle: { sha256: SHA256, bytes: CONTENT.length } };
    // What a worker of an older release would refuse is not in there.
    expect(await greet(url, {})).toEqual({ type: 'idle', missing: [missing] });
    for (const accepts of ['yes', 'no']) {
      expect(await greet(url, { accepts })).toEqual({ type: 'idle', missing: [told] });
    }
    // For this run alone: only one that fetches it may wait.
    expect(await greet(url, { accepts: 'yes', run: 'sent' })).toMatchObject({ missing: [told] });
    for (const accepts of [undefined, 'no']) {
      expect(await greet(url, { run: 'sent', ...(accepts && { accepts }) })).toMatchObject({
        ...{ type: 'error', code: 'DP_EXPERIMENT_UNKNOWN' },
        message: expect.stringMatching(/start it with --accept-experiments/),
      });
    }
  });

  test('takes a worker with its files and one with its bundle, and none with another', async () => {
    const { url } = await start();
    const client = clientOf(url, 'o');
    await client.sendBundle(SHA256, CONTENT);
    await client.createRun({ id: 'sent', ...EXPERIMENT, bundle: SHA256 });
    for (const hash of [EXPERIMENT.experimentHash, SHA256]) {
      expect(await greet(url, { experiments: { mine: hash } })).toMatchObject({
        ...{ type: 'assign', run: 'sent', experimentHash: EXPERIMENT.experimentHash },
      });
    }
    expect(await greet(url, { experiments: { mine: 'ef'.repeat(32) } })).toMatchObject({
      type: 'idle',
    });
    expect(await greet(url, { run: 'sent', experiments: { mine: 'ef'.repeat(32) } })).toMatchObject(
      { type: 'error', code: 'DP_EXPERIMENT_MISMATCH' },
    );
    // A bundle counts for the runs that name it.
    await client.createRun({ id: 'copied', ...EXPERIMENT });
    expect(await greet(url, { run: 'copied', experiments: { mine: SHA256 } })).toMatchObject({
      type: 'error',
      code: 'DP_EXPERIMENT_MISMATCH',
    });
  });

  test('gives it to workers while a run is not over, and keeps the run of what was not sent from being made', async () => {
    const { url } = await start();
    const operator = clientOf(url, 'o');
    const body = { id: 'sent', ...EXPERIMENT, bundle: SHA256 };
    await expect(operator.createRun(body)).rejects.toMatchObject({ code: 'DP_NOT_FOUND' });
    expect(await operator.runs()).toEqual([]);
    expect(await operator.sendBundle(SHA256, CONTENT)).toEqual({
      ...{ sha256: SHA256, bytes: CONTENT.length },
    });
    const read = async (token: string) =>
      Buffer.from(await new Response(await clientOf(url, token).bundle(SHA256)).arrayBuffer());
    // No run names it yet.
    await expect(read('w')).rejects.toMatchObject({ code: 'DP_NOT_FOUND' });
    await operator.createRun(body);
    for (const token of ['w', 'o']) expect(await read(token)).toEqual(CONTENT);
    await expect(read('r')).rejects.toMatchObject({ code: 'DP_FORBIDDEN' });
    await expect(read('x')).rejects.toMatchObject({ code: 'DP_UNAUTHORIZED' });
    await operator.stop('sent');
    await expect(read('w')).rejects.toMatchObject({ code: 'DP_NOT_FOUND' });
    await operator.resume('sent');
    expect(await read('w')).toEqual(CONTENT);
  });

  test('has taken neither another content, nor text, nor more than is allowed', async () => {
    const { url } = await start();
    const put = (content: BodyInit, type = 'application/octet-stream') =>
      fetch(`${url}/bundles/${SHA256}`, {
        method: 'PUT',
        headers: { authorization: 'Bearer o', 'content-type': type },
        body: content,
      }).then(async (answer) => ({ status: answer.status, code: (await answer.json()).code }));
    expect(await put('other')).toEqual({ status: 400, code: 'DP_BODY_INVALID' });
    expect(await put('{}', 'application/json')).toEqual({ status: 400, code: 'DP_BODY_INVALID' });
    expect(await put('')).toMatchObject({ status: expect.toBeOneOf([400, 413]) });
    expect(await put(new Uint8Array(2 ** 24 + 1))).toEqual({
      ...{ status: 413, code: 'DP_FRAME_TOO_LARGE' },
    });
    await expect(clientOf(url, 'o').createRun({ ...EXPERIMENT, bundle: SHA256 })).rejects.toThrow();
  });
});

test.skipIf(!hasOpenssl() && !process.env.CI)(
  'a worker fetches over TLS from a server that it trusts alone, and follows no redirection there',
  async () => {
    const [ours, strangers] = ['ours', 'strangers'].map((name) => createAuthority(folder, name));
    const certificate = ours!.issue('server');
    const { url } = await start({ tls: certificate });
    const trust = trustOf({ ca: ours!.ca });
    const client = createRestClient({ server: url, token: 'o', fetch: fetchOver(trust) });
    await client.sendBundle(SHA256, CONTENT);
    await client.createRun({ id: 'sent', ...EXPERIMENT, bundle: SHA256 });
    const bundle = { sha256: SHA256, bytes: CONTENT.length };
    const missing: MissingExperiment = { run: 'sent', ...EXPERIMENT, bundle };
    const { signal } = new AbortController();
    const cacheOf = (ca: string, name: string) =>
      BundleCache.open({ folder: join(folder, name), token: () => 'w', tls: trustOf({ ca }) });
    const stranger = await cacheOf(strangers!.ca, 'one');
    await expect(stranger.fetch(url, missing, signal)).rejects.toMatchObject({
      code: 'DP_SERVER_UNREACHABLE',
    });
    const cache = await cacheOf(ours!.ca, 'two');
    expect(await readFile(await cache.fetch(url, missing, signal))).toEqual(CONTENT);

    const [cert, key] = await Promise.all([readFile(certificate.cert), readFile(certificate.key)]);
    const leading = createServer({ cert, key }, (request, response) => {
      response.writeHead(302, { location: url + request.url }).end();
    }).listen(0, '127.0.0.1');
    ends.push(() => leading.close());
    await new Promise((listening) => leading.once('listening', listening));
    const elsewhere = `https://127.0.0.1:${(leading.address() as AddressInfo).port}`;
    const empty = await cacheOf(ours!.ca, 'three');
    await expect(empty.fetch(elsewhere, missing, signal)).rejects.toMatchObject({
      message: expect.stringMatching(/answered 302/),
    });
  },
);
