import { spawnSync } from 'node:child_process';
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, expect, test } from 'vitest';
import { ROOT } from '../support/deployment.ts';
import { python, pythonTest } from '../support/python.ts';

// The manifests against the schemas of Kubernetes itself, in which every unknown field is an error; the Dockerfile, with
// the stages of the GPU image that CI does not build, as hadolint reads it.

const FOLDER = join(ROOT, 'deploy/kubernetes');
/** The oldest that still has support when this is written, and what most clusters run. */
const VERSIONS = ['1.33', '1.35'] as const;

const temporary = mkdtempSync(join(tmpdir(), 'downpour-kubernetes-'));
afterAll(() => rmSync(temporary, { recursive: true }));

const validate = (version: string, files: readonly string[]) =>
  python(['-m', 'kubernetes_validate', '--strict', '-k', version, ...files]);

pythonTest(['kubernetes_validate'])('the manifests fit the schemas of Kubernetes', async () => {
  const files = readdirSync(FOLDER).map((name) => join(FOLDER, name));
  expect(files.length).toBeGreaterThan(3);
  for (const version of VERSIONS) {
    const { status, stdout, stderr } = await validate(version, files);
    expect(status, stdout + stderr).toBe(0);
  }
});

pythonTest(['kubernetes_validate'])('a misspelt field is found', async () => {
  const file = join(temporary, 'worker.yaml');
  const text = readFileSync(join(FOLDER, 'worker.yaml'), 'utf8');
  writeFileSync(file, text.replace('runAsNonRoot', 'runAsNonRot'));
  const { status, stdout, stderr } = await validate(VERSIONS[0], [file]);
  expect(status).not.toBe(0);
  expect(stdout + stderr).toContain('runAsNonRot');
});

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
