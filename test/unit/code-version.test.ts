import { cp, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { codeHash, codeProblem, codeVersion } from '../../server/fleet/code-version.ts';
import { ROOT } from '../../shared/own-files.ts';

/** Servers, shards and standbys apply the same pushes: whatever that depends on is part of the version they compare. */

let folder: string;
let copy: URL;
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'downpour-code-'));
  copy = pathToFileURL(`${folder}/`);
  for (const part of ['server', 'shared', 'wire', 'files']) {
    await cp(new URL(part, ROOT), join(folder, part), { recursive: true });
  }
});
afterEach(() => rm(folder, { recursive: true, force: true }));

test('is the same for the same code, wherever it lies and however its lines end', async () => {
  expect(codeHash(copy)).toBe(codeHash(ROOT));
  const file = new URL('server/core/fused.ts', copy);
  await writeFile(file, (await readFile(file, 'utf8')).replaceAll('\n', '\r\n'));
  // What an operator puts there, or an editor.
  await writeFile(new URL('server/core/notes.txt', copy), 'hello');
  expect(codeHash(copy)).toBe(codeHash(ROOT));
});

test.each([
  'server/core/fused.ts',
  'server/kernels/binary.ts',
  'shared/optimizer.ts',
  'files/manifest.ts',
])('is another one with one more line in %s', async (name) => {
  const file = new URL(name, copy);
  await writeFile(file, `${await readFile(file, 'utf8')}\n`);
  expect(codeHash(copy)).not.toBe(codeHash(ROOT));
});

test('fits into the reason of a close, with both versions', () => {
  expect(codeProblem(codeVersion(), 'it')).toBeNull();
  // Older releases sent their number alone.
  expect(codeProblem('0.1.0', 'it')).toMatch(
    /^it runs 0\.1\.0, this side 0\.1\.0\+[0-9a-f]{12}: run the same/,
  );
  const problem = codeProblem('10.10.10+000000000000', 'the standby');
  expect(Buffer.byteLength(problem!)).toBeLessThanOrEqual(123);
});
