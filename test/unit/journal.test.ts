import { createHash } from 'node:crypto';
import { mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { basename, join } from 'node:path';
import fc from 'fast-check';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { openFileStore } from '../../server/store/file-store.ts';
import { enterFolder, newestToken } from '../../server/store/folder-lock.ts';
import { journaled } from '../../server/store/journal.ts';
import type { AcquireOptions, OwnerLease, StateStore } from '../../server/store/state-store.ts';
import { DownpourError, errorCode } from '../../shared/errors.ts';
import { type Stored, storedInFiles } from '../support/stored.ts';

/** What waits while a store is away, with a store of files that can be told to be away. */

const TTL = { ttlMs: 60_000 };
const ID = 'redis://test';
let root: string;
/** Where the journal is. */
let folder: string;
let stores: StateStore[];
let lines: string[];

beforeEach(async () => {
  root = await mkdtemp(join(tmpdir(), 'downpour-journal-'));
  folder = join(root, 'state');
  [stores, lines] = [[], []];
});
afterEach(async () => {
  for (const store of stores) await store.close();
  await rm(root, { recursive: true, force: true });
});

/**
 * A store elsewhere, which everybody loses and finds at once, with files behind it. As of Redis, the
 * token that was given last is the only one that may write.
 */
async function elsewhere() {
  const inner = openFileStore({ folder: join(root, 'elsewhere') });
  stores.push(inner);
  const own = await inner.acquire('elsewhere', TTL);
  const door = { away: false, newest: 0, calls: [] as string[] };
  function give(tokenMin: number): OwnerLease {
    const previous = door.newest;
    door.newest = Math.max(previous + 1, tokenMin);
    const lost = new AbortController().signal;
    return { token: door.newest, previous, lost, renew: async () => {}, release: async () => {} };
  }
  const writes = new Set(['putRun', 'publishCheckpoint', 'forgetCheckpoints', 'recordBest']);
  writes.add('putEarlyStopping');
  const answering = new Proxy(inner, {
    get(store, name: string) {
      const value = store[name as keyof StateStore];
      if (name === 'close') return async () => {};
      if (name === 'acquire') {
        return async (_: string, { tokenMin = 0 }: AcquireOptions) => give(tokenMin);
      }
      const method = value as (...args: unknown[]) => unknown;
      if (!writes.has(name)) return typeof value === 'function' ? method.bind(store) : value;
      return async (token: number, ...args: never[]) => {
        if (door.away) throw new DownpourError('DP_REDIS_UNAVAILABLE', 'it is away');
        if (token !== door.newest) throw new DownpourError('DP_STATE_FENCED', 'overtaken');
        door.calls.push(name);
        return method.call(store, own.token, ...args);
      };
    },
  });
  const open = (bytesMax?: number) => {
    const log = (line: string) => lines.push(line);
    const limit = bytesMax === undefined ? {} : { bytesMax };
    const store = journaled(answering, { folder, id: ID, log, retryMs: 5, ...limit });
    stores.push(store);
    return store;
  };
  const stored = storedInFiles(join(root, 'elsewhere'));
  return { door, open, inner, stored, overtake: () => give(0) };
}

const run = (id: string, phase: string) => ({
  id,
  phase,
  experiment: 'e',
  createdAt: '2026-01-01T00:00:00.000Z',
  config: {},
});
function checkpoint(sequence: number, step = 10 * sequence) {
  const file = `step-${step}-last-${sequence}.safetensors`;
  const sums = { bytes: 12, sha256: 'ab', layoutHash: 'cd', createdAt: '' };
  return { version: 1, run: 'r', step, kind: 'last', sequence, file, ...sums } as const;
}
const journals = async () => (await readdir(folder)).filter((name) => name.startsWith('journal'));
const codeOf = (promise: Promise<unknown>) => promise.then(() => 'no error', errorCode);

/** Until nothing waits. */
async function settled(store: StateStore): Promise<void> {
  while (store.away) await new Promise((resolve) => setTimeout(resolve, 2));
}

test('what is written while the store is away is there when it is back, newest state last', async () => {
  const { door, open, inner, stored } = await elsewhere();
  const store = open();
  const { token } = await store.acquire('a', TTL);
  await store.putRun(token, run('r', 'waiting'));
  expect(store.away).toBeNull();
  door.away = true;
  await store.putRun(token, run('r', 'training'));
  expect(await store.publishCheckpoint(token, 'r', checkpoint(1))).toEqual({ moved: null });
  await store.publishCheckpoint(token, 'r', checkpoint(2));
  await store.recordBest(token, 'r', { step: 20, value: 0.5, checkpoint: 'c' });
  const worse = { step: 30, value: 0.7, checkpoint: 'd' };
  expect(await store.recordBest(token, 'r', worse)).toEqual({ kept: null, best: worse });
  await store.putEarlyStopping(token, 'r', { evaluations: 2 });
  await store.forgetCheckpoints(token, 'r', [checkpoint(1).file]);
  await store.putRun(token, run('r', 'finished'));
  expect(store.away).toMatchObject({ records: 4 });
  expect(await journals()).toHaveLength(1);
  expect(await stored.run('r')).toMatchObject({ phase: 'waiting' });
  door.away = false;
  door.calls.length = 0;
  await settled(store);
  expect(door.calls).toEqual(['publishCheckpoint', 'recordBest', 'putEarlyStopping', 'putRun']);
  expect(await stored.run('r')).toMatchObject({ phase: 'finished' });
  expect(await stored.best('r')).toMatchObject({ value: 0.5 });
  expect(await stored.checkpoints('r')).toEqual([checkpoint(2)]);
  expect(await inner.lastCheckpoint('r')).toEqual(checkpoint(2));
  expect(await stored.earlyStopping('r')).toEqual({ evaluations: 2 });
  expect(await journals()).toEqual([]);
  expect(lines[0]).toContain('it is away; training continues');
  expect(lines.at(-1)).toMatch(/Redis is back after .* 4 records that waited are written/);
});

test('whatever is written in whatever order, the store ends as if it had never been away', async () => {
  const id = fc.constantFrom('r', 'q');
  const operation: fc.Arbitrary<Operation> = fc.oneof(
    fc.tuple(fc.constant('run'), id, fc.constantFrom('training', 'stopped', 'finished')),
    fc.tuple(fc.constant('publish'), id, fc.nat(6)),
    fc.tuple(fc.constant('forget'), id, fc.nat(6)),
    fc.tuple(fc.constant('best'), id, fc.constantFrom(0.1, 0.2, 0.3)),
    fc.tuple(fc.constant('stopping'), id, fc.nat(9)),
  );
  type Operation = [what: string, run: string, value: number | string];
  const published = (value: number): Operation => ['publish', 'q', value];
  const forgotten = (value: number): Operation => ['forget', 'q', value];
  const apply = (store: StateStore, token: number, [what, name, value]: readonly unknown[]) => {
    const of = name as string;
    if (what === 'run') return store.putRun(token, run(of, value as string));
    // Steps and numbers rise together, as those of one owner do.
    const manifest = checkpoint(1 + Number(value));
    if (what === 'publish') return store.publishCheckpoint(token, of, manifest);
    if (what === 'forget') return store.forgetCheckpoints(token, of, [manifest.file]);
    const best = { step: 1, value: Number(value), checkpoint: 'c' };
    if (what === 'best') return store.recordBest(token, of, best);
    return store.putEarlyStopping(token, of, { evaluations: value });
  };
  const seen = async (store: StateStore, stored: Stored) => ({
    runs: await store.listRuns(),
    checkpoints: [await stored.checkpoints('r'), await stored.checkpoints('q')],
    bests: [await stored.best('r'), await stored.best('q')],
    stopping: [await stored.earlyStopping('r'), await stored.earlyStopping('q')],
  });
  await fc.assert(
    fc.asyncProperty(fc.array(operation, { maxLength: 15 }), fc.nat(15), async (all, cut) => {
      await rm(root, { recursive: true, force: true });
      const { door, open, inner, stored } = await elsewhere();
      const store = open();
      const plain = openFileStore({ folder: join(root, 'plain') });
      stores.push(plain);
      const { token } = await store.acquire('a', TTL);
      const control = (await plain.acquire('a', TTL)).token;
      for (const [i, operation] of all.entries()) {
        door.away = i >= cut;
        if (i < cut) await settled(store);
        await apply(store, token, operation);
        await apply(plain, control, operation);
      }
      door.away = false;
      await settled(store);
      expect(await seen(inner, stored)).toEqual(
        await seen(plain, storedInFiles(join(root, 'plain'))),
      );
      await Promise.all([store.close(), plain.close()]);
    }),
    {
      numRuns: 25,
      // A name that comes again after it was forgotten, and one that the store has already.
      examples: [
        [[forgotten(5), published(5), forgotten(0)], 0],
        [[published(5), published(5), forgotten(5)], 1],
      ],
    },
  );
});

test('what waits is bounded: of a record only the newest, of forgotten checkpoints nothing', async () => {
  const { door, open } = await elsewhere();
  const store = open();
  const { token } = await store.acquire('a', TTL);
  door.away = true;
  const note = 'x'.repeat(2_000);
  for (let i = 1; i <= 600; i++) {
    await store.putRun(token, { ...run('r', `phase ${i}`), note });
    await store.publishCheckpoint(token, 'r', checkpoint(i));
    if (i > 2) await store.forgetCheckpoints(token, 'r', [checkpoint(i - 2).file]);
  }
  // What a retry tried and was forgotten later may have been heard, so its forgetting waits too. That of the
  // first soon is what is tried next, and stays so: until then at most the other two were tried.
  expect(store.away?.records).toBeGreaterThanOrEqual(3);
  expect(store.away?.records).toBeLessThanOrEqual(6);
  const [name] = await journals();
  expect((await readFile(join(folder, name!))).length).toBeLessThan(600_000);
});

test('more than the limit is refused and told, and what waits stays', async () => {
  const { door, open, inner } = await elsewhere();
  const store = open(2_000);
  const { token } = await store.acquire('a', TTL);
  door.away = true;
  await store.putRun(token, run('r', 'training'));
  const large = { ...run('q', 'training'), config: { text: 'x'.repeat(2_000) } };
  const error = (await store.putRun(token, large).catch((e) => e)) as DownpourError;
  expect(errorCode(error)).toBe('DP_LIMIT');
  expect(error.message).toMatch(/at most 2000 may: bring Redis back/);
  door.away = false;
  await settled(store);
  expect((await inner.listRuns()).map(({ id }) => id)).toEqual(['r']);
});

describe('after a crash while the store was away', () => {
  /** Leaves a journal behind, as a killed server does: its lease is not released. */
  async function crashed(phase: string) {
    const { door, open, inner, stored, overtake } = await elsewhere();
    const store = open();
    const lease = await store.acquire('a', TTL);
    door.away = true;
    await store.putRun(lease.token, run('r', phase));
    const [name] = await journals();
    const bytes = await readFile(join(folder, name!));
    await store.close();
    door.away = false;
    return { open, inner, stored, overtake, name: join(folder, name!), bytes };
  }

  test('the next life of the same folder writes what waited', async () => {
    const { open, stored } = await crashed('training');
    const store = open();
    await store.acquire('b', TTL);
    expect(await stored.run('r')).toMatchObject({ phase: 'training' });
    expect(await journals()).toEqual([]);
  });

  test('and so does the one after a life that died before it could', async () => {
    const { open, inner, stored, name, bytes } = await crashed('training');
    await open().acquire('b', TTL);
    // As if it had died after it became the owner, with the journal untouched.
    await inner.putRun(1, run('r', 'waiting'));
    await writeFile(name, bytes);
    await open().acquire('c', TTL);
    expect(await stored.run('r')).toMatchObject({ phase: 'training' });
    expect(await journals()).toEqual([]);
  });

  test('a line that was being written is left out, the whole ones are written', async () => {
    const { open, stored, name, bytes } = await crashed('training');
    await writeFile(name, Buffer.concat([bytes, bytes.subarray(0, 40)]));
    await open().acquire('b', TTL);
    expect(await stored.run('r')).toMatchObject({ phase: 'training' });
    expect(lines.join('\n')).toContain('ends in the middle of a line');
  });

  test('lines that say nothing of ours are passed over and kept; those around them are written', async () => {
    const { open, inner, name, bytes } = await crashed('training');
    const line = (value: unknown) => {
      const text = JSON.stringify(value);
      return `${createHash('sha256').update(text).digest('hex').slice(0, 16)} ${text}\n`;
    };
    const bad = ['no line at all\n', line(null), line({ op: 'run', run: '../r', record: 5 })];
    bad.push(line({ op: 'drop', run: 'r' }), line({ op: 'forget', run: 'r', files: ['../x'] }));
    const other = line({ op: 'run', run: 'q', record: run('q', 'stopped') });
    await writeFile(name, Buffer.concat([Buffer.from(bad.join('')), bytes, Buffer.from(other)]));
    await open().acquire('b', TTL);
    expect((await inner.listRuns()).map(({ id, phase }) => [id, phase])).toEqual([
      ['q', 'stopped'],
      ['r', 'training'],
    ]);
    expect(lines.filter((text) => /in line [1-5] of .* is damaged/.test(text))).toHaveLength(5);
    expect(await journals()).toEqual([`${basename(name)}.damaged`]);
  });

  test('what another owner has overtaken is not written, but kept and told', async () => {
    const { open, stored, overtake, name } = await crashed('training');
    // Another server, with a folder of its own.
    overtake();
    await open().acquire('b', TTL);
    expect(await stored.run('r')).toBeNull();
    expect(lines.join('\n')).toMatch(/1 records that waited under token 1 are not written/);
    expect(await journals()).toEqual([`${basename(name)}.superseded`]);
  });
});

test('two servers with one folder learn of each other though neither reaches the store', async () => {
  const { door, open } = await elsewhere();
  const store = open();
  const lease = await store.acquire('a', { ttlMs: 60 });
  await store.mayWrite(lease.token);
  door.away = true;
  const lost = new Promise((resolve) => lease.lost.addEventListener('abort', resolve));
  const claim = { owner: 'b', ttlMs: 60, since: '', redis: ID, follows: [] };
  const owners = join(folder, '.owner');
  expect(await enterFolder(owners, { ...claim, token: lease.token })).toBe(false);
  expect(await enterFolder(owners, { ...claim, token: lease.token + 5 })).toBe(true);
  expect(await codeOf(store.mayWrite(lease.token))).toBe('DP_STATE_FENCED');
  await lost;
  expect(await codeOf(store.putRun(lease.token, run('r', 'training')))).toBe('DP_STATE_FENCED');
  expect(await newestToken(owners)).toBe(lease.token + 5);
});

test('a folder that a live server with files owns is not taken', async () => {
  const files = openFileStore({ folder });
  stores.push(files);
  const { release } = await files.acquire('files', TTL);
  const store = (await elsewhere()).open();
  expect(await codeOf(store.acquire('a', TTL))).toBe('DP_STATE_LOCKED');
  await release();
  const { token } = await store.acquire('a', TTL);
  expect(token).toBe(await newestToken(join(folder, '.owner')));
});
