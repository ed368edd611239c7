import { spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, rmSync, statSync, utimesSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test, vi } from 'vitest';
import { keepAlive } from '../../cli/workers/alive.ts';
import { readCompose, readManifests } from '../support/deployment.ts';

// What a worker says to probes, and what the probes of the manifests and of Compose make of it.

let folder: string;
let file: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'downpour-alive-'));
  file = join(folder, 'alive');
});
afterEach(() => {
  vi.useRealTimers();
  rmSync(folder, { recursive: true });
});

const minutesAgo = (minutes: number, of = file) => {
  const then = new Date(Date.now() - 60_000 * minutes);
  utimesSync(of, then, then);
};
const ageMs = () => Date.now() - statSync(file).mtimeMs;

test('the file is touched while timers come, and not while the process is held up', () => {
  vi.useFakeTimers({ toFake: ['setInterval', 'clearInterval'] });
  const alive = keepAlive(file);
  expect(ageMs()).toBeLessThan(60_000);
  minutesAgo(7);
  // No timer comes in between, as in an operation that does not end.
  vi.advanceTimersByTime(9_000);
  expect(ageMs()).toBeGreaterThan(6 * 60_000);
  vi.advanceTimersByTime(2_000);
  expect(ageMs()).toBeLessThan(60_000);
  alive.end();
  expect(existsSync(file)).toBe(false);
  vi.advanceTimersByTime(60_000);
  expect(existsSync(file)).toBe(false);
});

test('a file that cannot be written is told at once', () => {
  expect(() => keepAlive(join(folder, 'none', 'alive'))).toThrow(
    /--alive-file .*none\/alive cannot be written: .*ENOENT.*; name a file in a folder/,
  );
});

/** The same everywhere, for /tmp/alive. */
function probes(): string[] {
  const manifests = readManifests()
    .filter(({ kind, metadata }) => kind === 'Deployment' && /worker/.test(metadata.name))
    .map(({ spec }) => {
      const { template } = spec as {
        template: {
          spec: { containers: [{ livenessProbe: { exec: { command: string[] } } }] };
        };
      };
      const [sh, c, text] = template.spec.containers[0].livenessProbe.exec.command;
      expect([sh, c]).toEqual(['sh', '-c']);
      return text!;
    });
  const env = { DOWNPOUR_TOKEN: 't', DOWNPOUR_SERVER: 's' };
  const compose = ['docker-compose.yml', 'compose.worker.yml'].flatMap((name) =>
    Object.entries(readCompose(env, name).services)
      .filter(([service]) => service.startsWith('worker'))
      .map(([, { healthcheck }]) => {
        expect(healthcheck!.test[0]).toBe('CMD-SHELL');
        return healthcheck!.test[1]!;
      }),
  );
  return [...manifests, ...compose];
}

test('the probes see who lives, who has gone, and who stands still, in each of several', () => {
  const texts = probes();
  expect(texts.length).toBe(6);
  expect(new Set(texts).size).toBe(1);
  const probe = () =>
    spawnSync('sh', ['-c', texts[0]!.replaceAll('/tmp/alive', file)], { encoding: 'utf8' }).status;
  expect(probe()).not.toBe(0);
  const alive = keepAlive(file);
  expect(probe()).toBe(0);
  minutesAgo(4);
  expect(probe()).toBe(0);
  minutesAgo(7);
  expect(probe()).not.toBe(0);
  minutesAgo(0);
  writeFileSync(`${file}.gpu0`, '');
  writeFileSync(`${file}.gpu1`, '');
  expect(probe()).toBe(0);
  minutesAgo(7, `${file}.gpu1`);
  expect(probe()).not.toBe(0);
  alive.end();
});
