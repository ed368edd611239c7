import { existsSync } from 'node:fs';
import * as fs from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import {
  newestValidCheckpoint,
  pruneCheckpoints,
  readCheckpoint,
  writeCheckpoint,
} from '../../files/checkpoint.ts';
import { type CheckpointManifest, listCheckpoints } from '../../files/manifest.ts';
import { readTensors } from '../../files/tensor-file.ts';
import { copyWhole } from '../../files/whole-checkpoint.ts';
import { type DownpourError, errorCode } from '../../shared/errors.ts';
import { LIMITS } from '../../shared/limits.ts';
import { putKey, wholeKeys } from '../../shared/row-groups.ts';
import type { CheckpointKind } from '../../shared/trained-last.ts';

/** How many more operations on files succeed, and how the next one fails. */
const fault = vi.hoisted(() => ({ after: Number.POSITIVE_INFINITY, errno: '', crashed: false }));

// The real file system behind a door that can fail, or die, at any operation. A write that dies
// has put half of its bytes on disk before.
vi.mock('node:fs/promises', async (original) => {
  const real = await original<typeof fs>();
  const fail = (syscall: string) => {
    const code = fault.errno;
    return Object.assign(new Error(`${code}: ${syscall}`), { code, syscall });
  };
  const guard = (syscall: string) => {
    if (fault.crashed) throw fail(syscall);
    if (fault.after-- > 0) return;
    // A crash ends everything. Any other failure comes once: a full disk still removes files.
    if (fault.errno === 'CRASH') fault.crashed = true;
    fault.after = Number.POSITIVE_INFINITY;
    throw fail(syscall);
  };
  const guarded =
    <A extends unknown[], R>(name: string, call: (...args: A) => Promise<R>) =>
    async (...args: A): Promise<R> => {
      guard(name);
      return call(...args);
    };
  return {
    ...real,
    mkdir: guarded('mkdir', real.mkdir as (...a: unknown[]) => Promise<unknown>),
    rename: guarded('rename', real.rename),
    rm: guarded('unlink', real.rm),
    open: async (...args: Parameters<typeof real.open>) => {
      guard('open');
      const handle = await real.open(...args);
      const sync = handle.sync.bind(handle);
      const write = handle.write.bind(handle) as (...args: unknown[]) => Promise<unknown>;
      Object.assign(handle, {
        sync: guarded('fsync', sync),
        async write(bytes: Uint8Array, offset: number, length: number, position: null) {
          try {
            guard('write');
          } catch (error) {
            await write(bytes, offset, length >> 1, position);
            throw error;
          }
          // As kernels may, it takes only a part of what it is given.
          return write(bytes, offset, Math.ceil(length * 0.7), position);
        },
      });
      return handle;
    },
  };
});

let folder: string;
beforeEach(async () => {
  folder = join(await fs.mkdtemp(join(tmpdir(), 'downpour-checkpoint-')), 'run', 'checkpoints');
});
afterEach(async () => {
  Object.assign(fault, { after: Number.POSITIVE_INFINITY, errno: '', crashed: false });
  await fs.rm(join(folder, '../..'), { recursive: true });
});

const now = new Date('2024-05-01T12:00:00Z');

function tensorsFor(step: number) {
  const kernel = Float32Array.from({ length: 3000 }, (_, i) => Math.sin(i + step));
  return [
    { name: 'dense/kernel', shape: [30, 100], values: kernel },
    { name: 'dense/bias', shape: [4], values: Float32Array.of(step, -0, 1e-45, 3.4028234e38) },
    { name: 'scalar', shape: [], values: Float32Array.of(7) },
    { name: 'empty', shape: [0, 3], values: new Float32Array(0) },
  ];
}

function save(step: number, kind: CheckpointKind = 'last') {
  const state = { sequences: { 'worker-1': step * 3 }, name: 'Ünïcode' };
  const tensors = tensorsFor(step);
  return writeCheckpoint(folder, {
    run: 'r1',
    step,
    kind,
    layoutHash: 'a1b2',
    tensors,
    state,
    now,
  });
}

async function newestStep(): Promise<number | null> {
  return (await newestValidCheckpoint(folder))?.manifest.step ?? null;
}

