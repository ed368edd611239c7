import { execFile, spawnSync } from 'node:child_process';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { beforeAll, describe, expect, test } from 'vitest';
import { clientEnvironment } from '../containers/engine.ts';
import { type Compose, ROOT, readCompose } from '../support/deployment.ts';

// `docker compose config`; in CI Compose is fetched where the client lacks it (13 MB).

const has = spawnSync('docker', ['compose', 'version'], { timeout: 20_000 }).status === 0;
const missing = has || process.env.CI ? '' : ': docker has no compose plugin here';
let client = process.env;

/** What it prints, or its complaint. */
async function config(env: Readonly<Record<string, string>>) {
  const words = ['compose', '-f', join(ROOT, 'docker-compose.yml'), 'config', '--format', 'json'];
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
});
