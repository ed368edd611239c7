import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { copyFile, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { Server as HttpServer } from 'node:http';
import { Server as HttpsServer } from 'node:https';
import { connect as connectPlain, Server as NetServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { connect } from 'node:tls';
import { afterAll, afterEach, beforeAll, describe, expect, inject, test, vi } from 'vitest';
import { type ServeOptions, type Serving, serve } from '../../server/main.ts';
import { runShard } from '../../server/shards/main.ts';
import { LIMITS } from '../../shared/limits.ts';
import { createRestClient } from '../../shared/rest-client.ts';
import { fetchOver, type TrustFiles, trustOf } from '../../wire/tls.ts';
import { type Engine, openEngine } from '../../worker/engine.ts';
import { experimentName, hashExperiment } from '../../worker/experiment.ts';
import { runWorker, type WorkerOptions } from '../../worker/main.ts';
import { type Authority, createAuthority, hasOpenssl } from '../support/certificates.ts';

const FIXTURES = join(import.meta.dirname, '..', 'fixtures');
const CARS = join(FIXTURES, 'cars.ts');
/** Large enough for two shards. */
const DIGITS = join(FIXTURES, 'few-digits.ts');
const PROGRAM = inject('program');

describe.skipIf(!hasOpenssl() && !process.env.CI)('TLS (openssl makes the certificates)', () => {
  let folder: string;
  let engine: Engine;
  let authority: Authority;
  let server: { cert: string; key: string };
  let client: { cert: string; key: string };
  let strangers: Authority;
  const ends: (() => Promise<void>)[] = [];

  beforeAll(async () => {
    folder = await mkdtemp(join(tmpdir(), 'downpour-tls-'));
    engine = await openEngine({ engine: 'cpu' });
    authority = createAuthority(folder, 'ours');
    server = authority.issue('server');
    client = authority.issue('client');
    strangers = createAuthority(folder, 'strangers');
  });
  afterEach(async () => {
    for (const end of ends.splice(0).reverse()) await end();
  });
  afterAll(() => rm(folder, { recursive: true, force: true }));

  let states = 0;
  const lines: string[] = [];
  async function start(options: Partial<ServeOptions> = {}): Promise<Serving> {
    const stop = new AbortController();
    const serving = await serve({
      ...{ host: '127.0.0.1', port: 0, state: join(folder, `state-${states++}`) },
      ...{ signal: stop.signal, log: (line: string) => lines.push(line), tls: server },
      ...options,
    });
    ends.push(async () => {
      stop.abort();
      await serving.closed;
    });
    return serving;
  }

  const rest = (url: string, trust: TrustFiles, token?: string) =>
    createRestClient({ server: url, token, fetch: fetchOver(trustOf(trust)) });

  async function train(
    url: string,
    trust: TrustFiles,
    options: Partial<WorkerOptions> = {},
    file = CARS,
  ) {
    const { token } = options;
    const rests = rest(url, trust, typeof token === 'string' ? token : undefined);
    const experiment = experimentName(file);
    const experimentHash = await hashExperiment(file);
    const config = {
      ...{ stepsMax: 20, evaluateEverySteps: 10, earlyStopping: { enabled: false } },
      ...(file === DIGITS ? { hyperparameters: { units: 64 } } : {}),
    };
    const { id } = await rests.createRun({ experiment, experimentHash, config });
    await runWorker({
      server: url.replace('http', 'ws'),
      run: id,
      engine,
      folders: [FIXTURES],
      dataFolder: folder,
      once: true,
      signal: AbortSignal.timeout(170_000),
      log: (line) => lines.push(line),
      tls: trustOf(trust),
      ...options,
    });
    const run = await rests.run(id);
    expect(run).toMatchObject({ phase: 'finished', step: 20 });
    return { id, rests };
  }

  test('a handshake that is begun and left lying is ended, and its socket with it', async () => {
    const { url } = await start({ limits: { tlsHandshakeMs: 100 } });
    const silent = connectPlain(Number(new URL(url).port), '127.0.0.1');
    // Half of what begins a handshake.
    silent.write(Buffer.from('160301', 'hex'));
    silent.resume();
    await once(silent, 'close');
    expect(silent.bytesRead).toBeLessThan(100);
  });

  test('those that begin one and leave it lying take no place of who has a token', async () => {
    const sockets = { socketCountMax: 50, strangerCountMax: 8 };
    const { url } = await start({ limits: { sockets }, token: 'secret' });
    const silent = Array.from({ length: 40 }, () => {
      const socket = connectPlain(Number(new URL(url).port), '127.0.0.1');
      socket.on('error', () => {});
      socket.write(Buffer.from('160301', 'hex'));
      return socket.resume();
    });
    ends.push(async () => {
      for (const socket of silent) socket.destroy();
    });
    await Promise.all(silent.slice(0, 32).map((socket) => once(socket, 'close')));
    await train(url, { ca: authority.ca }, { token: 'secret' });
    expect(silent.some(({ closed }) => !closed)).toBe(true);
  });

  test('a certificate that ends within a week is told of at the start and in the alerts, until it is renewed', async () => {
    const files = { cert: join(folder, 'short.pem'), key: join(folder, 'short.key') };
    const copy = async ({ cert, key }: typeof files) => {
      await copyFile(cert, files.cert);
      await copyFile(key, files.key);
    };
    await copy(authority.issue('ends', 3));
    const { url } = await start({ tls: files });
    const text = /short\.pem expires in 2 days, on .*: replace the files/;
    expect(lines.filter((line) => text.test(line))).toHaveLength(1);
    const alerts = async () => (await rest(url, { ca: authority.ca }).status()).alerts;
    expect(await alerts()).toMatchObject([
      { severity: 'warning', text: expect.stringMatching(text) },
    ]);
    await copy(authority.issue('stays', 90));
    await expect.poll(alerts, { timeout: 120_000 }).toEqual([]);
  });

  test('time and sockets are limited on every port, as the servers have it in force', async () => {
    const servers: HttpServer[] = [];
    const listen = vi.spyOn(NetServer.prototype, 'listen');
    await start();
    const stop = new AbortController();
    const own = { host: '127.0.0.1', port: 0, signal: stop.signal, log: () => {} };
    const all = [await serve({ ...own, state: join(folder, 'plain'), localSocket: false })];
    for (const tls of [server, undefined]) {
      const state = join(folder, `shard-${tls ? 'tls' : 'plain'}`);
      all.push((await runShard({ ...own, state, ...(tls ? { tls } : {}) })) as Serving);
    }
    ends.push(async () => {
      stop.abort();
      await Promise.all(all.map(({ closed }) => closed));
    });
    for (const each of listen.mock.contexts) {
      if (each instanceof HttpServer || each instanceof HttpsServer)
        servers.push(each as HttpServer);
    }
    listen.mockRestore();
    expect(servers.length).toBeGreaterThanOrEqual(4);
    for (const each of servers) {
      expect(each).toMatchObject({
        maxConnections: LIMITS.socketCountMax,
        requestTimeout: LIMITS.requestMs,
        headersTimeout: LIMITS.requestHeaderMs,
        keepAliveTimeout: LIMITS.keepAliveMs,
      });
    }
  });

  test('workers and REST clients that trust the authority train and fetch, encrypted', async () => {
    const { url } = await start({ token: 'secret' });
    expect(url).toMatch(/^https:/);
    const { id, rests } = await train(url, { ca: authority.ca }, { token: 'secret' });
    // Nothing leads around the encryption.
    expect((await rests.health()).localSocket).toBeNull();
    // It is written beside the end of the run.
    const finals = async () => (await rests.checkpoints(id)).filter(({ kind }) => kind === 'final');
    await expect.poll(finals).toHaveLength(1);
    let bytes = 0;
    for await (const chunk of await rests.checkpointFile(id, 'final')) bytes += chunk.length;
    expect(bytes).toBe((await finals())[0]!.bytes);
    const answer = await fetchOver(trustOf({ ca: authority.ca }))(`${url}/health`);
    expect(answer.status).toBe(200);
    await expect(rest(url, { ca: authority.ca }, 'wrong').runs()).rejects.toMatchObject({
      code: 'DP_UNAUTHORIZED',
    });
  });

  test('who does not trust the authority sends nothing, no token either', async () => {
    const { url } = await start({ token: 'secret' });
    for (const trust of [{}, { ca: strangers.ca }]) {
      await expect(rest(url, trust, 'secret').runs()).rejects.toMatchObject({
        code: 'DP_SERVER_UNREACHABLE',
        message: expect.stringMatching(
          /certificate.*; if an authority of your own has signed .*--tls-ca, or by NODE_EXTRA_CA_CERTS/,
        ),
      });
    }
    await expect(
      runWorker({
        ...{ server: url.replace('http', 'ws'), run: null, engine, folders: [FIXTURES] },
        ...{ dataFolder: folder, once: true, signal: AbortSignal.timeout(60_000), patienceMs: 0 },
        ...{ log: () => {}, token: 'secret', tls: trustOf({ ca: strangers.ca }) },
      }),
    ).rejects.toMatchObject({ code: 'DP_SERVER_UNREACHABLE' });
    await expect(rest(url.replace('https', 'http'), {}).runs()).rejects.toThrow();
  });

  test('with an authority of its own the server lets in only who has a certificate of it', async () => {
    const { url } = await start({ tls: { ...server, ca: authority.ca }, token: 'secret' });
    await train(url, { ca: authority.ca, ...client }, { token: 'secret' });
    const others = strangers.issue('stranger');
    for (const trust of [{ ca: authority.ca }, { ca: authority.ca, ...others }]) {
      await expect(rest(url, trust, 'secret').runs()).rejects.toMatchObject({
        code: 'DP_SERVER_UNREACHABLE',
      });
    }
    // The certificate alone is not enough.
    await expect(rest(url, { ca: authority.ca, ...client }).runs()).rejects.toMatchObject({
      code: 'DP_UNAUTHORIZED',
    });
  });

  test('shards in threads are encrypted too', async () => {
    const tls = { ...server, ca: authority.ca };
    const { url } = await start({ tls, token: 'secret', shards: 2 });
    const { id, rests } = await train(
      url,
      { ca: authority.ca, ...client },
      { token: 'secret' },
      DIGITS,
    );
    expect((await rests.run(id)).parameters).toBeGreaterThan(2 * 2 ** 14);
  });

  test('shards of their own are asked for their certificate, and ask for one', async () => {
    const tls = { ...server, ca: authority.ca };
    const state = join(folder, `state-${states++}`);
    const stop = new AbortController();
    const shard = await runShard({
      ...{ host: '127.0.0.1', port: 0, state, token: 'secret', tls, signal: stop.signal },
    });
    ends.push(async () => {
      stop.abort();
      await shard.closed;
    });
    expect(shard.url).toMatch(/^wss:/);
    const { url } = await start({ state, tls, token: 'secret', shards: 2, shardsFrom: 'store' });
    expect(lines).toContain(`2 shards: this server, ${shard.url}`);
    const trust = { ca: authority.ca, ...client };
    const { id, rests } = await train(url, trust, { token: 'secret' }, DIGITS);
    expect((await rests.run(id)).parameters).toBeGreaterThan(2 * 2 ** 14);
    const over = (files: TrustFiles) =>
      fetchOver(trustOf(files))(`${shard.url.replace('wss', 'https')}/health`);
    expect((await over(trust)).status).toBe(200);
    await expect(over({ ca: authority.ca })).rejects.toThrow();
  });

  test('a renewed certificate is shown without a restart; one without its key is not taken', async () => {
    const [cert, key] = [join(folder, 'live.pem'), join(folder, 'live.key')];
    await copyFile(server.cert, cert);
    await copyFile(server.key, key);
    const { TlsMaterial } = await import('../../server/access/tls.ts');
    const told: string[] = [];
    const material = new TlsMaterial({ cert, key }, (line) => told.push(line));
    ends.push(async () => material.close());
    const shown: unknown[] = [];
    material.keep({ setSecureContext: (options) => shown.push(options.cert), on() {} });
    const renewed = authority.issue('renewed');
    await copyFile(renewed.cert, cert);
    material.reload();
    expect(shown).toEqual([]);
    expect(told.join()).toContain('stays as it was');
    await copyFile(renewed.key, key);
    material.reload();
    expect(shown).toHaveLength(1);
  });

  test('whose own certificate has expired is told so, and is let in as soon as the files have a new one', async () => {
    const tls = { ...server, ca: authority.ca };
    const { url } = await start({ tls, token: 'secret' });
    const [cert, key] = [join(folder, 'own.pem'), join(folder, 'own.key')];
    const put = async (issued: { cert: string; key: string }) => {
      await copyFile(issued.cert, cert);
      await copyFile(issued.key, key);
    };
    await put(authority.issue('late', -1));
    let now = 0;
    const trust = trustOf({ ca: authority.ca, cert, key }, { now: () => now });
    const rests = createRestClient({ server: url, token: 'secret', fetch: fetchOver(trust) });
    await expect(rests.runs()).rejects.toMatchObject({
      code: 'DP_SERVER_UNREACHABLE',
      message: expect.stringMatching(/our certificate \(CN=late\) has expired on 20.*Z: put a new/),
    });
    // What the server knows of it stands in its log.
    const refused = /a client.* was refused: its certificate has expired; .*ours\.pem must have/;
    await vi.waitFor(() => expect(lines.filter((line) => refused.test(line))).not.toEqual([]));

    const told: string[] = [];
    const enough = new AbortController();
    const worker = runWorker({
      ...{ server: url.replace('http', 'ws'), run: null, engine, folders: [FIXTURES] },
      ...{ dataFolder: folder, once: false, signal: enough.signal },
      ...{ log: (line) => told.push(line), token: 'secret', tls: trust, name: 'renewed' },
    });
    ends.push(async () => {
      enough.abort();
      await worker;
    });
    await vi.waitFor(() => expect(told.join()).toContain('(CN=late) has expired'), 40_000);
    await put(authority.issue('fresh'));
    now += 1_000;
    await vi.waitFor(() => expect(told.join()).toContain('connected to'), 40_000);
    expect(await rests.runs()).toEqual([]);
  }, 120_000);

  test('what is wrong with the certificate of a server is told with what to do about it', async () => {
    const { url } = await start({ tls: authority.issue('old', -1) });
    await expect(rest(url, { ca: authority.ca }).runs()).rejects.toThrow(
      /certificate has expired; it is that of the server, which needs a new one/,
    );
    // A server that reaches its shards is a client of theirs.
    const state = join(folder, `state-${states++}`);
    const stop = new AbortController();
    const shard = await runShard({
      ...{ host: '127.0.0.1', port: 0, state, tls: server, signal: stop.signal },
    });
    ends.push(async () => {
      stop.abort();
      await shard.closed;
    });
    await expect(start({ state, shards: 2, shardsFrom: 'store' })).rejects.toMatchObject({
      code: 'DP_SHARD_LOST',
      message: expect.stringMatching(/^shard 1 at wss:.*verify.*NODE_EXTRA_CA_CERTS/),
    });
  });

  test('nobody is told of certificates where they are not the reason', async () => {
    const { url } = await start({ tls: { ...server, ca: authority.ca }, token: 'secret' });
    const without = rest(url, { ca: authority.ca }, 'secret').runs();
    await expect(without).rejects.toThrow(/asks for certificates of its clients.*--tls-cert/s);
    const others = rest(url, { ca: authority.ca, ...strangers.issue('other') }, 'secret').runs();
    await expect(others).rejects.toThrow(/does not take our certificate \(CN=other\), signed by/);
    const nobody = rest('https://127.0.0.1:1', { ca: authority.ca, ...client }, 'secret').runs();
    await expect(nobody).rejects.not.toThrow(/certificate/);
  });

  test('files are read again together: a certificate without its key is not taken', async () => {
    const [ca, cert, key] = ['pair-ca.pem', 'pair.pem', 'pair.key'].map((name) =>
      join(folder, name),
    );
    await copyFile(authority.ca, ca!);
    await copyFile(client.cert, cert!);
    await copyFile(client.key, key!);
    let now = 0;
    const told: string[] = [];
    const options = { now: () => now, log: (line: string) => void told.push(line) };
    const trust = trustOf({ ca: ca!, cert: cert!, key: key! }, options);
    const first = { ...trust };
    const renewed = authority.issue('together');
    await copyFile(renewed.cert, cert!);
    for (let look = 0; look < 3; look++) {
      now += 1_000;
      expect({ ...trust }).toEqual(first);
    }
    expect(told).toEqual([expect.stringContaining('the certificate stays as it was')]);
    await copyFile(renewed.key, key!);
    await copyFile(strangers.ca, ca!);
    // Fields that are asked for at one moment come from one reading.
    expect({ ...trust }).toEqual(first);
    now += 1_000;
    const [newCert, newKey, newCa] = await Promise.all(
      [renewed.cert, renewed.key, strangers.ca].map((file) => readFile(file)),
    );
    expect({ ...trust }).toEqual({ ca: newCa, cert: newCert, key: newKey });
    await rm(cert!);
    now += 1_000;
    expect({ ...trust }).toEqual({ ca: newCa, cert: newCert, key: newKey });
    expect(told).toHaveLength(2);
    expect(() => trustOf({ cert: client.cert, key: server.key })).toThrow(
      /certificate and its key/,
    );
  });

  test('old versions of TLS are refused', async () => {
    const { url } = await start();
    const { port } = new URL(url);
    const versions = { minVersion: 'TLSv1', maxVersion: 'TLSv1.1' } as const;
    const socket = connect({
      ...{ port: Number(port), host: '127.0.0.1', rejectUnauthorized: false, ...versions },
      ciphers: 'DEFAULT@SECLEVEL=0',
    });
    const [error] = (await once(socket, 'error')) as [NodeJS.ErrnoException];
    expect(error.code).toMatch(/SSL|RESET|PROTO/);
  });

  test('files that are missing or are no certificates are told at the start', async () => {
    const none = join(folder, 'none.pem');
    await writeFile(join(folder, 'no.pem'), 'hello');
    const wrong: ServeOptions['tls'][] = [
      { ...server, cert: none },
      { ...server, key: client.key },
      { ...server, cert: join(folder, 'no.pem') },
    ];
    for (const tls of wrong) {
      await expect(start({ tls: tls! })).rejects.toMatchObject({ code: 'DP_USAGE' });
    }
    expect(() => trustOf({ cert: client.cert })).toThrow('--tls-key');
    expect(() => trustOf({ ca: none })).toThrow('cannot be read');
  });

  test('the commands do the same by options and environment', async () => {
    const env = {
      ...process.env,
      ...{ DOWNPOUR_TOKEN: 'secret', DOWNPOUR_REDIS_URL: '', DOWNPOUR_TLS_CA: '' },
    };
    const state = join(folder, `state-${states++}`);
    const args = ['serve', '--port', '0', '--state', state, '--json'];
    const files = ['--tls-cert', server.cert, '--tls-key', server.key];
    const child = spawn(process.execPath, [PROGRAM, ...args, ...files], {
      env,
      stdio: ['ignore', 'pipe', 'ignore'],
    });
    ends.push(async () => {
      child.kill('SIGTERM');
      if (child.exitCode === null) await once(child, 'exit');
    });
    const [line] = (await once(createInterface({ input: child.stdout }), 'line')) as [string];
    const { url } = JSON.parse(line) as { url: string };
    const status = spawn(process.execPath, [PROGRAM, 'status', '--server', url], {
      env: { ...env, DOWNPOUR_TLS_CA: authority.ca },
      stdio: ['ignore', 'pipe', 'inherit'],
    });
    let text = '';
    status.stdout.on('data', (chunk) => {
      text += String(chunk);
    });
    const [code] = await once(status, 'close');
    expect({ code, text }).toEqual({ code: 0, text: expect.stringContaining(url) });
  });
});
