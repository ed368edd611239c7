import { mkdtemp, open, readdir, readFile, rm, truncate, writeFile } from 'node:fs/promises';
import { hostname, tmpdir } from 'node:os';
import { join } from 'node:path';
import * as tf from '@tensorflow/tfjs-core';
import '@tensorflow/tfjs-backend-cpu';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { errorCode, errorText } from '../../shared/errors.ts';
import { dataOf } from '../../worker/data/given.ts';
import type { ExampleSource } from '../../worker/data/source.ts';
import { csvSource } from '../../worker/data/sources/csv.ts';
import { type DatasetLike, fromDataset } from '../../worker/data/sources/dataset.ts';
import { spooled } from '../../worker/data/sources/spooled.ts';
import { mountSmallDisk, smallDiskMissing } from '../support/small-disk.ts';
import { failureOf as failure, readFrom as read } from '../support/source-reading.ts';

let folder: string;
beforeAll(async () => {
  await tf.setBackend('cpu');
  folder = await mkdtemp(join(tmpdir(), 'downpour-spool-'));
});
afterAll(() => rm(folder, { recursive: true, force: true }));

/** As `tf.data` gives it. @param elements asked for one at a time */
function dataset(elements: () => Iterable<unknown>) {
  let asked = 0;
  const made = {
    asked: () => asked,
    iterator: async () => {
      const iterator = elements()[Symbol.iterator]();
      return {
        next: async () => {
          asked++;
          return iterator.next();
        },
      };
    },
  };
  return made;
}

describe('a dataset of tf.data', () => {
  it('is written once and then read by position, with the types of its tensors', async () => {
    const made = dataset(function* () {
      for (let i = 0; i < 5000; i++) {
        yield { xs: tf.tensor2d([[i, 0.5]]), ys: tf.scalar(i % 3, 'int32') };
      }
    });
    const before = tf.memory().numTensors;
    const options = {
      ...{ folder, name: 'clicks' },
      fields: { targets: { classes: ['a', 'b', 'c'] } },
    };
    const source = await fromDataset(made, options);
    expect(tf.memory().numTensors).toBe(before);
    expect(source.count).toBe(5000);
    expect(source.fields).toEqual({
      inputs: { shape: [1, 2], type: 'float32' },
      targets: { shape: [], type: 'int32', classes: ['a', 'b', 'c'] },
    });
    expect(await read(source, [4999, 0, 4096])).toEqual({
      inputs: Float32Array.of(4999, 0.5, 0, 0.5, 4096, 0.5),
      targets: Int32Array.of(1, 0, 1),
    });
    expect(dataOf({ train: source }).train.count).toBe(5000);
    const asked = made.asked();
    const again = await fromDataset(made, options);
    expect(made.asked()).toBe(asked);
    expect(again.key).toBe(source.key);
    await fromDataset(made, { ...options, refresh: true });
    expect(made.asked()).toBe(2 * asked);
  });

  it('may give batches, pairs, several fields, numbers and arrays', async () => {
    const batches = dataset(() => [
      [tf.tensor2d([[1], [2]]), tf.tensor1d([0, 1])],
      [tf.tensor2d([[3]]), tf.tensor1d([0])],
    ]);
    const source = await fromDataset(batches, { folder, name: 'batches', batched: true });
    expect(source.count).toBe(3);
    expect(await read(source, [2, 1])).toEqual({
      inputs: Float32Array.of(3, 2),
      targets: Float32Array.of(0, 1),
    });
    const several = await fromDataset(
      [
        { xs: { a: [[1, 2]], b: Uint8Array.of(7) }, ys: 4 },
        { xs: { a: [[3, 4]], b: Uint8Array.of(9) }, ys: 5 },
      ],
      { folder, name: 'several' },
    );
    expect(several.fields).toEqual({
      a: { role: 'input', shape: [1, 2], type: 'float64' },
      b: { role: 'input', shape: [1], type: 'uint8' },
      targets: { shape: [], type: 'float64' },
    });
    expect(await read(several, [1])).toEqual({
      ...{ a: Float64Array.of(3, 4), b: Uint8Array.of(9), targets: Float64Array.of(5) },
    });
    const named = await fromDataset([{ id: Int16Array.of(3) }], {
      ...{ folder, name: 'named', fields: { id: { role: 'input' as const } } },
    });
    expect((await read(named, [0])).id).toEqual(Int32Array.of(3));
  });

  const elements: [string, DatasetLike, RegExp][] = [
    ['none', [], /there are no examples/],
    ['no dataset', 3 as never, /allowed: a dataset of tf.data/],
    ['a number', [3], /element 0 of the dataset is 3; allowed/],
    [
      'another shape',
      [
        [[1, 2], 0],
        [[1], 0],
      ],
      /element 1.*the shape \[1\].*the first has \[2\]/,
    ],
    ['another field', [{ xs: 1, ys: 2 }, { xs: 1 }], /element 1.*the fields inputs; the first/],
    ['ragged', [[[[1, 2], [3]], 0]], /not of one shape/],
    ['text', [[['a'], 0]], /something else than numbers/],
    ['no role', [{ a: 1 }], /field 'a' without a role/],
  ];
  it.each(elements)('is refused: %s', async (name, given, message) => {
    const own = await mkdtemp(join(folder, 'bad-'));
    const error = await failure(fromDataset(given, { folder: own, name: 'bad' }));
    expect(errorText(error)).toMatch(message);
    expect(errorCode(error)).toMatch(/^DP_(EXPERIMENT_INVALID|DATA_CORRUPT)$/);
    expect(await readdir(own).catch(() => [name])).toEqual([]);
  });

  it('refuses arrays with holes, and arrays that contain themselves', async () => {
    const loop: unknown[] = [];
    loop.push(loop);
    // biome-ignore lint/suspicious/noSparseArray: it is what is tested
    for (const xs of [[1, , 3], loop]) {
      await expect(fromDataset([{ xs, ys: 1 }], { folder, name: 'odd' })).rejects.toThrow(
        /not of one shape|nested deeper than 8 arrays/,
      );
    }
  });

  it('that fails half-way leaves nothing, and is written anew', async () => {
    const own = join(folder, 'half');
    let fails = true;
    const made = {
      async *[Symbol.asyncIterator]() {
        for (let i = 0; i < 10_000; i++) {
          if (i === 9_000 && fails) throw new Error('the network is gone');
          yield [i, 0];
        }
      },
    };
    const error = await failure(fromDataset(made, { folder: own, name: 'x' }));
    expect(errorText(error)).toBe('the network is gone');
    expect(await readdir(own)).toEqual([]);
    fails = false;
    expect((await fromDataset(made, { folder: own, name: 'x' })).count).toBe(10_000);
  });

  it('takes away what a process that ended left, and nothing of others', async () => {
    const own = await mkdtemp(join(folder, 'left-'));
    const part = (host: string, pid: number) => `x.rows.${host}.${pid}.abcd.part`;
    const names = [part(hostname(), 2 ** 22 + 1), part(hostname(), process.ppid), part('other', 1)];
    for (const name of names) await writeFile(join(own, name), 'x');
    await fromDataset([[1, 0]], { folder: own, name: 'x' });
    expect((await readdir(own)).sort()).toEqual([...names.slice(1), 'x.rows'].sort());
  });
});

