import { execFile, spawnSync } from 'node:child_process';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { beforeAll, describe, expect, test } from 'vitest';
import { clientEnvironment } from '../containers/engine.ts';
import { type Compose, type Mount, ROOT, readCompose } from '../support/deployment.ts';

// `docker compose config`; in CI Compose is fetched where the client lacks it (13 MB).

const has = spawnSync('docker', ['compose', 'version'], { timeout: 20_000 }).status === 0;
const missing = has || process.env.CI ? '' : ': docker has no compose plugin here';
let client = process.env;

/** What it prints, or its complaint. */
async function config(env: Readonly<Record<string, string>>, more: readonly string[] = []) {
  const files = ['docker-compose.yml', ...more].flatMap((name) => ['-f', join(ROOT, name)]);
  const words = ['compose', ...files, 'config', '--format', 'json'];
  const inherited = Object.entries(client).filter(([name]) => !name.startsWith('DOWNPOUR_'));
  try {
    const { stdout } = await promisify(execFile)('docker', words, {
      cwd: ROOT,
      env: { ...Object.fromEntries(inherited), ...env },
      timeout: 60_000,
    });
    return { file: JSON.parse(stdout) as Compose, complaint: '' };
  } catch (error) {
    return { file: null, complaint: String((error as { stderr?: string }).stderr ?? error) };
  }
}

describe.skipIf(missing)(`docker compose config${missing}`, () => {
  beforeAll(async () => {
    client = await clientEnvironment(() => {});
  });

  test('passes, and sees what our tests see', async () => {
    const env = { DOWNPOUR_TOKEN: 'secret', DOWNPOUR_THREADS: '3', COMPOSE_PROFILES: 'gpu' };
    const { file, complaint } = await config(env);
    expect(complaint).toBe('');
    const ours = readCompose(env);
    for (const [name, service] of Object.entries(file!.services)) {
      expect(service.command).toEqual(ours.services[name]!.command);
      expect(service.environment).toEqual(ours.services[name]!.environment);
      expect(service.healthcheck?.test).toEqual(ours.services[name]!.healthcheck?.test);
    }
    expect(Object.keys(file!.services)).toEqual(
      expect.arrayContaining(['redis', 'server', 'worker']),
    );
  });

  test('fails without a token, and says what to do', async () => {
    const { file, complaint } = await config({});
    expect(file).toBeNull();
    expect(complaint).toMatch(/DOWNPOUR_TOKEN is missing a value: set it to a secret/);
  });

  test('with compose.secrets.yml tokens are in files alone, each where its role is', async () => {
    const env = {
      DOWNPOUR_TOKEN: 'hidden',
      DOWNPOUR_WORKER_TOKEN: 'hidden',
      COMPOSE_PROFILES: 'gpu',
    };
    const { file, complaint } = await config(env, ['compose.secrets.yml']);
    expect(complaint).toBe('');
    expect(JSON.stringify(file!.services)).not.toContain('hidden');
    const roles = { server: ['operator', 'worker', 'observer'], worker: ['worker'] };
    for (const [name, service] of Object.entries(file!.services)) {
      if (name === 'redis') continue;
      const of = name === 'server' ? roles.server : roles.worker;
      const secrets = service.secrets as { source: string; target: string }[];
      expect(secrets.map(({ source }) => source)).toEqual(of);
      for (const { source, target } of secrets)
        expect(target).toMatch(RegExp(`^(/run/secrets/)?${source}$`));
      expect(service.environment!.DOWNPOUR_TOKEN_FILE).toBe(`/run/secrets/${of[0]}`);
      expect(service.environment!.DOWNPOUR_TOKENS).toBe(
        name === 'server' ? '/run/secrets' : undefined,
      );
    }
  });

  test('with compose.tls.yml nothing is asked in the clear, and workers have no key', async () => {
    const env = { DOWNPOUR_TOKEN: 'secret', COMPOSE_PROFILES: 'gpu' };
    const { file } = await config(env, ['compose.tls.yml', 'compose.secrets.yml']);
    const { server, worker, 'worker-gpu': gpu } = file!.services;
    expect(server!.environment).toMatchObject({
      DOWNPOUR_TLS_CERT: '/run/certs/server.pem',
      DOWNPOUR_TLS_KEY: '/run/certs/server.key',
      DOWNPOUR_SERVER: 'https://server:7420',
    });
    expect(server!.environment).not.toHaveProperty('DOWNPOUR_TLS_CA');
    expect(server!.healthcheck!.test.join()).toContain('https://server:7420/health');
    for (const service of [worker!, gpu!]) {
      expect(service.environment).toMatchObject({
        DOWNPOUR_SERVER: 'wss://server:7420',
        DOWNPOUR_TLS_CA: '/run/certs/ca.pem',
      });
      const targets = (service.volumes as Mount[]).map(({ target }) => target);
      expect(targets).toEqual(['/data', '/app/experiments', '/run/certs/ca.pem']);
    }
  });
});
