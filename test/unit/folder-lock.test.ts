import * as fs from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import {
  leaveFolder,
  ownsFolder,
  takeFolder,
  touchFolder,
} from '../../server/store/folder-lock.ts';
import { errorCode } from '../../shared/errors.ts';

const links = vi.hoisted(() => ({ work: true }));

// A file system that may know no hard links, as FAT or some network shares.
vi.mock('node:fs/promises', async (original) => {
  const real = await original<typeof fs>();
  const refused = () => Object.assign(new Error('EPERM: link'), { code: 'EPERM', syscall: 'link' });
  return {
    ...real,
    link: async (from: string, to: string) => {
      if (!links.work) throw refused();
      await real.link(from, to);
    },
  };
});

let folder: string;
beforeEach(async () => {
  folder = await fs.mkdtemp(join(tmpdir(), 'downpour-lock-'));
});
afterEach(async () => {
  links.work = true;
  await fs.rm(folder, { recursive: true });
});

const by = (owner: string, watchMs = 5) => ({
  ...{ owner, watchMs, ttlMs: 60_000 },
  since: '2024-05-01T12:00:00.000Z',
});

describe.each([true, false])('a folder (hard links: %s)', (work) => {
  beforeEach(() => {
    links.work = work;
  });

  it('whose owner is long silent goes to one of many that find it so at once', async () => {
    let token = await takeFolder(folder, by('first'));
    for (let round = 0; round < 20; round++) {
      const [name] = await fs.readdir(folder);
      await fs.utimes(join(folder, name!), 1, 1);
      const tries = Array.from({ length: 8 }, (_, i) => takeFolder(folder, by(`owner-${i}`)));
      const results = await Promise.allSettled(tries);
      const won = results.flatMap((r) => (r.status === 'fulfilled' ? [r.value] : []));
      expect(won).toHaveLength(1);
      for (const result of results) {
        if (result.status === 'rejected') expect(errorCode(result.reason)).toBe('DP_STATE_LOCKED');
      }
      expect(await ownsFolder(folder, token)).toBe(false);
      expect(await touchFolder(folder, token)).toBe(false);
      expect(won[0]).toBeGreaterThan(token);
      token = won[0]!;
      expect(await touchFolder(folder, token)).toBe(true);
    }
  });

  it.each([1, 4e9])('whose owner lives stays with it when the clock is set (%d)', async (time) => {
    const token = await takeFolder(folder, by('owner'));
    const [name] = await fs.readdir(folder);
    await fs.utimes(join(folder, name!), time, time);
    let over = false;
    const alive = (async () => {
      while (!over) {
        expect(await touchFolder(folder, token)).toBe(true);
        await new Promise((resolve) => setTimeout(resolve, 5));
      }
    })();
    const taken = await takeFolder(folder, by('other', 2_000)).then(() => 'taken', errorCode);
    over = true;
    await alive;
    expect(taken).toBe('DP_STATE_LOCKED');
    expect(await ownsFolder(folder, token)).toBe(true);
  });

  it('that an overtaken owner leaves stays with the new one', async () => {
    const old = await takeFolder(folder, by('old'));
    const [name] = await fs.readdir(folder);
    await fs.utimes(join(folder, name!), 1, 1);
    const token = await takeFolder(folder, by('new'));
    await leaveFolder(folder, old);
    expect(await ownsFolder(folder, token)).toBe(true);
    expect(await fs.readdir(folder)).toHaveLength(1);
  });
});
