import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import type { Assign, MissingExperiment } from '../../shared/protocol.ts';
import { Shelf } from '../../worker/shelf.ts';

let folder: string;
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'downpour-shelf-'));
});
afterEach(() => rm(folder, { recursive: true, force: true }));

const HASH = 'a'.repeat(64);
const { signal } = new AbortController();

/** Loads an experiment that was sent, with this text. */
async function loadSent(name: string, text: string) {
  const file = join(folder, `${name}.mjs`);
  await writeFile(file, text);
  const shelf = new Shelf({ folders: [], log: () => {}, bundles: { fetch: async () => file } });
  const bundle = { sha256: 'b'.repeat(64), bytes: text.length };
  const missing: MissingExperiment = { run: 'r', experiment: 'e', experimentHash: HASH, bundle };
  expect(await shelf.obtain([missing], 'http://server', signal)).toBe(true);
  const assign = { experiment: 'e', experimentHash: HASH } as Assign;
  return shelf.load(assign, 'http://server', signal);
}

test('an experiment that was sent and reads a file at its top is told that data are not sent', async () => {
  const gone = join(folder, 'gone.txt');
  const reads = `import { readFileSync } from 'node:fs';\nreadFileSync(${JSON.stringify(gone)});`;
  await expect(loadSent('reads', reads)).rejects.toMatchObject({
    code: 'DP_EXPERIMENT_INVALID',
    message: expect.stringMatching(
      /ENOENT.*; data are not sent .*: put .*gone\.txt on this machine/,
    ),
  });
  // Another fault has nothing to do with data.
  await expect(loadSent('throws', "throw new Error('no');")).rejects.toThrow(
    /cannot be loaded: no$/,
  );
});
