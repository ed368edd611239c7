import { execFile, spawnSync } from 'node:child_process';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { describe, expect, test } from 'vitest';
import { type Compose, ROOT, readCompose } from '../support/deployment.ts';

// `docker compose config`: by the plugin itself where it is; in CI else by the library that it reads
// files with, which Go fetches and builds in under a minute. The library's own command loses the
// environment (2.9.1 and 2.16.2), so that it checks the file before variables are filled in.

const LOADER = 'github.com/compose-spec/compose-go/v2/cmd@v2.9.1';
const answers = (program: string, ...args: string[]) =>
  spawnSync(program, args, { timeout: 20_000 }).status === 0;

interface Reader {
  readonly isPlugin: boolean;
  /** Of the command that reads the file. */
  readonly words: readonly string[];
}

function findReader(): Reader | null {
  const file = join(ROOT, 'docker-compose.yml');
  if (answers('docker', 'compose', 'version')) {
    const words = ['docker', 'compose', '-f', file, 'config', '--format', 'json'];
    return { isPlugin: true, words };
  }
  if (!process.env.CI) return null;
  if (!answers('go', 'version')) throw new Error("CI needs docker's compose plugin, or Go");
  return { isPlugin: false, words: ['go', 'run', LOADER, '-format', 'json', file] };
}

const reader = findReader();
const missing = reader === null ? ': docker has no compose plugin here' : '';

/** What it prints, or its complaint. @param env null: variables stay as they are written. */
async function config(env: Readonly<Record<string, string>> | null) {
  const [program, ...words] = reader!.words;
  const args = env === null ? words.toSpliced(-1, 0, '-no-interpolation') : words;
  const inherited = Object.entries(process.env).filter(([name]) => !name.startsWith('DOWNPOUR_'));
  try {
    const { stdout } = await promisify(execFile)(program!, args, {
      cwd: ROOT,
      env: { ...Object.fromEntries(inherited), ...env },
      timeout: 170_000,
    });
    return { file: JSON.parse(stdout) as Compose, complaint: '' };
  } catch (error) {
    return { file: null, complaint: String((error as { stderr?: string }).stderr ?? error) };
  }
}

describe.skipIf(reader === null)(`docker compose config${missing}`, () => {
  test('passes, and sees what our tests see', async () => {
    const values = { DOWNPOUR_TOKEN: 'secret', DOWNPOUR_THREADS: '3', COMPOSE_PROFILES: 'gpu' };
    const env = reader!.isPlugin ? values : null;
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
