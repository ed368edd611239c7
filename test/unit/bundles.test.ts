import { mkdtemp, readdir, readFile, rm, utimes, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { sha256Of } from '../../files/atomic-file.ts';
import { BUNDLE_FOLDER, type BundleLimits, Bundles } from '../../server/fleet/bundles.ts';
import { bundleHead, readBundleHead } from '../../shared/bundle.ts';
import { LIMITS } from '../../shared/limits.ts';

/** What a server keeps of experiments that were sent. */

let state: string;
let log: string[];
beforeEach(async () => {
  state = await mkdtemp(join(tmpdir(), 'downpour-'));
  log = [];
});
afterEach(() => rm(state, { recursive: true, force: true }));

const open = (named: readonly string[] = [], limits: Partial<BundleLimits> = {}) =>
  Bundles.open(state, {
    log: (line) => log.push(line),
    named: new Set(named),
    limits: { ...LIMITS, ...limits },
  });
const bytesOf = (text: string) => Buffer.from(text);
const hashOf = (text: string) => sha256Of(bytesOf(text));
const names = async () => (await readdir(join(state, BUNDLE_FOLDER))).sort();

async function read(bundles: Bundles, sha256: string): Promise<string> {
  const pieces: Buffer[] = [];
  for await (const piece of await bundles.read(sha256)) pieces.push(piece as Buffer);
  return Buffer.concat(pieces).toString();
}

describe('bundles of a server', () => {
  test('are kept by their hash, and read as they were sent, also after a restart', async () => {
    const bundles = await open();
    const sha256 = hashOf('one');
    expect(await bundles.keep(sha256, bytesOf('one'))).toEqual({ sha256, bytes: 3 });
    expect(await bundles.keep(sha256, bytesOf('one'))).toEqual({ sha256, bytes: 3 });
    expect(await read(bundles, sha256)).toBe('one');
    const again = await open([sha256]);
    expect(again.find(sha256)).toEqual({ sha256, bytes: 3 });
    expect(await read(again, sha256)).toBe('one');
    expect(await names()).toEqual([sha256]);
  });

  test('are refused under another hash', async () => {
    const bundles = await open();
    await expect(async () => bundles.keep(hashOf('one'), bytesOf('two'))).rejects.toMatchObject({
      code: 'DP_BODY_INVALID',
      message: expect.stringContaining(hashOf('two')),
    });
    expect(bundles.find(hashOf('one'))).toBeNull();
    expect(() => bundles.mustHave(hashOf('one'))).toThrow(/has no bundle .* send it first/);
  });

  test('have a size: the largest that is allowed is kept, a byte more is not, nor nothing', async () => {
    const bundles = await open([], { bundleBytesMax: 4 });
    await bundles.keep(hashOf('four'), bytesOf('four'));
    for (const text of ['fives', '']) {
      await expect(async () => bundles.keep(hashOf(text), bytesOf(text))).rejects.toMatchObject({
        code: 'DP_FRAME_TOO_LARGE',
      });
    }
  });

  test('that no run names are gone when the server starts, with what was half written', async () => {
    const bundles = await open();
    for (const text of ['one', 'two']) await bundles.keep(hashOf(text), bytesOf(text));
    await writeFile(join(state, BUNDLE_FOLDER, `${hashOf('three')}.0123abcd.tmp`), 'th');
    await writeFile(join(state, BUNDLE_FOLDER, 'README'), 'of somebody else');
    const again = await open([hashOf('two')]);
    expect(again.find(hashOf('one'))).toBeNull();
    expect(await names()).toEqual([hashOf('two'), 'README'].sort());
  });

  test.each([
    ['number', { bundleCountMax: 2 }],
    ['sum', { bundlesBytesMax: 7 }],
  ])(
    'are bounded in their %s: those that no run needs give way, the oldest first',
    async (_, limits) => {
      const bundles = await open([], limits);
      const send = (text: string) => bundles.keep(hashOf(text), bytesOf(text));
      await send('one');
      await send('two');
      // Sent anew it is the younger one.
      await send('one');
      await send('new');
      expect([hashOf('one'), hashOf('two'), hashOf('new')].map((sha) => bundles.find(sha))).toEqual(
        [{ sha256: hashOf('one'), bytes: 3 }, null, { sha256: hashOf('new'), bytes: 3 }],
      );
      expect(log).toEqual([expect.stringContaining(hashOf('two').slice(0, 12))]);
      // What runs need stays; then there is no room.
      bundles.needed = () => new Set([hashOf('one'), hashOf('new')]);
      await expect(send('six')).rejects.toMatchObject({
        code: 'DP_LIMIT',
        message: expect.stringMatching(/need 2 bundles of 6 bytes; at most/),
      });
      bundles.needed = () => new Set([hashOf('new')]);
      await send('six');
      expect(await names()).toEqual([hashOf('new'), hashOf('six')].sort());
    },
  );

  test('that were damaged on disk are whole again when they are sent again', async () => {
    const bundles = await open();
    const sha256 = hashOf('one');
    await bundles.keep(sha256, bytesOf('one'));
    const path = join(state, BUNDLE_FOLDER, sha256);
    await writeFile(path, 'bad, and longer than it was');
    // Never more than was announced.
    expect(await read(bundles, sha256)).toBe('bad');
    await bundles.keep(sha256, bytesOf('one'));
    expect(await readFile(path, 'utf8')).toBe('one');
    await rm(path);
    await expect(bundles.read(sha256)).rejects.toMatchObject({ code: 'DP_DISK' });
  });

  test('that a standby has are all kept, until it knows what runs there are', async () => {
    const bundles = await open();
    await bundles.keep(hashOf('one'), bytesOf('one'));
    void bundles.keep(hashOf('two'), bytesOf('two'));
    await bundles.whenIdle();
    const following = await Bundles.open(state, { log: () => {}, named: null });
    expect(await names()).toEqual([hashOf('one'), hashOf('two')].sort());
    expect((await following.content(hashOf('two'))).toString()).toBe('two');
  });

  test('keep their order over a restart, by when they were written', async () => {
    const bundles = await open();
    const [first, second] = [hashOf('one'), hashOf('two')];
    for (const text of ['one', 'two']) await bundles.keep(hashOf(text), bytesOf(text));
    await utimes(join(state, BUNDLE_FOLDER, first), 2, 2);
    await utimes(join(state, BUNDLE_FOLDER, second), 1, 1);
    const again = await open([first, second], { bundleCountMax: 2 });
    await again.keep(hashOf('new'), bytesOf('new'));
    expect(again.find(second)).toBeNull();
    expect(again.find(first)).not.toBeNull();
  });
});

describe('the first line of a bundle', () => {
  const head = { experiment: 'mine', experimentHash: 'ab'.repeat(32) };

  test('says what it is a bundle of', () => {
    expect(readBundleHead(`${bundleHead(head)}export default 1;`)).toEqual(head);
    expect(bundleHead(head)).toMatch(/^\/\/ .*\n$/);
  });

  test.each([
    ['', 'nothing'],
    ['export default 1;', 'code alone'],
    ['// Downpour experiment {', 'no JSON'],
    ['// Downpour experiment null', 'null'],
    ['// Downpour experiment {"experiment":"../x","experimentHash":"a"}', 'a name that is none'],
    ['// Downpour experiment {"experiment":"x"}', 'no hash'],
    ['\n// Downpour experiment {"experiment":"x","experimentHash":"a"}', 'a second line'],
  ])('%j is %s', (text) => {
    expect(readBundleHead(text)).toBeNull();
  });
});
