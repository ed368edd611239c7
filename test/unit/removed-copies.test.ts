import { mkdir, mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as wait } from 'node:timers/promises';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { checkpointFolder, writeCheckpoint } from '../../files/checkpoint.ts';
import { Copier } from '../../server/checkpoints/elsewhere/copier.ts';
import { restoreInto } from '../../server/checkpoints/elsewhere/restore.ts';
import type { Bucket } from '../../server/checkpoints/elsewhere/s3.ts';
import { Removals } from '../../server/checkpoints/removal.ts';
import { BUNDLE_FOLDER } from '../../server/fleet/bundles.ts';
import { openFileStore } from '../../server/store/file-store.ts';
import { DownpourError } from '../../shared/errors.ts';

/** What becomes of the copies of a run that is removed, and of its labels in a bucket. */

let folder: string;
let state: string;
let objects: Map<string, Buffer>;
/** What the bucket answers instead; null: it works. */
let refusal: string | null;
let lines: string[];
const copiers: Copier[] = [];

beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'downpour-removed-'));
  state = join(folder, 'state');
  objects = new Map();
  refusal = null;
  lines = [];
});
afterEach(async () => {
  for (const copier of copiers.splice(0)) await copier.close(1_000);
  await rm(folder, { recursive: true, force: true });
});

function mustWork(): void {
  if (refusal !== null) throw new DownpourError('DP_S3_UNAVAILABLE', refusal);
}
const bucket = {
  name: 's3://b',
  async list(under: string) {
    mustWork();
    const keys = [...objects.keys()].filter((key) => key.startsWith(under)).sort();
    return keys.map((key) => ({ key, bytes: objects.get(key)!.length }));
  },
  async read(key: string) {
    mustWork();
    return objects.get(key)!;
  },
  async get(key: string, path: string) {
    const bytes = objects.get(key);
    if (bytes) await writeFile(path, bytes);
    return bytes !== undefined;
  },
  async put(key: string, path: string) {
    mustWork();
    objects.set(key, await readFile(path));
    return objects.get(key)!.length;
  },
  async putOpen(key: string, _: unknown, path: string) {
    return bucket.put(key, path);
  },
  async remove(key: string) {
    mustWork();
    objects.delete(key);
  },
  async removeUnfinished() {},
};

function copierOf(): Copier {
  const copier = new Copier({
    ...{ bucket: bucket as unknown as Bucket, root: state, keepLast: 2, retryMs: 5 },
    ...{ mayWrite: async () => {}, now: () => performance.now(), log: (line) => lines.push(line) },
  });
  copiers.push(copier);
  return copier;
}

const write = (run: string, createdAt = 'monday', options = {}) =>
  writeCheckpoint(checkpointFolder(state, run), {
    ...{ run, step: 10, kind: 'last', layoutHash: 'h', now: new Date() },
    tensors: [{ name: 'w', shape: [4], values: new Float32Array(4) }],
    state: { life: 1, options: { id: run, createdAt, ...options } },
  });
const until = async (isSo: () => boolean) => {
  while (!isSo()) await wait(2);
};
const keysOf = (run: string) => [...objects.keys()].filter((key) => key.startsWith(`${run}/`));
const log = () => lines.join('\n');