describe('a checkpoint', () => {
  it('restores parameters to the bit, and the rest of the state', async () => {
    const written = await save(42);
    const { manifest, tensors } = await readCheckpoint(folder, written);
    expect(manifest).toEqual(written);
    expect(manifest.state).toEqual({ sequences: { 'worker-1': 126 }, name: 'Ünïcode' });
    expect(manifest.createdAt).toBe('2024-05-01T12:00:00.000Z');
    expect(tensors.map(({ name, shape }) => [name, shape])).toEqual(
      tensorsFor(42).map(({ name, shape }) => [name, shape]),
    );
    for (const [i, { values }] of tensorsFor(42).entries()) {
      const bits = (v: Float32Array) => Buffer.from(v.buffer, v.byteOffset, v.byteLength);
      expect(bits(tensors[i]!.values).equals(bits(values))).toBe(true);
    }
  });

  it('is written from views into a larger memory, larger than one chunk', async () => {
    const memory = Float32Array.from({ length: 700_000 }, (_, i) => i);
    const values = memory.subarray(13, 600_013);
    const tensors = [{ name: 'w', shape: [600_000], values }];
    const input = { run: 'r', step: 1, kind: 'last', layoutHash: '', tensors, now } as const;
    const manifest = await writeCheckpoint(folder, { ...input, state: null });
    const read = await readCheckpoint(folder, join(folder, manifest.file));
    const bits = Buffer.from(read.tensors[0]!.values.buffer);
    expect(bits.equals(Buffer.from(values.slice().buffer))).toBe(true);
  });

  it('is found by the path or name of either file', async () => {
    const { file } = await save(5);
    const name = file.replace('.safetensors', '.json');
    for (const which of [file, name, join(folder, file), join(folder, name)]) {
      expect((await readCheckpoint(folder, which)).manifest.step).toBe(5);
    }
  });

  it('refuses a state that JSON would change', async () => {
    const input = { run: 'r', step: 1, kind: 'last', layoutHash: '', tensors: [], now } as const;
    for (const lost of [new Map(), new Float32Array(2), new Map()]) {
      const write = writeCheckpoint(folder, { ...input, state: { deep: [lost] } });
      await expect(write).rejects.toThrow(TypeError);
    }
    expect(await fs.readdir(folder)).toEqual([]);
  });

  it('that is not there is DP_CHECKPOINT_MISSING, naming the path', async () => {
    const error = await readCheckpoint(folder, 'step-000000001-last-0001.json').catch((e) => e);
    expect(errorCode(error)).toBe('DP_CHECKPOINT_MISSING');
    expect(error.message).toContain(join(folder, 'step-000000001-last-0001.json'));
    expect(await newestValidCheckpoint(folder)).toBeNull();
    expect(await listCheckpoints(folder)).toEqual([]);
  });

  it('of a newer version is refused, not passed over as damaged', async () => {
    const { seal } = await import('../../files/atomic-file.ts');
    const { file, ...rest } = await save(5);
    const path = join(folder, file.replace('.safetensors', '.json'));
    await fs.writeFile(path, seal({ ...rest, file, version: 3 }));
    await expect(newestValidCheckpoint(folder)).rejects.toThrow(/is of version 3/);
    await expect(pruneCheckpoints(folder, { keepLast: 1 })).rejects.toThrow(/is of version 3/);
    expect(existsSync(path)).toBe(true);
  });

  it('whose manifest names a file elsewhere is refused', async () => {
    const { seal } = await import('../../files/atomic-file.ts');
    const manifest = await save(5);
    const path = join(folder, manifest.file.replace('.safetensors', '.json'));
    await fs.writeFile(path, seal({ ...manifest, file: '../../secret.safetensors' }));
    await expect(readCheckpoint(folder, path)).rejects.toThrow(/manifest of "..\/..\/secret/);
  });
});

describe('a damaged checkpoint', () => {
  it('shows any flipped bit, and the older one is used', async () => {
    await save(1);
    const { file } = await save(2);
    const names = [file, file.replace('.safetensors', '.json')];
    const sizes = await Promise.all(names.map(async (n) => (await fs.stat(join(folder, n))).size));
    const place = fc.nat(1).chain((i) => fc.tuple(fc.constant(i), fc.nat(sizes[i]! * 8 - 1)));
    await fc.assert(
      fc.asyncProperty(place, async ([i, bit]) => {
        const path = join(folder, names[i]!);
        const whole = await flipBit(path, bit);
        const told: DownpourError[] = [];
        const newest = await newestValidCheckpoint(folder, { onDamaged: (e) => told.push(e) });
        expect(newest?.manifest.step).toBe(1);
        expect(told.map(errorCode)).toEqual(['DP_CHECKPOINT_CORRUPT']);
        expect(told[0]!.message).toContain(path);
        await fs.writeFile(path, whole);
      }),
      { numRuns: 300 },
    );
    expect(await newestStep()).toBe(2);
  });

  it('shows any cut, and the older one is used', async () => {
    await save(1);
    const { file, bytes } = await save(2);
    const manifest = file.replace('.safetensors', '.json');
    const { size } = await fs.stat(join(folder, manifest));
    const cuts = [
      ...[0, 1, 7, 8, 9, 100, bytes - 12001, bytes - 4, bytes - 1].map((at) => [file, at] as const),
      ...Array.from({ length: size }, (_, at) => [manifest, at] as const),
    ];
    for (const [name, at] of cuts) {
      const whole = await fs.readFile(join(folder, name));
      await fs.truncate(join(folder, name), at);
      expect(await newestStep()).toBe(1);
      await fs.writeFile(join(folder, name), whole);
    }
    await fs.appendFile(join(folder, file), 'x');
    expect(await newestStep()).toBe(1);
  });

  it('without one of its files is passed over', async () => {
    await save(1);
    await save(2);
    const { file } = await save(3);
    await fs.rm(join(folder, file));
    expect(await newestStep()).toBe(2);
    await fs.rm(join(folder, 'step-000000002-last-0002.json'));
    expect(await newestStep()).toBe(1);
    expect((await listCheckpoints(folder)).map((m) => m.step)).toEqual([1]);
  });

  it('says which checksum differs', async () => {
    const manifest = await save(1);
    const path = join(folder, manifest.file);
    const bytes = await fs.readFile(path);
    bytes[bytes.length - 1]! ^= 1;
    await fs.writeFile(path, bytes);
    await expect(readCheckpoint(folder, manifest)).rejects.toThrow(
      `the manifest says ${manifest.sha256}`,
    );
  });
});

describe('a write that is interrupted', () => {
  /** How many operations on files one write takes. */
  async function operationsOfWrite(): Promise<number> {
    await save(1);
    fault.after = 1_000_000;
    await save(2);
    const used = 1_000_000 - fault.after;
    fault.after = Number.POSITIVE_INFINITY;
    return used;
  }

  it('by a crash at any operation leaves the last good one, or the new one whole', async () => {
    const operations = await operationsOfWrite();
    expect(operations).toBeGreaterThan(15);
    let step = 2;
    for (let after = 0; after < operations; after++) {
      Object.assign(fault, { after, errno: 'CRASH' });
      await expect(save(step + 1)).rejects.toThrow();
      Object.assign(fault, { after: Number.POSITIVE_INFINITY, crashed: false });
      const newest = await newestValidCheckpoint(folder);
      expect([step, step + 1]).toContain(newest!.manifest.step);
      expect(newest!.tensors[0]!.values).toEqual(tensorsFor(newest!.manifest.step)[0]!.values);
      step = newest!.manifest.step;
    }
    await pruneCheckpoints(folder, { keepLast: 1 });
    expect((await fs.readdir(folder)).length).toBe(2);
    expect(await newestStep()).toBe(step);
  });

  it.each(['ENOSPC', 'EROFS', 'EACCES', 'EIO'])(
    'by %s at any operation is DP_DISK with path and advice, and leaves nothing behind',
    async (errno) => {
      const operations = await operationsOfWrite();
      const before = (await fs.readdir(folder)).sort();
      for (let after = 0; after < operations; after++) {
        Object.assign(fault, { after, errno });
        const error = await save(3).catch((e) => e);
        expect(errorCode(error)).toBe('DP_DISK');
        expect(error.message).toContain(folder);
        expect(error.message).toContain(errno);
        expect(error.message).toMatch(/free some space|another folder/);
        expect((await fs.readdir(folder)).sort()).toEqual(before);
      }
      expect(await newestStep()).toBe(2);
    },
  );

  it('does not hinder the next one', async () => {
    await save(1);
    Object.assign(fault, { after: 5, errno: 'ENOSPC' });
    const failed = save(2);
    const next = save(3);
    await expect(failed).rejects.toThrow(/disk is full/);
    await next;
    expect(await newestStep()).toBe(3);
  });
});

describe('the newest checkpoint', () => {
  it('is the one written last, even of an older step', async () => {
    await save(500);
    await save(100);
    expect(await newestStep()).toBe(100);
  });

  it('can be asked for by kind', async () => {
    await save(1, 'best');
    await save(2);
    await save(3, 'final');
    const newest = await newestValidCheckpoint(folder, { kinds: ['best', 'last'] });
    expect(newest?.manifest.step).toBe(2);
  });

  it('of one step and kind written twice is the second; the first stands until then', async () => {
    const first = await save(9);
    const second = await save(9);
    expect(second.file).not.toBe(first.file);
    expect((await newestValidCheckpoint(folder))?.manifest.sequence).toBe(2);
  });
});

describe('pruning', () => {
  it('keeps the last few, the newest best, what is still pointed to, and every final', async () => {
    const pointed = await save(1, 'best');
    await save(2, 'best');
    await save(3, 'best');
    for (const step of [4, 5, 6, 7]) await save(step);
    await save(8, 'final');
    await save(9, 'final');
    const gone = await pruneCheckpoints(folder, { keepLast: 2, keep: [pointed.file] });
    expect((await listCheckpoints(folder)).map((m) => m.step)).toEqual([1, 3, 6, 7, 8, 9]);
    expect((await fs.readdir(folder)).length).toBe(12);
    expect([...gone].sort()).toEqual([
      'step-000000002-best-0002.safetensors',
      'step-000000004-last-0004.safetensors',
      'step-000000005-last-0005.safetensors',
    ]);
  });

  it('cleans what a crash left, counts only whole ones, and leaves strangers alone', async () => {
    await save(1);
    await save(2);
    const { file } = await save(3);
    await fs.truncate(join(folder, file), 100);
    await fs.writeFile(join(folder, 'step-000000004-last-0004.safetensors.1a2b.tmp'), 'half');
    await fs.writeFile(join(folder, 'step-000000004-last-0004.safetensors'), 'no manifest');
    await fs.writeFile(join(folder, 'notes.json'), 'mine');
    const told: string[] = [];
    await pruneCheckpoints(folder, { keepLast: 2, onDamaged: (e) => told.push(e.message) });
    expect(told).toHaveLength(1);
    expect((await fs.readdir(folder)).sort()).toEqual([
      'notes.json',
      'step-000000001-last-0001.json',
      'step-000000001-last-0001.safetensors',
      'step-000000002-last-0002.json',
      'step-000000002-last-0002.safetensors',
    ]);
  });

  it('beside writes never takes what is being written', async () => {
    const work: Promise<unknown>[] = [];
    for (let step = 1; step <= 12; step++) {
      work.push(save(step, step % 3 === 0 ? 'best' : 'last'));
      work.push(pruneCheckpoints(folder, { keepLast: 2 }));
    }
    await Promise.all(work);
    expect((await listCheckpoints(folder)).map((m) => m.step)).toEqual([10, 11, 12]);
    expect(await newestStep()).toBe(12);
  });
});

describe('a checkpoint of changed rows', () => {
  const ROWS = [{ keys: '@t.keys', fields: ['@t.values', '@t.flags'], gone: '@t.gone' }] as const;
  /** What each step has: rows by their keys, flags of some rows, and keys that have gone. */
  const STEPS = [
    { rows: { 0: 10, 1: 11, 2: 12, 3: 13, 70000: 14 }, flags: [1], gone: [] },
    { rows: { 2: 22, 9: 29 }, flags: [], gone: [0] },
    { rows: { 0: 30, 9: 39 }, flags: [9], gone: [1] },
    { rows: { 1: 41 }, flags: [], gone: [70_000, 2] },
  ] as const;
  const EXPECTED = [
    { 0: [10, 0], 1: [11, 1], 2: [12, 0], 3: [13, 0], 70000: [14, 0] },
    { 1: [11, 1], 2: [22, 0], 3: [13, 0], 9: [29, 0], 70000: [14, 0] },
    { 0: [30, 0], 2: [22, 0], 3: [13, 0], 9: [39, 1], 70000: [14, 0] },
    { 0: [30, 0], 1: [41, 0], 3: [13, 0], 9: [39, 1] },
  ];

  /** @param after those that it continues; none: it has all of its rows. */
  function saveRows(step: number, after: readonly CheckpointManifest[] = []) {
    const { rows, flags, gone } = STEPS[step % STEPS.length]!;
    const own = Object.keys(rows).map(Number);
    const split = (all: readonly number[]) => {
      const out = new Float32Array(2 * all.length);
      for (const [i, key] of all.entries()) putKey(out, i, key);
      return out;
    };
    const flat = (name: string, values: Float32Array) => ({ name, shape: [values.length], values });
    const marked = own.map((key) => Number((flags as readonly number[]).includes(key)));
    const links = after.map(({ file, sha256 }) => ({ file, sha256 }));
    return writeCheckpoint(folder, {
      ...({ run: 'r1', step, kind: 'last', layoutHash: 'a1b2', state: { step }, now } as const),
      tensors: [
        { name: 'dense', shape: [2, 1], values: Float32Array.of(step, -step) },
        flat('@t.keys', split(own)),
        flat(
          '@t.values',
          Float32Array.from(own.flatMap((key) => [(rows as Record<number, number>)[key]!, key])),
        ),
        flat('@t.flags', Float32Array.from(flags.length > 0 ? marked : [])),
        ...(links.length > 0 ? [flat('@t.gone', split(gone))] : []),
      ],
      ...(links.length > 0 && { continues: { after: links, rows: ROWS } }),
    });
  }

  /** A whole one, and those that continue it. */
  async function saveChain(): Promise<CheckpointManifest[]> {
    const chain: CheckpointManifest[] = [];
    for (let step = 0; step < STEPS.length; step++) chain.push(await saveRows(step, chain));
    return chain;
  }

  function rowsOf(tensors: Awaited<ReturnType<typeof readCheckpoint>>['tensors']) {
    const of = (name: string) => tensors.find((tensor) => tensor.name === name)!.values;
    return Object.fromEntries(
      wholeKeys(of('@t.keys')).map((key, i) => {
        expect(of('@t.values')[2 * i + 1]).toBe(key);
        return [key, [of('@t.values')[2 * i], of('@t.flags')[i] ?? 0]];
      }),
    );
  }

  it('is read with the rows of those that it continues, and refused by a release that does not know this', async () => {
    const chain = await saveChain();
    expect(chain.map(({ version }) => version)).toEqual([1, 2, 2, 2]);
    for (const [step, manifest] of chain.entries()) {
      const { tensors } = await readCheckpoint(folder, manifest);
      expect(rowsOf(tensors)).toEqual(EXPECTED[step]);
      expect(tensors.map(({ name }) => name)).not.toContain('@t.gone');
      const [dense] = tensors;
      expect(dense).toEqual({ name: 'dense', shape: [2, 1], values: Float32Array.of(step, -step) });
      const alone = join(folder, '..', 'alone');
      await copyWhole(folder, manifest.file, alone);
      expect(rowsOf((await readTensors(alone)).tensors)).toEqual(EXPECTED[step]);
    }
  });

  it('is passed over where any file that it needs is damaged, for the newest one that is not', async () => {
    const chain = await saveChain();
    const names = chain.flatMap(({ file }) => [file, file.replace('.safetensors', '.json')]);
    const places = await Promise.all(
      names.map(async (name, i) => ({ i, bits: 8 * (await fs.stat(join(folder, name))).size })),
    );
    const place = fc
      .constantFrom(...places)
      .chain(({ i, bits }) => fc.tuple(fc.constant(i), fc.nat(bits - 1)));
    await fc.assert(
      fc.asyncProperty(place, async ([i, bit]) => {
        const path = join(folder, names[i]!);
        const whole = await flipBit(path, bit);
        const told: DownpourError[] = [];
        const newest = await newestValidCheckpoint(folder, { onDamaged: (e) => told.push(e) });
        const damaged = Math.floor(i / 2);
        expect(newest?.manifest.step).toBe(damaged === 0 ? undefined : damaged - 1);
        if (newest) expect(rowsOf(newest.tensors)).toEqual(EXPECTED[damaged - 1]);
        expect(new Set(told.map(errorCode))).toEqual(new Set(['DP_CHECKPOINT_CORRUPT']));
        expect(told).toHaveLength(STEPS.length - damaged);
        await fs.writeFile(path, whole);
      }),
      { numRuns: 100, seed: 24 },
    );
    expect(await newestStep()).toBe(3);
  });

  it('is passed over where another one has the name of one that it continues', async () => {
    const chain = await saveChain();
    await fs.rm(join(folder, chain[1]!.file));
    await fs.rm(join(folder, chain[1]!.file.replace('.safetensors', '.json')));
    expect((await listCheckpoints(folder)).map(({ step }) => step)).toEqual([0]);
    const { file } = chain[3]!;
    await expect(readCheckpoint(folder, file)).rejects.toThrow(/it continues .*last-0002/);
    for (const { file } of chain.slice(2)) await fs.rm(join(folder, file));
    for (const { file } of chain.slice(2)) {
      await fs.rm(join(folder, file.replace('.safetensors', '.json')));
    }
    const other = await saveRows(5);
    expect(other.sequence).toBe(2);
    const [first] = chain;
    const late = await saveRows(6, [first!, { ...other, sha256: chain[1]!.sha256 }]);
    await expect(readCheckpoint(folder, late)).rejects.toThrow('it is another one');
  });

  it('keeps those that it continues, until none needs them; whoever dies while they are removed leaves no half', async () => {
    const chain = await saveChain();
    const keep = { keepLast: 1 };
    expect(await pruneCheckpoints(folder, keep)).toEqual([]);
    expect(await newestStep()).toBe(3);
    const next = await saveRows(4);
    let removed: readonly string[] = [];
    for (let after = 0; removed.length === 0; after++) {
      Object.assign(fault, { after, errno: 'CRASH' });
      removed = await pruneCheckpoints(folder, keep).catch(() => []);
      Object.assign(fault, { after: Number.POSITIVE_INFINITY, crashed: false });
      const told: unknown[] = [];
      await listCheckpoints(folder, { onDamaged: (e) => told.push(e) });
      expect(told).toEqual([]);
      expect(await newestStep()).toBe(4);
    }
    expect((await listCheckpoints(folder)).map(({ file }) => file)).toEqual([next.file]);
    expect((await fs.readdir(folder)).length).toBe(2);
    expect(chain.map(({ file }) => file)).toEqual(expect.arrayContaining([...removed]));
  });

  it('that dies at any operation of its writing leaves the one before, or is whole', async () => {
    const chain = [await saveRows(0)];
    chain.push(await saveRows(1, chain));
    for (let after = 0, crashed = true; crashed; after++) {
      Object.assign(fault, { after, errno: 'CRASH' });
      crashed = await saveRows(2, chain).then(
        () => false,
        () => true,
      );
      Object.assign(fault, { after: Number.POSITIVE_INFINITY, crashed: false });
      const newest = (await newestValidCheckpoint(folder))!;
      expect([1, 2]).toContain(newest.manifest.step);
      expect(rowsOf(newest.tensors)).toEqual(EXPECTED[newest.manifest.step]);
    }
    expect(await newestStep()).toBe(2);
  });

  it('continues as many as the limit says', async () => {
    const chain = [await saveRows(0)];
    while (chain.length < LIMITS.checkpointLinksMax) chain.push(await saveRows(1, chain));
    await saveRows(2, chain);
    expect(await newestStep()).toBe(2);
    chain.push(await saveRows(1, chain));
    const { file } = await saveRows(3, chain);
    await expect(readCheckpoint(folder, file)).rejects.toMatchObject({
      code: 'DP_CHECKPOINT_CORRUPT',
    });
  });
});

/** @returns the file as it was. */
async function flipBit(path: string, bit: number): Promise<Buffer> {
  const whole = await fs.readFile(path);
  const flipped = Buffer.from(whole);
  flipped[bit >> 3]! ^= 1 << (bit & 7);
  await fs.writeFile(path, flipped);
  return whole;
}