describe('spooled', () => {
  it('has the same numbers, and is written again when its source has changed', async () => {
    const path = join(folder, 'cars.csv');
    await writeFile(path, 'x,y\n1,2\n3,4\n');
    const options = { folder, name: 'cars' };
    const make = async () => {
      const { train } = await csvSource(path, { targets: ['y'] });
      return { train, copy: await spooled(train, options) };
    };
    const { train, copy } = await make();
    expect(copy.fields).toEqual(train.fields);
    expect(await read(copy, [1, 0, 1])).toEqual(await read(train, [1, 0, 1]));
    const bytes = await readFile(join(folder, 'cars.rows'));
    expect((await make()).copy.key).toBe(copy.key);
    expect(await readFile(join(folder, 'cars.rows'))).toEqual(bytes);
    await writeFile(path, 'x,y\n1,2\n3,5\n7,8\n');
    const changed = (await make()).copy;
    expect([changed.count, changed.key === copy.key]).toEqual([3, false]);
  });

  it('refuses what is no source, and odd names', async () => {
    const make = (source: unknown, name: string) =>
      failure(spooled(source as ExampleSource, { folder, name }));
    expect(errorText(await make({ inputs: 1 }, 'x'))).toMatch(/allowed: a source/);
    for (const name of ['../x', '', '.x', 'a/b', 'x'.repeat(101)]) {
      expect(errorCode(await make({ read() {} }, name))).toBe('DP_EXPERIMENT_INVALID');
    }
  });

  it('refuses a file that is cut off or damaged, and says to delete it', async () => {
    const options = { folder, name: 'damaged' };
    const path = join(folder, 'damaged.rows');
    const write = () =>
      fromDataset(
        [
          [1, 0],
          [2, 0],
        ],
        { ...options, refresh: true },
      );
    await write();
    const whole = await readFile(path);
    const damages: (() => Promise<void>)[] = [
      () => truncate(path, 0),
      () => truncate(path, 5),
      () => truncate(path, whole.length - 1),
      () => writeFile(path, whole.subarray(8)),
      async () => {
        const handle = await open(path, 'r+');
        await handle.write(Buffer.of(255, 255, 255, 255), 0, 4, whole.length - 12);
        await handle.close();
      },
      async () => writeFile(path, Buffer.concat([whole, whole.subarray(-12)])),
    ];
    for (const damage of damages) {
      await write();
      await damage();
      const error = await failure(fromDataset([[1, 0]], options));
      expect(errorCode(error)).toBe('DP_DATA_CORRUPT');
      expect(errorText(error)).toMatch(/damaged\.rows.*delete it, and it is written again/);
    }
  });

  it.skipIf(smallDiskMissing())('says that the disk is full and leaves nothing there', async () => {
    const disk = mountSmallDisk(2 ** 20);
    try {
      const long = Array.from({ length: 64 }, () => [new Float32Array(8192), 0]);
      const error = await failure(fromDataset(long, { folder: disk.path, name: 'x' }));
      expect(errorCode(error)).toBe('DP_DISK');
      expect(errorText(error)).toMatch(/no space left.*free space there/);
      expect(await readdir(disk.path)).toEqual([]);
    } finally {
      disk.remove();
    }
  });
});