describe('the copies of a removed run', () => {
  test('go, those of another run of that name stay, and a new run may have the name', async () => {
    const copier = copierOf();
    for (const run of ['r', 'other']) copier.written(await write(run));
    await until(() => objects.size === 4);
    const gone: string[] = [];
    const remove = (createdAt: string) =>
      copier.removeRun('r', createdAt, async () => void gone.push(createdAt));
    remove('sunday');
    await until(() => gone.length === 1);
    expect(keysOf('r')).toHaveLength(2);
    expect(log()).toMatch(/run r: its copies are not removed .*remove s3:\/\/b\/r\/ by hand/);
    remove('monday');
    // At once: its copies take the place of none.
    await rm(join(state, 'r'), { recursive: true });
    copier.written(await write('r', 'tuesday'));
    await until(() => gone.length === 2);
    await until(() => keysOf('r').length === 2);
    expect(objects.get(keysOf('r').find((key) => key.endsWith('.json'))!)!.toString()).toContain(
      'tuesday',
    );
    expect(keysOf('other')).toHaveLength(2);
    expect(copier.facts().refused).toEqual([]);
  });

  test('stay where an older one says that they are of another run, and the newest is damaged', async () => {
    const copier = copierOf();
    for (const count of [2, 4]) {
      copier.written(await write('r'));
      await until(() => objects.size === count);
    }
    const newest = keysOf('r')
      .filter((key) => key.endsWith('.json'))
      .sort()
      .at(-1)!;
    objects.set(newest, Buffer.from('{'));
    let gone = false;
    copier.removeRun('r', 'sunday', async () => {
      gone = true;
    });
    await until(() => gone);
    expect(keysOf('r')).toHaveLength(4);
    expect(log()).toMatch(/run r: its copies are not removed/);
  });

  test('go with the bundle of its experiment, and another run of that name brings it again', async () => {
    const sha256 = 'ab'.repeat(32);
    await mkdir(join(state, BUNDLE_FOLDER), { recursive: true });
    await writeFile(join(state, BUNDLE_FOLDER, sha256), 'the experiment');
    const copier = copierOf();
    copier.written(await write('r', 'monday', { bundle: sha256 }));
    await until(() => objects.size === 3);
    let gone = false;
    copier.removeRun('r', 'monday', async () => {
      gone = true;
    });
    await rm(join(state, 'r'), { recursive: true });
    await until(() => gone);
    expect(objects.size).toBe(0);
    copier.written(await write('r', 'tuesday', { bundle: sha256 }));
    await until(() => keysOf('r').some((key) => key.endsWith('.json')));
    expect(keysOf('r')).toContain(`r/bundles/${sha256}`);
  });

  test('wait for a bucket that is away, also over a restart, and go by the note in .removed', async () => {
    const store = openFileStore({ folder: state });
    const lease = await store.acquire('s', { ttlMs: 60_000 });
    const copier = copierOf();
    const removalsOf = (by: Copier | null) =>
      new Removals(state, store, lease.token, by?.removeRun.bind(by));
    copier.written(await write('r'));
    await until(() => objects.size === 2);
    refusal = 's3://b cannot be reached: ECONNREFUSED';
    const removals = removalsOf(copier);
    await removals.begin('r');
    await removals.finish('r');
    await until(() => /not removed .*; trying again/.test(log()));
    expect(removals.has('r')).toBe(false);
    expect(await readdir(join(state, '.removed'))).toEqual(['r.copies']);
    await copier.close(1_000);
    expect(objects.size).toBe(2);
    refusal = null;
    // A server that copies nowhere leaves the note.
    await removalsOf(null).find();
    const next = removalsOf(copierOf());
    await next.find();
    await until(() => objects.size === 0);
    expect(next.begun).toEqual([]);
    while ((await readdir(join(state, '.removed'))).length > 0) await wait(2);
    await store.close();
  });

  test('stay where the credentials may not remove them, which is said once', async () => {
    const copier = copierOf();
    copier.written(await write('r'));
    await until(() => objects.size === 2);
    refusal = 's3://b at http://b answered 403 AccessDenied: no';
    let gone = false;
    copier.removeRun('r', 'monday', async () => {
      gone = true;
    });
    await until(() => gone);
    expect(lines.filter((line) => line.includes('not removed'))).toHaveLength(1);
    expect(objects.size).toBe(2);
  });
});

test('labels are copied beside the checkpoints of a run, and restored with them', async () => {
  const copier = copierOf();
  await mkdir(join(state, 'r'), { recursive: true });
  await writeFile(join(state, 'r', 'labels.json'), 'first');
  copier.labelled('r');
  copier.written(await write('r'));
  await until(() => objects.get('r/labels.json')?.toString() === 'first');
  await writeFile(join(state, 'r', 'labels.json'), 'second');
  copier.labelled('r');
  await until(() => objects.get('r/labels.json')?.toString() === 'second');
  const empty = join(folder, 'empty');
  await mkdir(empty);
  expect(await restoreInto(empty, bucket as unknown as Bucket, () => {})).toEqual(['r']);
  expect(await readFile(join(empty, 'r', 'labels.json'), 'utf8')).toBe('second');
});
