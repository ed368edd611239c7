import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, expect, test } from 'vitest';
import { ROOT } from '../support/deployment.ts';

// The Dockerfile, with the stages of the GPU image that CI does not build, as hadolint reads it.

const temporary = mkdtempSync(join(tmpdir(), 'downpour-hadolint-'));
afterAll(() => rmSync(temporary, { recursive: true }));

/** From test/python-tools.txt, or on the path. */
const tools = process.env.DOWNPOUR_PYTHON_TOOLS;
const HADOLINT = tools ? join(tools, 'bin/hadolint') : 'hadolint';
const hadolint = (file: string) =>
  spawnSync(HADOLINT, ['--no-color', '--config', join(ROOT, 'deploy/hadolint.yaml'), file], {
    encoding: 'utf8',
    timeout: 60_000,
  });
const isThere = spawnSync(HADOLINT, ['--version']).status === 0;

test.skipIf(!isThere && !process.env.CI)('hadolint finds nothing in the Dockerfile', () => {
  const { status, stdout, stderr } = hadolint(join(ROOT, 'deploy/Dockerfile'));
  expect(status, stdout + stderr).toBe(0);
  const file = join(temporary, 'Dockerfile');
  const text = readFileSync(join(ROOT, 'deploy/Dockerfile'), 'utf8');
  writeFileSync(file, text.replace('--from=engine-gpu', '--from=engine-gpo'));
  expect(hadolint(file).status).not.toBe(0);
  writeFileSync(file, text.replace('RUN node scripts/engine-install.js --gpu', 'RON node'));
  expect(hadolint(file).status).not.toBe(0);
});
