import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach } from 'vitest';

/**
 * Gives each test of a file a state folder of its own, and removes it.
 * @param begin gets the folder before each test.
 * @returns what to call after a test, the last one first, before the folder goes.
 */
export function useStateFolder(name: string, begin: (folder: string) => void) {
  const cleanUps: (() => unknown)[] = [];
  let folder: string;
  beforeEach(async () => {
    folder = await mkdtemp(join(tmpdir(), `downpour-${name}-`));
    begin(folder);
  });
  afterEach(async () => {
    for (const cleanUp of cleanUps.splice(0).reverse()) await cleanUp();
    await rm(folder, { recursive: true, force: true });
  });
  return cleanUps;
}
