import { spawnSync } from 'node:child_process';
import { cpSync, existsSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { ROOT } from '../support/deployment.ts';

// `npm start` and `npm test` in a fresh clone, whose packages npm is to install: without a registry, and with npm's answers.

let clone: string;
beforeAll(() => {
  clone = mkdtempSync(join(tmpdir(), 'downpour-clone-'));
  mkdirSync(join(clone, 'bin'));
  for (const path of ['scripts', 'package.json', 'package-lock.json', 'bin/node-lines.js']) {
    cpSync(join(ROOT, path), join(clone, path), { recursive: true });
  }
});
afterAll(() => rmSync(clone, { recursive: true, force: true }));

/** @param npm what stands in for npm: it is given the arguments of ours. */
function start(script: string, npm: string) {
  const fake = join(clone, 'npm.js');
  writeFileSync(fake, npm);
  return spawnSync(process.execPath, [join(clone, 'scripts', script)], {
    ...{ cwd: tmpdir(), encoding: 'utf8', timeout: 20_000 },
    env: { PATH: '', npm_execpath: fake },
  });
}

describe.each(['start.js', 'test.js', 'setup.js'])('%s in a fresh clone', (script) => {
  test('says what to do when packages cannot be installed, and goes no further', () => {
    const { status, stdout, stderr } = start(script, 'process.exit(1);');
    expect(status).toBe(1);
    expect(stdout.trim()).toBe(
      'installing the packages of package-lock.json (none is there yet) …',
    );
    expect(stderr).toMatch(/^The packages could not be installed: npm ci ended with 1/);
    expect(stderr).toMatch(/`npm config get registry` .* `npm ping` .*`npm ci --offline`/);
  });
});

test('npm is asked for what the lock file says, and gives up on a registry that does not answer', () => {
  const npm = 'console.log(JSON.stringify(process.argv.slice(2)));';
  const { status, stdout } = start('setup.js', npm);
  expect(status).toBe(0);
  const given: string[] = JSON.parse(stdout.split('\n').find((line) => line.startsWith('['))!);
  expect(given[0]).toBe('ci');
  expect(given).toEqual(
    expect.arrayContaining(['--fetch-retries=2', '--fetch-retry-maxtimeout=20000']),
  );
  expect(existsSync(join(clone, 'node_modules'))).toBe(false);
});
