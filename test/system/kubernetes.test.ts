import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, expect } from 'vitest';
import { ROOT } from '../support/deployment.ts';
import { python, pythonTest } from '../support/python.ts';

/** The manifests against the schemas of Kubernetes itself, in which every unknown field is an error. */

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
